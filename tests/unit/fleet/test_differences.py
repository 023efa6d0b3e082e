"""Comparing three snapshots of the same connections: every disagreement is a difference of one kind."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realtime.fleet.differences import (
    Difference,
    Held,
    Kind,
    LayerSnapshot,
    Stored,
    StoredProcess,
    compare,
    joined,
    pages,
)
from realtime.layers.contents import Listeners, StoredMembers

PROCESSES = {
    "p": StoredProcess("specific.p!1", "host:1", True),
    "q": StoredProcess("specific.q!1", "host:2", True),
}
GROUPS = ("g", "h", "i")

Holdings = Mapping[str, Held]


def agreeing(held: Holdings, *, stored_in_layer: bool = True) -> tuple[Stored, list[LayerSnapshot]]:
    """Return a database and a layer that agree with these processes."""
    records = {connection: id for id, each in held.items() for connection in each.connections}
    memberships = {
        (connection, group): id
        for id, each in held.items()
        for connection, groups in each.connections.items()
        for group in groups
    }
    members = frozenset((group, PROCESSES[id].address) for id, each in held.items() for group in each.groups)
    listening = {group: sum(group in each.groups for each in held.values()) for group, _ in members}
    layer = LayerSnapshot("", StoredMembers(members) if stored_in_layer else Listeners(listening))
    return Stored(PROCESSES, records, memberships), [layer]


def holdings() -> st.SearchStrategy[Holdings]:
    some_groups = st.frozensets(st.sampled_from(GROUPS))

    def of(id: str) -> st.SearchStrategy[Held]:
        connections = st.sampled_from([f"{id}{number}" for number in range(4)])
        return st.dictionaries(connections, some_groups, max_size=4).map(Held)

    return st.fixed_dictionaries({id: of(id) for id in PROCESSES})


@settings(deadline=None)
@given(holdings(), st.booleans())
def test_agreement_is_no_difference(held: Holdings, stored_in_layer: bool) -> None:
    stored, layers = agreeing(held, stored_in_layer=stored_in_layer)
    assert compare(stored, layers, held) == set()


@settings(deadline=None)
@given(holdings(), st.booleans(), st.data())
def test_only_the_one_thing_that_is_missing_is_found(
    held: Holdings, stored_in_layer: bool, data: st.DataObject
) -> None:
    stored, layers = agreeing(held, stored_in_layer=stored_in_layer)
    (layer,) = layers
    choices: list[tuple[str, object]] = [("record", each) for each in sorted(stored.records)]
    choices += [("row", each) for each in sorted(stored.memberships)]
    choices += [("socket", each) for each in sorted(stored.records)]
    choices += [("member", each) for each in sorted(stored.memberships)]
    if isinstance(layer.contents, StoredMembers):
        choices += [("layer", each) for each in sorted(layer.contents.pairs)]
    else:
        choices += [("listener", each) for each in sorted(layer.contents.counts)]
    if not choices:
        return
    what, which = data.draw(st.sampled_from(choices))
    if what == "record":
        id = stored.records[which]  # type: ignore[index]
        stored = replace(stored, records=without(stored.records, which))
        expected = {Difference(Kind.SOCKET_WITHOUT_RECORD, id, PROCESSES[id].address, str(which))}
    elif what == "row":
        id = stored.memberships[which]  # type: ignore[index]
        stored = replace(stored, memberships=without(stored.memberships, which))
        connection, group = which  # type: ignore[misc]
        address = PROCESSES[id].address
        expected = {Difference(Kind.MEMBER_WITHOUT_ROW, id, address, connection, group)}
    elif what == "socket":
        id = stored.records[which]  # type: ignore[index]
        groups = held[id].connections[str(which)]
        held = {**held, id: Held(without(held[id].connections, which))}
        address = PROCESSES[id].address
        expected = {Difference(Kind.RECORD_WITHOUT_SOCKET, id, address, str(which))} | {
            Difference(Kind.ROW_WITHOUT_MEMBER, id, address, str(which), group) for group in groups
        }
        expected |= too_many_listeners(layer, held)
    elif what == "member":
        id = stored.memberships[which]  # type: ignore[index]
        connection, group = which  # type: ignore[misc]
        mine = held[id].connections
        held = {**held, id: Held({**mine, connection: mine[connection] - {group}})}
        expected = {Difference(Kind.ROW_WITHOUT_MEMBER, id, PROCESSES[id].address, connection, group)}
        expected |= too_many_listeners(layer, held)
    elif what == "layer":
        group, address = which  # type: ignore[misc]
        assert isinstance(layer.contents, StoredMembers)
        layer = replace(layer, contents=StoredMembers(layer.contents.pairs - {which}))
        id = next(id for id, process in PROCESSES.items() if process.address == address)
        expected = {Difference(Kind.NOT_IN_LAYER, id, address, group=group)}
    else:
        assert isinstance(layer.contents, Listeners)
        counts = layer.contents.counts
        layer = replace(layer, contents=Listeners({**counts, str(which): counts[str(which)] - 1}))
        expected = {
            Difference(Kind.NOT_IN_LAYER, id, PROCESSES[id].address, group=str(which))
            for id, each in held.items()
            if which in each.groups
        }
    assert compare(stored, [layer], held) == expected


def without(mapping: Mapping, key: object) -> dict:  # type: ignore[type-arg]
    return {each: value for each, value in mapping.items() if each != key}


def too_many_listeners(layer: LayerSnapshot, held: Holdings) -> set[Difference]:
    """Return the surplus listeners of a layer that only counts: processes that lost their last member."""
    if isinstance(layer.contents, StoredMembers):
        return set()
    return {
        Difference(Kind.UNKNOWN_LISTENER, group=group)
        for group, number in layer.contents.counts.items()
        if number > sum(group in each.groups for each in held.values())
    }


@settings(deadline=None)
@given(holdings())
def test_a_silent_process_is_the_only_difference(held: Holdings) -> None:
    stored, layers = agreeing(held)
    spoke = {"p": held["p"]}
    assert compare(stored, layers, spoke) == {Difference(Kind.PROCESS_SILENT, "q", "specific.q!1")}


@settings(deadline=None)
@given(holdings())
def test_everything_an_ended_process_left_is_a_difference(held: Holdings) -> None:
    stored, layers = agreeing(held)
    ended = replace(stored, processes={**PROCESSES, "q": replace(PROCESSES["q"], running=False)})
    found = compare(ended, layers, {"p": held["p"]})
    assert {each.connection for each in found if each.kind is Kind.RECORD_OF_ENDED_PROCESS} == set(
        held["q"].connections
    )
    left = {(c, group) for c, groups in held["q"].connections.items() for group in groups}
    assert {(each.connection, each.group) for each in found} - {
        (connection, "") for connection in held["q"].connections
    } == left
    assert all(each.process == "q" for each in found)


@pytest.mark.parametrize("running", [True, False])
def test_a_membership_only_in_the_layer_is_a_difference(running: bool) -> None:
    processes = {"p": StoredProcess("specific.p!1", "host:1", running)}
    layer = LayerSnapshot("", StoredMembers(frozenset({("g", "specific.p!1")})))
    found = compare(Stored(processes, {}, {}), [layer], {"p": Held()} if running else {})
    assert found == {Difference(Kind.ONLY_IN_LAYER, "p", "specific.p!1", group="g")}


def test_a_channel_of_no_known_process_is_named() -> None:
    layer = LayerSnapshot("", StoredMembers(frozenset({("g", "specific.x!1")})))
    found = compare(Stored(PROCESSES, {}, {}), [layer], {"p": Held(), "q": Held()})
    assert found == {Difference(Kind.UNKNOWN_CHANNEL, address="specific.x!1", group="g")}
    assert not Kind.UNKNOWN_CHANNEL.repairable


def test_a_channel_of_a_consumer_is_no_difference() -> None:
    layer = LayerSnapshot("", StoredMembers(frozenset({("g", "specific.p!2")})))
    assert not compare(Stored(PROCESSES, {}, {}), [layer], {"p": Held(), "q": Held()})


def test_a_process_is_compared_with_its_own_layer_only() -> None:
    processes = {"p": StoredProcess("other:specific.p!1", "host:1", True)}
    held = {"p": Held({"c": frozenset({"g"})})}
    stored = Stored(processes, {"c": "p"}, {("c", "g"): "p"})
    nothing = StoredMembers(frozenset())
    here, other = (
        LayerSnapshot("", nothing),
        LayerSnapshot("other", StoredMembers(frozenset({("g", "other:specific.p!1")}))),
    )
    assert compare(stored, [here, other], held) == set()
    found = compare(stored, [here, replace(other, contents=nothing)], held)
    assert {each.kind for each in found} == {Kind.NOT_IN_LAYER}


def test_a_silent_process_may_be_the_unknown_listener() -> None:
    layer = LayerSnapshot("", Listeners({"g": 1}))
    assert compare(Stored(PROCESSES, {}, {}), [layer], {"p": Held(), "q": Held()}) == {
        Difference(Kind.UNKNOWN_LISTENER, group="g")
    }
    found = compare(Stored(PROCESSES, {}, {}), [layer], {"p": Held()})
    assert {each.kind for each in found} == {Kind.PROCESS_SILENT}


@settings(deadline=None)
@given(
    st.dictionaries(st.text(min_size=1), st.frozensets(st.text(), max_size=20), max_size=20),
    st.integers(min_value=2, max_value=30),
)
def test_pages_can_be_put_together_again(connections: dict[str, frozenset[str]], size: int) -> None:
    parts = list(pages(((id, sorted(groups)) for id, groups in connections.items()), size))
    assert parts
    assert all(sum(1 + len(groups) for _, groups in page) <= size for page in parts)
    assert joined(entry for page in reversed(parts) for entry in page) == Held(connections)


def test_every_kind_has_a_label_of_its_own() -> None:
    assert len({kind.label for kind in Kind}) == len(Kind)
