"""The verdict over a connection, from what its handshake knew of the user and what is found now."""

from django.contrib.auth.models import User
from hypothesis import given
from hypothesis import strategies as st

from realtime.closing import CloseReason
from realtime.hub.rights import _batches, _verdict
from realtime.rights import users
from realtime.rights.authorization import Authorization, digest
from realtime.rights.users import Known, Standing

passwords = st.integers(0, 3)
known = st.builds(
    Known,
    password=st.none() | passwords,
    is_active=st.none() | st.booleans(),
    flags=st.none() | st.integers(0, 1),
)
found = st.builds(
    Standing,
    password=passwords,
    is_active=st.booleans(),
    flags=st.integers(0, 1),
    permissions=st.integers(0, 1),
)


@given(st.none() | known)
def test_a_user_without_a_row_is_forbidden(known: Known | None) -> None:
    assert _verdict(known, None) is CloseReason.FORBIDDEN


@given(known, found)
def test_only_a_lost_activity_or_another_password_ends(known: Known, found: Standing) -> None:
    reason = _verdict(known, found)
    if known.is_active and not found.is_active:
        assert reason is CloseReason.FORBIDDEN
    elif known.password is not None and known.password != found.password:
        assert reason is CloseReason.NOT_AUTHENTICATED
    else:
        assert reason is None


@given(st.lists(st.integers(), max_size=30), st.integers(1, 7))
def test_batches_have_everything_once_in_order(items: list[int], size: int) -> None:
    batches = list(_batches(items, size))
    assert [each for batch in batches for each in batch] == items
    assert all(0 < len(batch) <= size for batch in batches)


@given(st.text(min_size=8, max_size=40))
def test_neither_digest_nor_repr_has_the_key_of_a_session(key: str) -> None:
    assert key not in digest(key)
    assert key not in repr(Authorization(user_id="", session=key))


def test_a_user_without_a_row_is_not_read() -> None:
    # Some middlewares make an object for a user that another service knows.
    made, read = User(pk=7), User(pk=7)
    read._state.adding = False
    assert [users.readable(each) for each in (made, read, object())] == [False, True, False]
