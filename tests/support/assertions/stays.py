"""The changes that the database has made to users online, and a comparison with the signals about them.

Triggers note the changes; those of one user have their order. The rows of presence only have the users who
are online now.
"""

import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.assertions.announced import BEFORE_A_KILL
from tests.support.programs.site import Site

ONLINE, OFFLINE = "online", "offline"
#: Seconds by which the signals of two processes may arrive in another order than the changes that they tell.
#: The receivers of each are called after its commit, and a process may be held up there.
OUT_OF_TURN = 2.0

_NOTE = "INSERT INTO tests_stay (user_id, event, at) VALUES"
_SQLITE = (
    "CREATE TABLE tests_stay (id INTEGER PRIMARY KEY AUTOINCREMENT, user_id TEXT, event TEXT, at REAL)",
    *(
        f"CREATE TRIGGER tests_stay_{number} AFTER {when} ON realtime_presentuser WHEN {row}.\"group\" = ''"
        f" AND {condition} BEGIN {_NOTE}"
        f" ({row}.user_id, '{event}', (julianday('now') - 2440587.5) * 86400.0); END"
        for number, (when, row, condition, event) in enumerate(
            (
                ("INSERT", "NEW", "1", ONLINE),
                ("UPDATE", "NEW", "OLD.left_at IS NOT NULL AND NEW.left_at IS NULL", ONLINE),
                ("UPDATE", "NEW", "OLD.left_at IS NULL AND NEW.left_at IS NOT NULL", OFFLINE),
                ("DELETE", "OLD", "OLD.left_at IS NULL", OFFLINE),
            )
        )
    ),
)
_POSTGRES = (
    "CREATE TABLE tests_stay (id bigserial PRIMARY KEY, user_id text, event text, at double precision)",
    f"""
    CREATE FUNCTION tests_stay() RETURNS trigger AS $$
    DECLARE
        now double precision := extract(epoch from clock_timestamp());
        was boolean := TG_OP <> 'INSERT' AND OLD.left_at IS NULL;
        is_now boolean := TG_OP <> 'DELETE' AND NEW.left_at IS NULL;
        who record := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    BEGIN
        IF who."group" = '' AND is_now AND NOT was THEN {_NOTE} (who.user_id, '{ONLINE}', now);
        ELSIF who."group" = '' AND was AND NOT is_now THEN {_NOTE} (who.user_id, '{OFFLINE}', now);
        END IF;
        RETURN NULL;
    END $$ LANGUAGE plpgsql
    """,
    "CREATE TRIGGER tests_stay AFTER INSERT OR UPDATE OR DELETE ON realtime_presentuser"
    " FOR EACH ROW EXECUTE FUNCTION tests_stay()",
)


@dataclass(frozen=True, slots=True)
class Change:
    """A user came online or went offline."""

    user_id: str
    event: str
    at: float
    """Seconds since 1970, within the transaction."""


def note_changes(site: Site) -> None:
    """Have the database of a site note each change from now on."""
    for statement in _SQLITE if site.pairing.database == "sqlite" else _POSTGRES:
        site.database.query(statement)


def changes(site: Site) -> list[Change]:
    """Return the changes that were noted; those of one user are in order."""
    rows = site.database.query("SELECT user_id, event, at FROM tests_stay ORDER BY id")
    return [Change(row["user_id"], row["event"], row["at"]) for row in rows]


def told(log: Path) -> list[tuple[str, str]]:
    """Return the signals `user_online` and `user_offline` in order: the user, and the event."""
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(user_id, kind) for kind, user_id, _ in lines if kind in (ONLINE, OFFLINE)]


@dataclass(frozen=True, slots=True)
class Told:
    """The result of a comparison."""

    online: int
    offline: int
    """Signals of each kind."""
    online_cut_off: int
    offline_cut_off: int
    """Changes that were not told, because the process that made them was killed at that moment."""
    out_of_turn: int
    """Signals that came after the next one of the same user, from another process."""

    @property
    def users(self) -> int:
        """The users online, by the signals and the changes that were cut off."""
        return self.online + self.online_cut_off - self.offline - self.offline_cut_off


def signals_equal_changes(site: Site, log: Path, kills: Sequence[float]) -> Told:
    """Check that each user's changes alternate, and that each was told once, in order.

    Args:
        site: The site; nothing changes now.
        log: The file that the application `signals_log` wrote.
        kills: The times at which processes were killed, as seconds since 1970.
    """
    happened: dict[str, list[Change]] = defaultdict(list)
    for change in changes(site):
        happened[change.user_id].append(change)
    heard: dict[str, list[str]] = defaultdict(list)
    for user_id, event in told(log):
        heard[user_id].append(event)
    cut_off, out_of_turn = Counter[str](), 0
    assert heard.keys() <= happened.keys(), "signals about users who never came"
    for user_id, theirs in happened.items():
        events = [change.event for change in theirs]
        assert events == [(ONLINE, OFFLINE)[number % 2] for number in range(len(events))], (user_id, events)
        cut_off.update(events)
        cut_off.subtract(heard[user_id])
        out_of_turn += signals_out_of_turn(theirs, heard[user_id], kills)
    signals = Counter(event for events in heard.values() for event in events)
    return Told(signals[ONLINE], signals[OFFLINE], cut_off[ONLINE], cut_off[OFFLINE], out_of_turn=out_of_turn)


def signals_out_of_turn(theirs: Sequence[Change], heard: Sequence[str], kills: Sequence[float]) -> int:
    """Compare the changes of one user with the signals about them.

    Returns:
        The number of signals that came out of turn.
    """
    about = f"signals {list(heard)} do not tell {list(theirs)}"
    made: dict[str, list[int]] = {}
    cuts: dict[str, list[tuple[int, ...]]] = {}
    for event in (ONLINE, OFFLINE):
        made[event] = [number for number, change in enumerate(theirs) if change.event == event]
        spare = len(made[event]) - heard.count(event)
        assert spare >= 0, f"told twice: {about}"
        # If some were not told, they are ones of which a process was killed just after it had made them.
        candidates = [
            number
            for number in made[event]
            if any(0 <= kill - theirs[number].at <= BEFORE_A_KILL for kill in kills)
        ]
        assert len(candidates) >= spare, f"not told: {about}"
        cuts[event] = list(itertools.combinations(candidates, spare))
    # It is not known which of them they are. With the right ones, the rest is in order.
    for cut in itertools.product(cuts[ONLINE], cuts[OFFLINE]):
        missing = {*cut[0], *cut[1]}
        places = {event: [each for each in made[event] if each not in missing] for event in made}
        order = [places[event].pop(0) for event in heard]
        late = [(before, after) for before, after in itertools.pairwise(order) if after < before]
        if all(theirs[before].at - theirs[after].at < OUT_OF_TURN for before, after in late):
            return len(late)
    raise AssertionError(f"out of order: {about}")
