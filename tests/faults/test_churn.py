"""A minute of all faults together; `python -m tests.faults.churn --minutes 30` does it for longer."""

from dataclasses import asdict

import pytest

from tests.faults.churn import REALTIME, churn, command
from tests.support.assertions.measured import measured
from tests.support.by_hand import say
from tests.support.faults.churn_plan import WEIGHTS, plan
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings

SEED, SECONDS = 13, 60.0


@pytest.mark.faults
@pytest.mark.timeout(300)
@pytest.mark.parametrize("pairing", pairings("core-daphne-postgres"))
async def test_after_a_churn_sockets_records_and_groups_agree(
    pairing: Pairing, start_site: StartSite
) -> None:
    say(f"\nseed {SEED}; again: {command(pairing, SEED, SECONDS)}")
    site = start_site(pairing, **REALTIME)
    outcome = await churn(site, seed=SEED, seconds=SECONDS, say=say)
    measured(f"churn of {SECONDS / 60:g} minutes", pairing, seed=SEED, **asdict(outcome))
    assert outcome.sockets > 0, "no socket was open at rest, so the comparison says nothing"


def test_a_seed_replays_its_plan_and_a_longer_plan_extends_it() -> None:
    a_minute = list(plan(SEED, SECONDS))
    assert list(plan(SEED, SECONDS)) == a_minute
    assert list(plan(SEED, 1800.0))[: len(a_minute)] == a_minute
    assert list(plan(SEED + 1, SECONDS)) != a_minute


def test_a_plan_of_a_minute_has_every_kind_of_action() -> None:
    assert {action.what for action in plan(SEED, SECONDS)} == set(WEIGHTS)
