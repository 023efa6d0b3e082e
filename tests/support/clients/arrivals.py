"""Waits for clients that recover, for the tests of single faults of history."""

from collections.abc import Sequence

from tests.support.assertions.eventually import eventually_async
from tests.support.assertions.judge import Publication, Verdict, judge
from tests.support.clients.recovering import RecoveringClient, logs

PATIENCE = 15.0  # seconds for a busy machine


async def all_live(clients: Sequence[RecoveringClient], *, within: float = PATIENCE) -> None:
    """Wait until all clients are connected, and nothing that they missed is under way."""

    def live() -> bool:
        waiting = [each for each in clients if not each.live]
        assert not waiting, [f"{each.name}: {each.codes} {each.errors} {each.broken}" for each in waiting[:3]]
        return True

    await eventually_async(live, within=within)


async def all_shown(
    clients: Sequence[RecoveringClient], publication: Publication | None, *, within: float = PATIENCE
) -> None:
    """Wait until each client that is in the group was shown this message."""
    assert publication is not None
    members = [each for each in clients if publication.group in each.groups]

    def all_have_it() -> bool:
        without = [
            f"{each.name}: {each.groups[publication.group].events[-2:]}"
            for each in members
            if not any(
                shown.number == publication.number for shown in reversed(each.shown(publication.group))
            )
        ]
        assert not without, f"{len(without)} were not shown {publication}: {without[:3]}"
        return True

    await eventually_async(all_have_it, within=within, every=0.05)


def whole(publications: Sequence[Publication], clients: Sequence[RecoveringClient]) -> Verdict:
    """Return the verdict of the judge.

    Raises:
        AssertionError: A message was lost, doubled or out of order, or a frame broke the protocol.
    """
    verdict = judge(publications, logs(clients))
    assert verdict.whole, str(verdict)
    broken = [sentence for each in clients for sentence in each.broken]
    assert broken == []
    return verdict
