"""The plan of a churn: actions and their times, which follow from a seed alone."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

GROUPS = tuple(f"public.churn-{number}" for number in range(6))
PHONES = 10
SERVERS = 3
STEADY = 0  # the server that is never killed, so that its memory can be compared

#: The frequency of each kind of action, relative to the others.
WEIGHTS = {
    "connect": 16,
    "disconnect": 6,
    "vanish": 5,
    "sleep": 7,
    "join": 16,
    "leave": 10,
    "publish": 24,
    "burst": 1.6,
    "kill-server": 1.2,
    "stop-server": 1.2,
    "restart-redis": 0.8,
    "freeze-redis": 0.8,
    "flush-redis": 0.8,
    "kill-reaper": 0.8,
}
#: Seconds between two actions, on average.
PACE = 0.3
#: Seconds without another fault after an action of the last group, so that a test also sees the system heal.
REST = 4.0


@dataclass(frozen=True, slots=True)
class Action:
    """One event: `what` happens `at` a second to `who` (a numbered phone or server, or a program)."""

    at: float
    what: str
    who: str
    server: int = 0
    group: str = ""
    count: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        told = {"to": f"server {self.server}", "group": self.group, "count": self.count, "for": self.seconds}
        shown = {name: value for name, value in told.items() if value and (name != "to" or self.count)}
        return f"{self.at:7.2f} {self.what} {self.who} " + " ".join(f"{k} {v}" for k, v in shown.items())


@dataclass(slots=True)
class _State:
    on: set[int] = field(default_factory=set)
    awake_at: dict[int, float] = field(default_factory=dict)
    calm_at: float = REST
    burst_over_at: float = REST


def plan(seed: int, seconds: float) -> Iterator[Action]:
    """Yield the actions of a churn, in the order of their times. A longer plan begins like a shorter one."""
    chance, state, at = random.Random(seed), _State(), 0.0
    while True:
        at = round(at + min(chance.expovariate(1 / PACE), 2.0), 3)
        action = _next(chance, state, at)
        if at >= seconds:
            return
        yield action


def _next(chance: random.Random, state: _State, at: float) -> Action:
    awake = sorted(phone for phone in state.on if state.awake_at.get(phone, 0.0) <= at)
    off = sorted(set(range(PHONES)) - state.on)
    possible = {"connect": bool(off)}
    possible |= dict.fromkeys(("disconnect", "vanish", "sleep", "join", "leave", "publish"), bool(awake))
    # A burst may come while something is broken.
    possible["burst"] = bool(awake) and at >= state.burst_over_at
    kinds = [what for what in WEIGHTS if possible.get(what, at >= state.calm_at)]
    (what,) = chance.choices(kinds, [WEIGHTS[kind] for kind in kinds])
    match what:
        case "burst":
            seconds = round(chance.uniform(0.5, 2.0), 3)
            state.burst_over_at = at + seconds + REST
            return Action(at, what, "burst", seconds=seconds)
        case "connect":
            phone = chance.choice(off)
            state.on.add(phone)
            return Action(
                at,
                what,
                f"phone {phone}",
                server=chance.randrange(SERVERS),
                group=chance.choice(GROUPS),
                count=chance.randint(1, 20),
            )
        case "disconnect" | "vanish":
            phone = chance.choice(awake)
            state.on.discard(phone)
            return Action(at, what, f"phone {phone}")
        case "sleep":
            phone = chance.choice(awake)
            seconds = round(chance.uniform(0.3, 10.0), 3)
            state.awake_at[phone] = at + seconds
            return Action(at, what, f"phone {phone}", seconds=seconds)
        case "join" | "leave" | "publish":
            return Action(at, what, f"phone {chance.choice(awake)}", group=chance.choice(GROUPS))
    seconds = round(chance.uniform(0.2, 3.0), 3)
    state.calm_at = at + seconds + REST
    who = {"kill-reaper": "reaper"}.get(what, "redis")
    if what in ("kill-server", "stop-server"):
        who = f"server {chance.randrange(STEADY + 1, SERVERS)}"
    return Action(at, what, who, seconds=0.0 if what == "flush-redis" else seconds)
