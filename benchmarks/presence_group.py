"""Presence in a group of 10,000 users: what a join costs, and what members notice of 5,000 who leave at once.

`python -m benchmarks.presence_group` measures two parts:

- `kill`: half of the members are in each of two processes, and those of the second one watch who is there.
  The first process is killed. A calm publisher measures the latency of messages before that (`calm, all`),
  until every member is told (`from the kill on`, and of that `while told`), and afterwards, when only half of
  the members are left (`calm, half`). Each member must be told of each user who left once.
- `join`: users join the group one at a time. Half of them ask who is there; blocks of both kinds take turns.
  `ms` is the time from the frame to its answer, and `server ms` the CPU of the server. A third kind joins the
  same group on a server that tracks no presence (`PRESENCE` is empty).

The settings are the defaults, except PRESENCE_GRACE in `kill`, which only delays the measurement.
"""

import argparse
import dataclasses
import statistics
import sys
from typing import Any

from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.results import Column, Goal, Results, parser
from benchmarks.stage import Stage, require_files

PARTS = ("kill", "join")
DATABASES = ("sqlite", "postgres")
COLUMNS = {
    "kill": (
        Column("p50_ms", "p50 ms", 1),
        Column("p99_ms", "p99 ms", 1),
        Column("max_ms", "max ms", 1),
        Column("seconds", "told in s", 1),
        Column("frames", "frames"),
        Column("twice", "told twice"),
        Column("missing", "not told"),
    ),
    "join": (
        Column("ms", "ms", 2),
        Column("p99_ms", "p99 ms", 2),
        Column("server_ms", "server ms", 2),
        Column("database_ms", "database ms", 2),
    ),
}
#: Messages a second to all members: a tenth of what a server can write to 10,000.
CALM = 2.0
#: Seconds for the members to be told, from the kill on.
TIMEOUT = 120.0
#: Joins of one kind before the next kind has its turn. The CPU of a process is counted in steps of 10 ms.
BLOCK = 50


def users(name: str, about: str, first: int = 1, **realtime: object) -> Contender:
    """Return the contender "ours" with clients who are users, numbered from `first` times a million on."""
    ours = CONTENDERS["ours"]
    return dataclasses.replace(
        ours,
        name=name,
        about=about,
        application="tests.support.applications.users:application",
        path=f"/ws/public.{{0}}/?user={first}{{1:06d}}",
        realtime={**ours.realtime, **realtime},
    )


# -- kill ----------------------------------------------------------------------------------------------


def kill(stage: Stage, results: Results, database: str, options: argparse.Namespace) -> None:
    half = options.members // 2
    contender = users("ours", "users", PRESENCE_GRACE=options.grace)
    with stage.set(
        contender, database=database, reaper=True, processes=2, generator="benchmarks.watching"
    ) as running:
        doomed, healthy = running.servers
        opened(running.crowd.connect(half, sample=0.0))
        # The members of each process are other users.
        crowd = running.crowd_for(healthy, users("ours", "users", first=2).path)
        opened(crowd.connect(half))
        watched = crowd.watch()
        if watched["most"] != 2 * half:
            sys.exit(f"{watched['most']} users are present, not {2 * half}")
        # The first calls open connections to Redis, and the answers to the joins are over.
        crowd.calm(rate=CALM, seconds=1.0)
        before = crowd.calm(rate=CALM, seconds=options.seconds)["latency"]
        doomed.kill()
        found = crowd.calm_until_left(rate=CALM, users=half, timeout=TIMEOUT)
        after = crowd.calm(rate=CALM, seconds=options.seconds)["latency"]
    size = f"{options.members:,} {database}"
    told = {name: found[name] for name in ("seconds", "frames", "twice", "missing", "lost")}
    more = {**told, "lost_connections": found["lost_connections"], "first_after": found["first_after"]}
    for kind, latency, figures in (
        ("calm, all", before, {"watch_seconds": watched["seconds"]}),
        ("from the kill on", found["all"], {}),
        ("while told", found["during"], more),
        ("calm, half", after, {}),
    ):
        figures |= {f"{name}_ms": value for name, value in latency.items()}
        said = f"p50 {latency['p50'] or 0:.1f} ms, p99 {latency['p99'] or 0:.1f} ms"
        results.add(kind, size, figures, said)


def kill_goals(results: Results, options: argparse.Namespace) -> list[Goal]:
    found = []
    for database in options.databases:
        size = f"{options.members:,} {database}"
        found += [
            Goal(
                f"{database}: p99 of a calm publish from the kill until all are told, against before",
                results.ratio("p99_ms", ("from the kill on", size), ("calm, all", size)),
                2,
                most=True,
            ),
            Goal(
                f"{database}: the same while members are told, against the half that stays, afterwards",
                results.ratio("p99_ms", ("while told", size), ("calm, half", size)),
                2,
                most=True,
            ),
        ]
    broken = sum(results.worst(name) for name in ("twice", "missing", "lost", "lost_connections"))
    return [
        *found,
        Goal("users told twice or not at all, messages and connections lost", broken, 0, most=True),
    ]


# -- join ----------------------------------------------------------------------------------------------


def join(stage: Stage, results: Results, database: str, options: argparse.Namespace) -> None:
    measured: dict[str, list[dict[str, Any]]] = {}
    tracked = users("ours", "users")
    untracked = users("ours, not tracked", "users, without presence", PRESENCE=[])
    for contender, kinds in ((untracked, ("not tracked",)), (tracked, ("not asked", "asked"))):
        blocks = max(1, options.joins // BLOCK)
        number = min(options.joins, BLOCK)
        with stage.set(
            contender, database=database, few=options.members, generator="benchmarks.watching"
        ) as running:
            opened(running.crowd.connect(options.members, sample=0.0))
            # The first block of each kind pays for caches, and for reading the group once.
            opened(running.crowd.connect((blocks + 1) * number * len(kinds)))
            for kind in kinds:
                running.crowd.join(number, presence=kind == "asked")
            for _ in range(blocks):
                for kind in kinds:
                    measured.setdefault(kind, []).append(running.crowd.join(number, presence=kind == "asked"))
    for kind, runs in measured.items():
        each = sorted(ms for run in runs for ms in run["ms"])
        figures = {
            "ms": statistics.median(each),
            "p99_ms": each[int(0.99 * (len(each) - 1))],
            **{
                f"{program}_ms": sum(run["cpu"].get(program, 0.0) for run in runs) / len(each) * 1e3
                for program in runs[0]["cpu"]
            },
            "users": runs[-1]["users"],
        }
        said = f"{figures['ms']:.2f} ms, {figures['server_ms']:.2f} ms of CPU"
        results.add(kind, f"{options.members:,} {database}", figures, said)


def join_goals(results: Results, options: argparse.Namespace) -> list[Goal]:
    found = []
    for database in options.databases:
        size = f"{options.members:,} {database}"
        for kind, other, words in (
            ("asked", "not asked", "a join that asks who is there costs more"),
            ("asked", "not tracked", "the same against a group that is not tracked"),
        ):
            for figure, unit in (("ms", "ms until the answer"), ("server_ms", "ms of CPU in the server")):
                one, two = results.median(kind, size, figure), results.median(other, size, figure)
                more = one - two if one is not None and two is not None else None
                found.append(Goal(f"{database}: {words}, {unit}", more, 1, most=True))
    return found


def opened(answer: dict[str, Any]) -> None:
    """Exit if connections failed."""
    if answer["failed"]:
        sys.exit(f"{answer['failed']} connections failed: {answer['failures']}")


RUN = {"kill": kill, "join": join}
GOALS = {"kill": kill_goals, "join": join_goals}


def main() -> None:
    asked = parser(__doc__, PARTS)
    asked.add_argument("--members", type=int, default=10_000, metavar="N", help="users in the group")
    asked.add_argument("--joins", type=int, default=500, metavar="N", help="of each kind in `join`")
    asked.add_argument("--seconds", type=float, default=15.0, help="of calm in `kill`")
    asked.add_argument("--grace", type=float, default=5.0, help="PRESENCE_GRACE in `kill`")
    asked.add_argument("--databases", nargs="+", choices=DATABASES, default=list(DATABASES))
    options = asked.parse_args()
    if options.quick:
        options.repeats, options.members, options.joins, options.seconds = 1, 40, 4, 1.0
        options.grace, options.databases = 0.5, ["sqlite"]
    require_files(options.members + 6 * options.joins)
    results = Results("presence_group", options)
    parts = options.only or PARTS
    with Stage() as stage:
        for _ in range(options.repeats):
            for part in parts:
                for database in options.databases:
                    RUN[part](stage, results, database, options)
    goals = [goal for part in parts for goal in GOALS[part](results, options)]
    kinds = {
        "kill": ("calm, all", "from the kill on", "while told", "calm, half"),
        "join": ("not tracked", "not asked", "asked"),
    }
    for number, part in enumerate(parts):
        some = Results("presence_group", options)
        some.runs = {key: runs for key, runs in results.runs.items() if key[0] in kinds[part]}
        some.show(COLUMNS[part], "members", goals if number == len(parts) - 1 else ())
    results.save(goals, calm_rate=CALM, block=BLOCK)


if __name__ == "__main__":
    main()
