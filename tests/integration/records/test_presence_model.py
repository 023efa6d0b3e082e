"""Presence in the database against a simple model; `test_postgresql.py` repeats it on PostgreSQL."""

import uuid
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from django.db import OperationalError
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run

from realtime.closing import SILENCE, CloseReason
from realtime.models import PresentUser, Process
from realtime.records import batch, connection_rows, presence_rows
from realtime.records.batch import write_batch
from realtime.records.entries import ONLINE, Place, Stay
from realtime.records.write_queue import Kind, Write, WriteQueue
from tests.support.doubles.rows import a_process, make_lost
from tests.support.doubles.visits import closing, joining, leaving, let_pass, opening

GRACE = 250.0
STEP = 100.0
"""Seconds by which the clock is moved. So few real seconds pass that they never decide."""
USERS = ("a", "b", "")
GROUPS = ("g", "h")


@dataclass
class Client:
    process: uuid.UUID
    user: str
    groups: set[str] = field(default_factory=set)
    """The groups, as the writes that were asked for leave them."""


@dataclass
class Known:
    """The model of a stay."""

    id: int
    gone_for: float | None = None
    dormant: bool = False


class Presence(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        Process.objects.all().delete()
        PresentUser.objects.all().delete()
        self.processes = [a_process(pid=pid) for pid in range(2)]
        self.queue = WriteQueue()
        self.clients: dict[uuid.UUID, Client] = {}
        self.held: dict[uuid.UUID, set[Place]] = defaultdict(set)
        """The places of each connection, as committed."""
        self.users: dict[uuid.UUID, str] = {}
        self.to_leave: dict[uuid.UUID, set[tuple[uuid.UUID, str]]] = defaultdict(set)
        """The connections and groups of the memberships of each process that were not left."""
        self.stays: dict[Place, Known] = {}
        self.dormant: set[str] = set()
        """The dormant users after their grace."""
        self.told: dict[Place, list[tuple[str, int]]] = defaultdict(list)
        self.unsure: list[batch.Arrivals] = []

    # -- what clients do ---------------------------------------------------------------------------

    @rule(process=st.integers(0, 1), user=st.sampled_from(USERS), groups=st.sets(st.sampled_from(GROUPS)))
    def come(self, process, user, groups):
        write = opening(self.processes[process], user)
        (id,) = write.connections
        self.queue.put(write)
        self.clients[id] = Client(self.processes[process], user)
        self.users[id] = user
        for group in groups:
            self._join(id, group)

    @precondition(lambda self: self.clients)
    @rule(data=st.data(), group=st.sampled_from(GROUPS))
    def join_or_leave(self, data, group):
        id = self._one(data)
        client = self.clients[id]
        if group in client.groups:
            client.groups.discard(group)
            self.queue.put(leaving(client.process, id, client.user, group))
        else:
            self._join(id, group)

    @precondition(lambda self: self.clients)
    @rule(
        data=st.data(),
        reason=st.sampled_from([CloseReason.CLIENT_CLOSED, *SILENCE]),
        leaves_first=st.booleans(),
    )
    def go(self, data, reason, leaves_first):
        id = self._one(data)
        client = self.clients.pop(id)
        if leaves_first:
            for group in client.groups:
                self.queue.put(leaving(client.process, id, client.user, group))
        self.queue.put(closing(id, reason))

    def _join(self, id, group):
        client = self.clients[id]
        client.groups.add(group)
        self.queue.put(joining(client.process, id, client.user, group))

    def _one(self, data):
        return data.draw(st.sampled_from(list(self.clients)))

    # -- what processes do -------------------------------------------------------------------------

    @rule(answer_lost=st.booleans(), limit=st.sampled_from([1, 5, 200]))
    def write_all(self, answer_lost, limit):
        """Write all that waits; the answer to the first commit may be lost."""
        while writes := self.queue.take(limit):
            if answer_lost:
                answer_lost = False
                with _lost_commit():
                    write_batch(writes, self.unsure)
                # The ledger tries opens and joins once, and repeats the others.
                repeated = [write for write in writes if write.kind in (Kind.LEAVE, Kind.CLOSE)]
                self._expect(writes, repeated)
            else:
                self._expect(writes, writes)

    def _expect(self, committed: list[Write], writes: list[Write]):
        new, dormant = self._apply(committed)
        if not writes:
            # Nothing is repeated; any other batch tells the stays.
            writes = [leaving(self.processes[0], uuid.uuid4(), "", "g")]
        written = write_batch(writes, self.unsure)
        began = list(written.changes.began) if written.changes else []
        assert {Place(stay.group, stay.user_id) for stay in began} == new
        self._tell("began", began)
        for stay in began:
            self.stays[Place(stay.group, stay.user_id)] = Known(
                stay.id, *self._gone(Place(stay.group, stay.user_id), dormant)
            )
        for write, result in zip(writes, written.results, strict=True):
            if write.kind is Kind.CLOSE:
                assert result.was_first
                assert result.is_dormant == (dormant.get(self.users[write.rows[0].id]) == write.rows[0].id)
            else:
                assert result is None

    def _apply(self, writes: list[Write]) -> tuple[set[Place], dict[str, uuid.UUID]]:
        """Change the model, and return the places with new stays and the users who became dormant."""
        arrived, departed, silent = set(), set(), {}
        for write in writes:
            (row,) = write.rows
            (id,) = write.connections
            user = self.users[id]
            if write.kind is Kind.JOIN:
                self.to_leave[row.process_id].add((id, row.group))
            elif write.kind is Kind.LEAVE:
                self.to_leave[row.process_id].discard((id, row.group))
            if write.kind is Kind.OPEN:
                there = {Place(ONLINE, user)}
            elif write.kind is Kind.CLOSE:
                there = set(self.held[id])
                if row.reason in SILENCE:
                    silent[user] = id
            else:
                there = {Place(row.group, user)}
            if write.kind in (Kind.OPEN, Kind.JOIN):
                self.held[id] |= there
                arrived |= there
            else:
                departed |= there & self.held[id]
                self.held[id] -= there
        arrived, departed = ({place for place in some if place.user_id} for some in (arrived, departed))
        new = {place for place in arrived if place not in self.stays}
        for place in arrived & self.stays.keys():
            self.stays[place] = Known(self.stays[place].id)
        dormant = {}
        for place in departed:
            known = self.stays.get(place)
            if self._is_held(place) or (known is not None and known.gone_for is not None):
                continue
            if place.group == ONLINE and place.user_id in silent:
                dormant[place.user_id] = silent[place.user_id]
            if known is not None:
                known.gone_for, known.dormant = self._gone(place, dormant)
        self.dormant -= {place.user_id for place in arrived if place.group == ONLINE}
        return new, dormant

    def _gone(self, place: Place, dormant: dict[str, uuid.UUID]) -> tuple[float | None, bool]:
        if self._is_held(place):
            return None, False
        return 0.0, place.group == ONLINE and place.user_id in dormant

    def _is_held(self, place: Place) -> bool:
        return any(place in places for places in self.held.values())

    @precondition(lambda self: not len(self.queue))
    @rule(number=st.integers(0, 1), marks_first=st.booleans())
    def lose_a_process(self, number, marks_first):
        """Sweep a process that was killed; another one starts."""
        lost, self.processes[number] = self.processes[number], a_process(pid=number)
        make_lost(lost)
        ids = {id for id, client in self.clients.items() if client.process == lost}
        steps = [
            lambda: connection_rows.close_lost_records(lost, uuid.uuid4()),
            lambda: connection_rows.mark_groups_left(lost, GROUPS),
        ]
        closed, groups = None, {group for _, group in self.to_leave.pop(lost, ())}
        for step in reversed(steps) if marks_first else steps:
            found = step()
            if isinstance(found, list):
                closed = {each.id for each in found}
            else:
                assert found == groups
        assert closed == ids
        departed = set().union(*(self.held.pop(id) for id in ids))
        for id in ids:
            del self.clients[id]
        for place in departed & self.stays.keys():
            if not self._is_held(place) and self.stays[place].gone_for is None:
                self.stays[place].gone_for = 0.0

    @rule()
    def pass_time(self):
        let_pass(STEP)
        for known in self.stays.values():
            if known.gone_for is not None:
                known.gone_for += STEP

    @rule(limit=st.sampled_from([1, 100]))
    def end_stays(self, limit):
        while ended := presence_rows.end_stays(GRACE, limit):
            self._tell("ended", ended)
            for stay in ended:
                known = self.stays.pop(Place(stay.group, stay.user_id))
                assert known.id == stay.id
                assert known.gone_for is not None
                assert known.gone_for > GRACE
                if known.dormant:
                    self.dormant.add(stay.user_id)
        assert not [known for known in self.stays.values() if (known.gone_for or 0.0) > GRACE]

    @rule()
    def purge(self):
        presence_rows.purge_dormant(0.0)
        self.dormant.clear()

    @rule()
    def look_for_departed(self):
        assert presence_rows.note_departed(0) is None

    def _tell(self, what: str, stays: list[Stay]):
        for stay in stays:
            told = self.told[Place(stay.group, stay.user_id)]
            if what == "began":
                assert all(kind == "ended" or id < stay.id for kind, id in told)
                assert not told or told[-1][0] == "ended"
            else:
                assert told[-1] == ("began", stay.id)
            told.append((what, stay.id))

    # -- what must be true -------------------------------------------------------------------------

    @invariant()
    def the_database_agrees(self):
        for group in (ONLINE, *GROUPS):
            expected = {place.user_id: known for place, known in self.stays.items() if place.group == group}
            assert presence_rows.stays(group) == {user: known.id for user, known in expected.items()}
            seen = {user for user, known in expected.items() if (known.gone_for or 0.0) <= GRACE}
            in_order = sorted(seen, key=lambda user: expected[user].id)
            anonymous = sum(Place(group, "") in places for places in self.held.values())
            if group != ONLINE:
                assert presence_rows.read(group, GRACE, 10) == (in_order, len(in_order), anonymous)
        for user in USERS[:2]:
            known = self.stays.get(Place(ONLINE, user))
            online = known is not None and (known.gone_for or 0.0) <= GRACE
            assert presence_rows.is_online(user, GRACE) == online
        rows = PresentUser.objects.users()
        assert set(rows.exclude(left_at=None).values_list("user_id", flat=True)) == self.dormant
        dormant = {place.user_id for place, known in self.stays.items() if known.dormant}
        assert (
            set(rows.exclude(dormant_since=None).values_list("user_id", flat=True)) == dormant | self.dormant
        )


@contextmanager
def _lost_commit():
    """Lose the answer to the commit, although it succeeds."""
    transaction = connection_rows.in_one_transaction

    @contextmanager
    def losing():
        with transaction():
            yield
        raise OperationalError("the server closed the connection unexpectedly")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection_rows, "in_one_transaction", losing)
        yield


@pytest.mark.django_db
def test_presence_agrees_with_a_simple_model():
    quick = settings(
        max_examples=20,
        stateful_step_count=30,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    run(Presence, settings=quick)
