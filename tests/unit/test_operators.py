"""The rule that makes a request one of an operator, without requests."""

import ipaddress
import logging
from typing import Any

import pytest
from daphne.utils import parse_x_forwarded_for
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from realtime.addresses import reduced
from realtime.conf import Settings
from realtime.operators import Refusals, is_operator

OPERATORS = Settings().OPERATORS
PROXY = "10.0.0.1"
TRUSTED = ("10.0.0.0/24",)
STRANGER = "203.0.113.9"

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
#: What a client may put into a header that a proxy appends to.
sent = st.lists(st.one_of(addresses, st.sampled_from(["127.0.0.1", "::1", PROXY, "unix", ""]), st.text()))


@pytest.mark.parametrize(
    ("peer", "trusted", "operators", "is_one"),
    [
        ("127.0.0.1", (), OPERATORS, True),
        ("::1", (), OPERATORS, True),
        ("::ffff:127.0.0.1", (), OPERATORS, True),
        ("127.0.0.53", (), OPERATORS, True),
        (PROXY, TRUSTED, OPERATORS, True),
        (f"::ffff:{PROXY}", TRUSTED, OPERATORS, True),
        (PROXY, TRUSTED, ("127.0.0.1",), False),
        (PROXY, (), OPERATORS, False),
        (STRANGER, TRUSTED, OPERATORS, False),
        (f"::ffff:{STRANGER}", TRUSTED, OPERATORS, False),
        ("2001:db8::7", (), ("2001:db8::/32",), True),
        ("2001:db9::7", (), ("2001:db8::/32",), False),
        ("", (), OPERATORS, False),
        ("", (), ("unix",), True),
        ("", ("unix",), OPERATORS, True),
        ("", ("unix",), ("127.0.0.1",), False),
        ("testclient", (), OPERATORS, False),
        ("127.0.0.1", (), (), False),
    ],
)
def test_a_request_that_nothing_forwarded_is_its_peers(
    peer: str, trusted: tuple[str, ...], operators: tuple[str, ...], is_one: bool
) -> None:
    assert is_operator(peer, None, trusted, operators) is is_one


@pytest.mark.parametrize(
    ("forwarded", "operators", "is_one"),
    [
        ("192.0.2.7", ("192.0.2.0/24",), True),
        ("192.0.2.7:51000", ("192.0.2.0/24",), True),
        ("[2001:db8::7]:51000", ("2001:db8::/32",), True),
        ("192.0.2.7, 10.0.0.2", ("192.0.2.0/24",), True),
        (f"192.0.2.7, {STRANGER}", ("192.0.2.0/24",), False),
        ("127.0.0.1", ("127.0.0.0/8",), True),
        (STRANGER, OPERATORS, False),
        # A proxy that forwards for a proxy: neither asked for itself.
        ("10.0.0.2", OPERATORS, False),
        # The proxy has named nothing that is an address.
        ("", OPERATORS, False),
        ("", ("10.0.0.0/24",), False),
        ("unknown", ("10.0.0.0/24",), False),
        ("unix", ("unix",), False),
        ("127.0.0.1, unknown", OPERATORS, False),
    ],
)
def test_a_forwarded_request_is_that_of_the_named_client(
    forwarded: str, operators: tuple[str, ...], is_one: bool
) -> None:
    assert is_operator(PROXY, forwarded, TRUSTED, operators) is is_one


@given(sent, addresses)
def test_no_header_of_a_client_makes_it_an_operator(before: list[str], client: str) -> None:
    if ipaddress.ip_address(client).is_loopback or client.startswith(("10.0.0.", "::ffff:")):
        return
    # Its proxy appends the address that it was called from to all that a client sends.
    assert not is_operator(PROXY, ",".join([*before, client]), TRUSTED, OPERATORS)


@given(sent, st.sampled_from(["127.0.0.1", "::1", "", STRANGER]))
def test_an_undeclared_proxy_makes_no_operators(before: list[str], peer: str) -> None:
    assert not is_operator(peer, ",".join(before), (), (*OPERATORS, "unix"))


def test_many_refusals_are_few_lines(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    refusals = Refusals(silent_for=60.0, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, logger="realtime.views"):
        for _ in range(100):
            refusals.note("/metrics", STRANGER, False)
        now[0] = 60.0
        refusals.note("/health/ready", STRANGER, True)

    assert [record.getMessage() for record in caplog.records] == [
        f'Refused /metrics to {STRANGER}: it is not in REALTIME["OPERATORS"]',
        f'Refused /health/ready to {STRANGER}: it is not in REALTIME["OPERATORS"], or came through a proxy '
        'that is not in REALTIME["TRUSTED_PROXIES"] (99 more since the last such line)',
    ]


@given(st.one_of(addresses, sent.map(",".join)), st.sampled_from(["full", "network", "none"]))
def test_an_address_that_was_reduced_stays_as_it_is(text: str, details: str) -> None:
    once = reduced(text, details)

    assert reduced(once, details) == once
    assert reduced(once, "none") == ""
    if details == "network":
        assert once == "" or int(ipaddress.ip_address(once)) % 256 == 0


async def test_uvicorns_option_hides_the_proxy_from_us() -> None:
    """The table of docs/howto/behind-a-proxy.md: uvicorn's `--proxy-headers`, which is on by default."""
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    forwarded = f"127.0.0.1, {STRANGER}"
    scope: Any = {
        "type": "http",
        "client": ("127.0.0.1", 1),
        "headers": [(b"x-forwarded-for", forwarded.encode())],
    }
    await ProxyHeadersMiddleware(application)(scope, None, None)  # type: ignore[arg-type]

    # The address is right, and a forwarded request comes from a host that is no trusted proxy.
    assert seen[0]["client"] == (STRANGER, 0)
    assert not is_operator(STRANGER, forwarded, ("127.0.0.1",), (STRANGER,))


def test_daphnes_option_believes_any_client() -> None:
    """The table of docs/howto/behind-a-proxy.md: Daphne's `--proxy-headers`."""
    sent_by_a_client = {b"X-Forwarded-For": f"127.0.0.1, {STRANGER}".encode()}

    assert parse_x_forwarded_for(sent_by_a_client, original_addr=[PROXY, 1])[0] == ["127.0.0.1", 0]
    # At least it makes no operators.
    assert not is_operator("127.0.0.1", f"127.0.0.1, {STRANGER}", (), OPERATORS)
