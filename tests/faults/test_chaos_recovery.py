"""Two minutes of all faults of recovery; `python -m tests.faults.chaos` does it with a thousand clients."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.faults.chaos import REALTIME, Outcome, chaos, command, durable, plan
from tests.support.assertions.measured import measured
from tests.support.by_hand import say
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings

SEED = 13
SMALL = {"seed": SEED, "seconds": 14.0, "every": 4.0, "clients": 100, "per_second": 20.0}
LONG = {"seed": SEED, "seconds": 120.0, "every": 10.0, "clients": 300, "per_second": 20.0}


async def run(pairing: Pairing, start_site: StartSite, folder: Path, **size: float) -> Outcome:
    say(f"\nagain: {command(pairing, **size)}")  # type: ignore[arg-type]
    site = start_site(pairing, redis=durable(folder), **REALTIME)
    outcome = await chaos(site, **size, say=say)  # type: ignore[arg-type]
    measured(f"chaos of {size['seconds'] / 60:.2g} minutes", pairing, seed=SEED, **asdict(outcome))
    assert outcome.recovered > 0, "no client has recovered anything, so the test says nothing"
    return outcome


@pytest.mark.faults
@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite", layer="pubsub", server="daphne"))
async def test_no_message_is_lost_doubled_or_out_of_order(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    await run(pairing, start_site, tmp_path, **SMALL)


@pytest.mark.faults
@pytest.mark.matrix
@pytest.mark.timeout(400)
@pytest.mark.parametrize("pairing", pairings())
async def test_the_same_holds_for_two_minutes(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    await run(pairing, start_site, tmp_path, **LONG)


def test_a_seed_replays_its_faults_and_has_each_kind() -> None:
    faults = plan(SEED, 120.0, 10.0, 300)
    assert plan(SEED, 120.0, 10.0, 300) == faults
    assert plan(SEED + 1, 120.0, 10.0, 300) != faults
    assert Counter(each.what for each in faults) == {
        "kill-server": 11,
        "restart-redis": 1,
        "empty-redis": 1,
        "sleep": 30,
    }
