"""`realtime.history.memory`: the histories of the in-memory layer, with a clock of the test."""

from typing import Any

from realtime.history.memory import SWEEP_EVERY, Memory
from realtime.history.positions import Entry, Log, Position
from realtime.history.retention import POSITION_TTL, Retention

KEEP = Retention(size=3, ttl=10)


def append(memory: Memory, text: str, now: float, *, once: str | None = None) -> tuple[Position, bool]:
    return memory.append("g", text, KEEP, once, now)


def read(memory: Memory, now: float, after: int | None = 0, **bounds: Any) -> Log:
    return memory.read("g", after, KEEP, bounds.get("limit", 100), bounds.get("max_bytes", 100), now)


def test_messages_are_kept_for_the_ttl_after_the_latest() -> None:
    memory = Memory()
    append(memory, "a", 0)
    place, _ = append(memory, "b", 9)
    assert read(memory, 18.9).entries == (Entry(1, "a"), Entry(2, "b"))
    log = read(memory, 19)
    assert (log.position, log.first, log.entries) == (place, 3, ())
    assert append(memory, "c", 20) == (Position(place.epoch, 3), False)
    assert read(memory, 20).first == 3


def test_an_id_counts_for_the_ttl() -> None:
    memory = Memory()
    place, _ = append(memory, "a", 0, once="id")
    assert append(memory, "b", 9.9, once="id") == (place, True)
    assert append(memory, "c", 10, once="id") == (Position(place.epoch, 2), False)


def test_a_position_is_forgotten_a_day_after_its_last_use() -> None:
    memory = Memory()
    place, _ = append(memory, "a", 0)
    assert memory.positions({"g": POSITION_TTL}, POSITION_TTL - 1)["g"].position == place
    assert read(memory, 2 * POSITION_TTL - 2).position == place
    log = read(memory, 3 * POSITION_TTL)
    assert (log.offset, log.knows(place)) == (0, False)


def test_what_is_no_longer_kept_is_removed_from_memory() -> None:
    memory = Memory()
    for number in range(100):
        memory.append(f"g{number}", "a", KEEP, f"id{number}", 0)
    memory.append("g", "b", KEEP, "id", SWEEP_EVERY)
    kept = memory._histories
    assert not any(history.entries or history.once for group, history in kept.items() if group != "g")
    memory.positions({"g": POSITION_TTL}, SWEEP_EVERY + POSITION_TTL)
    assert set(kept) == {"g"}


def test_reading_keeps_to_its_bounds() -> None:
    memory = Memory()
    for text in ("a" * 40, "b" * 40, "c" * 40):
        append(memory, text, 0)
    assert [entry.offset for entry in read(memory, 0).entries] == [1, 2]
    assert [entry.offset for entry in read(memory, 0, None).entries] == [2, 3]
    assert [entry.offset for entry in read(memory, 0, max_bytes=1).entries] == [1]
    assert [entry.offset for entry in read(memory, 0, 1, limit=1).entries] == [2]
    assert read(memory, 0, None, limit=1).first == 1
