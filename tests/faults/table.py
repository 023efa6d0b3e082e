"""A page of Markdown with every fault, what it must show, and the figures of a run.

    MEASURED_JSON=measured.jsonl make test-all
    python -m tests.faults.table measured.jsonl > docs/faults-measured.md

A churn that was run by hand is included: it appends its outcome to the same file.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LAYERS = {"core": "core", "pubsub": "pub/sub"}
#: The fields of a line that are no figures.
COMMON = ("test", "fault", "pairing")
Measured = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """One fault."""

    fault: str
    must_show: str
    names: tuple[str, ...]
    """The starts of the names that tests give it in `measured`."""
    module: str
    told: tuple[tuple[str, str], ...]
    """The figures of the overview: each is a name, whole or up to its first comma, and one of its figures."""


ROWS = (
    Row("idle for 35 s, any redis-py", "0 dropped", ("idle",), "test_idle", (("idle", "dropped"),)),
    Row(
        "half-open peers",
        "gone 15 s after the first write, 30 s without; 0 left; the healthy lose nothing",
        ("half-open",),
        "test_half_open",
        (
            ("half-open at the defaults, written to", "evicted_after"),
            ("half-open at the defaults, idle", "evicted_after"),
            ("half-open at the defaults, written to", "zombie_messages"),
        ),
    ),
    Row(
        "a browser sleeps until its page is dropped: its processes are stopped, or its link is down",
        "2 s after it wakes up, the page has shown each message once and in order, or was told `reset`",
        ("asleep",),
        "test_sleep",
        tuple(
            (f"asleep{too_long}, {browser}, {way}", "current_after")
            for too_long in ("", " too long")
            for browser in ("WebKit", "Chromium", "Firefox")
            for way in ("stopped", "cut-off")
        ),
    ),
    Row(
        "half-open peers behind each shape of middleware, scaled down",
        "gone 3.5 s after the last answer, 2.5 s after the first write; the healthy lose nothing",
        ("behind middlewares",),
        "test_wrapped_send",
        (
            ("behind middlewares, written to", "evicted_after"),
            ("behind middlewares, idle", "evicted_after"),
        ),
    ),
    Row(
        "readers that stop; the same that go on sending; slow but honest ones",
        "evicted at `MAX_UNSENT_BYTES` or `MAX_UNACKED_BYTES`, memory comes back; the honest ones stay",
        ("readers that stop", "slow but honest"),
        "test_slow_readers",
        (
            ("readers that stop, SIGSTOP", "grown_mib"),
            ("readers that stop, still sending", "grown_mib"),
            ("readers that stop, too much for the process", "grown_mib"),
            ("slow but honest", "evicted"),
        ),
    ),
    Row(
        "clients that read all the time on links of 28 KB/s to 2 MB/s, while a handler sends 0.6 to 20 MB",
        "each receives every message in order, and the close code behind them",
        ("reading slowly",),
        "test_slow_honest",
        (
            ("reading slowly, 20 MB at 700 KB/s", "received"),
            ("reading slowly, 100 messages of 6 KB at 224 kbit/s", "received"),
            ("reading slowly, then closed", "code"),
        ),
    ),
    Row(
        "RST, orderly close, stop and close during a fan-out",
        "0 tracebacks, 0 left, each record closed once with its reason",
        ("ends during a fan-out",),
        "test_endings",
        (("ends during a fan-out", "memberships_left"), ("ends during a fan-out", "tracebacks")),
    ),
    Row(
        "members that talk while a large group is written to",
        "each receives every message of the group, in order",
        ("members that talk",),
        "test_order",
        (("members that talk", "out_of_order"), ("members that talk", "missed")),
    ),
    Row(
        "SIGKILL of a process",
        "25 s at the defaults",
        ("process killed",),
        "test_killed_process",
        (("process killed, defaults", "cleaned_up_after"),),
    ),
    Row(
        "connections above a limit; meanwhile a process is killed, or Redis hangs",
        "places free after 3 rounds; 1 s of delay; 0 rows for each refusal",
        ("connection limit",),
        "test_connection_limits",
        (
            ("connection limit, process killed", "free_after"),
            ("connection limit, Redis hung", "answered_after"),
            ("connection limit, flood", "rows"),
        ),
    ),
    Row(
        "bad frames, three times each",
        "0 leaks, 0 tracebacks",
        ("bad frames",),
        "test_bad_input",
        (("bad frames", "left"), ("bad frames", "tracebacks")),
    ),
    Row(
        "handlers that raise, wait or are above their time",
        "evicted once with the cause logged; a client that answers pings stays",
        ("handler",),
        "test_handlers",
        (
            ("handlers that raise", "left"),
            ("handler waits", "evicted"),
            ("handler above its time", "evicted_after"),
        ),
    ),
    Row(
        "FLUSHALL",
        "receiving again within a round",
        ("FLUSHALL",),
        "test_flushall",
        (("FLUSHALL, default", "receiving_again_after"), ("FLUSHALL, scaled", "receiving_again_after")),
    ),
    Row(
        "Redis restarted",
        "sockets stay open, receiving again 2 s after it is back, publishers get an error",
        ("Redis restarted", "Valkey restarted", "one of two Redis restarted"),
        "test_redis_restart",
        (("Redis restarted", "receiving_again_after"),),
    ),
    Row(
        "Sentinel promotes the replica: the master is killed, hangs, or is switched by hand",
        "sockets stay open, receiving again 2 s after the promotion, publishers get an error",
        ("Sentinel failover",),
        "test_sentinel_failover",
        (
            ("Sentinel failover on redis, kill", "promoted_after"),
            ("Sentinel failover on redis, kill", "receiving_again_after"),
            ("Sentinel failover on redis, hang", "receiving_again_after"),
        ),
    ),
    Row(
        "the database is down",
        "open sockets receive; new ones are told to come back; no client is reaped",
        ("database",),
        "test_database_down",
        (
            ("database gone for a minute", "dropped"),
            ("database locked for a minute", "dropped"),
            ("database gone for a minute", "records_right_after"),
            ("database locked for a minute", "records_right_after"),
            ("database hung while it is probed", "slowest_answer_after"),
            ("database hung while it is probed", "receiving_again_after"),
        ),
    ),
    Row(
        "the reaper is down, doubled, killed in a round",
        "hubs find zombies; nothing is counted twice; no healthy client is reaped",
        ("reaper", "two reapers"),
        "test_reaper_down",
        (
            ("reaper down", "healthy_reaped_on_return"),
            ("two reapers", "rounds_twice"),
            ("reaper killed in the middle of a round", "done_after_its_start"),
        ),
    ),
    Row(
        "the event loop is blocked",
        "no client is evicted",
        ("event loop blocked",),
        "test_blocked_loop",
        (("event loop blocked", "evicted"),),
    ),
    Row(
        "SIGSTOP and SIGCONT of a process",
        "reaped; on waking closed with 4000 over a window, and started again",
        ("stopped, then continued",),
        "test_stopped_process",
        (
            ("stopped, then continued after three minutes", "reaped_after"),
            ("stopped, then continued after three minutes", "last_closed_after_waking"),
        ),
    ),
    Row(
        "SIGTERM with 500 clients",
        "goodbye and 4000 for each, delays spread, 0 left, exit within 10 s",
        ("SIGTERM", "SIGINT", "--limit-max-requests"),
        "test_sigterm",
        (("SIGTERM", "exit_after"), ("SIGTERM", "memberships_left")),
    ),
    Row(
        "rolling restart of two servers behind a proxy",
        "every client recovers everything; one read of Redis per group and process",
        ("rolling restart",),
        "test_rolling_restart",
        (
            ("rolling restart", "recovered"),
            ("rolling restart", "lost"),
            ("rolling restart", "reads"),
        ),
    ),
    Row(
        "clients that sleep until the server has dropped them, also while they talk",
        "awake again, they have every message once and in order",
        ("a sleeping client",),
        "test_sleeping_client",
        (
            ("a sleeping client that listens", "missed"),
            ("a sleeping client that talks", "missed"),
            ("a sleeping client that listens", "current_after"),
        ),
    ),
    Row(
        "the layer drops messages without an error",
        "delivered within a round, also the last one; 0 lost, doubled or out of order",
        ("message dropped", "messages dropped"),
        "test_dropped_message",
        (
            ("message dropped, the last one, default", "delivered_after"),
            ("message dropped, the last one, scaled", "delivered_after"),
            ("messages dropped under load", "lost"),
            ("messages dropped by a full queue", "delivered_after"),
        ),
    ),
    Row(
        "Redis loses a history: empty, FLUSHALL, eviction, a replica that lacks the latest messages",
        "clients are told within a round, or miss nothing; no position is continued that Redis does not know",
        ("history lost",),
        "test_history_lost",
        (
            ("history lost, restart", "told_after"),
            ("history lost, flush", "told_after"),
            ("history lost, position evicted", "told_after"),
            ("history lost, a shorter replica promoted", "told_after"),
        ),
    ),
    Row(
        "a history of 18 MB, and clients that read it slowly or not at all",
        "the slow ones get all of it; the others are evicted, and memory is bounded",
        ("a large history",),
        "test_slow_recovery",
        (
            ("a large history, a slow reader", "received"),
            ("a large history, no reader", "evicted_after"),
            ("a large history, no reader", "grown_mib"),
        ),
    ),
    Row(
        "recovery while servers and Redis are killed",
        "0 lost, 0 doubled, 0 out of order among publishes that returned; told only if Redis was emptied",
        ("chaos of",),
        "test_chaos_recovery",
        (
            ("chaos of 2 minutes", "recovered"),
            ("chaos of 2 minutes", "lost"),
            ("chaos of 2 minutes", "doubled"),
            ("chaos of 2 minutes", "out_of_order"),
        ),
    ),
    Row(
        "500 vanish and come back together",
        "500 back within 5 s, 0 left",
        ("vanish and come back",),
        "test_storm",
        (("vanish and come back", "back"), ("vanish and come back", "back_after")),
    ),
    Row(
        "a clock that is off by 5 minutes",
        "no healthy client reaped, no dead one kept, no message lost",
        ("clock off",),
        "test_wrong_clock",
        (("clock off by 5 minutes", "healthy_reaped"), ("clock off by 5 minutes", "missing")),
    ),
    Row(
        "the subscriber connection carries nothing",
        "replaced within two intervals; no process is lost; one that stays deaf gives its clients up",
        ("subscriber connection", "deaf while", "one process cannot", "a process stays", "Redis restarts in"),
        "test_deaf_layer",
        (
            ("deaf while rounds come", "closed"),
            ("one process cannot reach Redis", "closed"),
            ("a process stays deaf", "clients_sent_elsewhere_after"),
            ("subscriber connection carries nothing, default", "receiving_again_after"),
            ("subscriber connection carries nothing, scaled", "receiving_again_after"),
        ),
    ),
    Row(
        "more is published than a process can write",
        "no process is lost, no client closed, nothing lost up to MAX_QUEUED_BYTES; above it the oldest go",
        ("more than",),
        "test_overload",
        (
            ("more than a process can write", "missed"),
            ("more than a process can write", "kicked_after"),
            ("more than may wait", "grown_mib"),
        ),
    ),
    Row(
        "Redis hangs and goes on",
        "evictions finish here immediately, the to-do list is empty a round later",
        ("Redis hung",),
        "test_redis_hung",
        (("Redis hung", "out_of_fan_out_after"), ("Redis hung", "to_do_list_empty_after_thaw")),
    ),
    Row(
        "a row that the database refuses",
        "only the culprit fails",
        ("poisoned row", "user deleted"),
        "test_poisoned_row",
        (("poisoned row", "connected"), ("poisoned row", "culprits")),
    ),
    Row(
        "users while a process is killed or restarted, Redis is emptied, a phone sleeps, many reconnect",
        "each change once, a grace after the fault was found; none for users who are back within the grace",
        ("presence,",),
        "test_presence",
        (
            ("presence, process killed", "left_after"),
            ("presence, users who reconnect", "frames"),
            ("presence, users who reconnect", "signals"),
            ("presence, rolling restart", "frames"),
            ("presence, a phone that sleeps", "left_after"),
        ),
    ),
    Row(
        "churn",
        "open sockets = open records = memberships in the layer; signals = closed records; presence agrees",
        ("churn of",),
        "test_churn",
        (
            ("churn of 2 minutes", "growth_blocks_per_connection"),
            ("churn of 30 minutes", "rest_after"),
            ("churn of 30 minutes", "growth_bytes_per_connection"),
        ),
    ),
)


def page(measured: Iterable[Measured]) -> str:
    """Return the page.

    Raises:
        SystemExit: A measurement belongs to no row, or to more than one.
    """
    rows: dict[Row, list[Measured]] = {row: [] for row in ROWS}
    for figures in measured:
        about = [row for row in ROWS if figures["fault"].startswith(row.names)]
        if len(about) != 1:
            raise SystemExit(
                f"{figures['fault']!r} belongs to {len(about)} rows of {__name__}; it must be one."
            )
        rows[about[0]].append(figures)
    overview = "\n".join(_overview(row, measured) for row, measured in rows.items())
    return "\n".join([HEAD + overview, *(_section(row, measured) for row, measured in rows.items()), ""])


HEAD = """\
# Every fault, measured

This page has the figures that the tests of each fault measured in one run of `make test-all` and in four
churns of half an hour. A figure is in seconds unless its name says otherwise. Over several runs, the first
table has the least and the most. Below it are the figures of each run. If settings were scaled down,
compare a figure with the bound in the same line. [Failure modes](failure-modes.md) says what each fault
means, and gives its bound at the default settings.

The memory that ended connections leave in use is measured with 2,400 connections after a churn of two
minutes, and with 30,000 after one of thirty minutes. It is counted in blocks of Python's objects, of which
an open connection has about 700, and in bytes of the process. The bytes mean something only over many
connections, because the process still grows to its size, and the caches of SQLite come and go.

| fault | must show | measured on core | measured on pub/sub | again |
|---|---|---|---|---|
"""


def _overview(row: Row, measured: Sequence[Measured]) -> str:
    names = list(dict.fromkeys(name for name, _ in row.told))
    cells = []
    for layer in LAYERS:
        lines = []
        for name in names:
            told = ", ".join(
                f"{_words(figure)} {_range(name, figure, layer, measured)}"
                for of, figure in row.told
                if of == name
            )
            lines.append(told if len(names) == 1 else f"{name}: {told}")
        cells.append("<br>".join(lines))
    return f"| {' | '.join([row.fault, row.must_show, *cells, f'`pytest tests/faults/{row.module}.py`'])} |"


def _range(name: str, figure: str, layer: str, measured: Sequence[Measured]) -> str:
    values = [
        each[figure]
        for each in measured
        if f"{each['fault']},".startswith(f"{name},") and each["pairing"].startswith(layer) and figure in each
    ]
    if not values:
        return "not measured"
    if not all(isinstance(value, int | float) for value in values):
        return ", ".join(sorted({_value(value) for value in values}))
    least, most = _value(min(values)), _value(max(values))
    return least if least == most else f"{least} to {most}"


def _section(row: Row, measured: Sequence[Measured]) -> str:
    """Return a table for each name of the fault: a line for each run, a column for each figure."""
    by_name: dict[str, list[Measured]] = defaultdict(list)
    for figures in measured:
        by_name[figures["fault"]].append(figures)
    parts = [f"\n## {row.fault[0].upper()}{row.fault[1:]}"]
    for name, runs in sorted(by_name.items()):
        columns = list(dict.fromkeys(figure for each in runs for figure in each if figure not in COMMON))
        lines = sorted(
            [_pairing(each["pairing"]), *(_value(each.get(column, "")) for column in columns)]
            for each in runs
        )
        table = [["on", *map(_words, columns)], ["---"] * (len(columns) + 1), *lines]
        parts.append(f"\n**{name}**\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in table))
    return "\n".join(parts)


def _pairing(pairing: str) -> str:
    layer, rest = pairing.split("-", 1)
    return f"{LAYERS[layer]}, {rest.replace('-', ', ')}"


def _words(figure: str) -> str:
    return figure.replace("_", " ")


def _value(value: object) -> str:
    if isinstance(value, dict):
        pairs = [f"{name or 'none'} {_value(number)}" for name, number in value.items()]
        return "; ".join(pairs) or "none"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the file that MEASURED_JSON named")
    lines = parser.parse_args(arguments).file.read_text().splitlines()
    print(page(map(json.loads, lines)), end="")  # noqa: T201 - its product


if __name__ == "__main__":
    main()
