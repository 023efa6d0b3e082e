"""A member that talks while it is written to receives the messages of a large group in order."""

from pathlib import Path

import pytest

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.measured import measured
from tests.support.clients.audience import Audience
from tests.support.clients.numbers import Numbers, same_layer
from tests.support.fixtures import StartSite
from tests.support.pairings import Pairing, pairings

pytestmark = pytest.mark.faults

#: Enough that one message takes several turns of the server's event loop.
MEMBERS = 2000
TALKERS = MEMBERS // 5
PUBLISHERS = 5  # of the talkers
MESSAGES = 60
GROUP = "public.crowded"


@pytest.mark.parametrize("pairing", pairings("pubsub-daphne-sqlite"))
async def test_members_that_talk_receive_messages_in_order(
    pairing: Pairing, start_site: StartSite, tmp_path: Path
) -> None:
    site = start_site(pairing)
    server = site.serve()
    url = server.websocket(f"/ws/{GROUP}/")
    with Audience(
        url, count=MEMBERS, talkers=TALKERS, publishers=PUBLISHERS, log=tmp_path / "audience.log"
    ) as audience:
        with same_layer(site):
            async with Numbers(GROUP, every=0.01) as numbers:
                # A member that was closed never receives enough: then the report below says with which code.
                await eventually_async(
                    lambda: audience.report.fewest > MESSAGES or audience.report.open < MEMBERS,
                    within=200,
                    every=0.5,
                )
            assert not numbers.failed
        report = audience.report
        assert (report.open, report.codes) == (MEMBERS, {})
        measured(
            "members that talk",
            pairing,
            members=MEMBERS,
            talkers=TALKERS,
            deliveries=report.messages,
            deliveries_to_talkers_at_least=report.fewest * TALKERS,
            pongs=report.pongs,
            out_of_order=report.out_of_order,
            missed=report.missed,
            codes=report.codes,
            messages_each=report.messages / MEMBERS,
        )
        assert report.fewest * TALKERS > 10_000
        assert (report.out_of_order, report.missed) == (0, 0)
        assert report.open == MEMBERS
