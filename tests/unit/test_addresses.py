"""The address of a client behind proxies, and the network that counts as one client."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realtime import addresses
from realtime.addresses import UNIX

PROXIES = ("10.0.0.0/8", "2001:db8:ffff::/48")
ips = st.ip_addresses().map(str)
headers = st.lists(ips | st.text(max_size=20), max_size=30).map(", ".join)


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "found"),
    [
        ("203.0.113.7", "198.51.100.1", PROXIES, "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1", (), "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1", PROXIES, "198.51.100.1"),
        ("10.0.0.1", "", PROXIES, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.7", PROXIES, "203.0.113.7"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.7, 10.0.0.2", PROXIES, "203.0.113.7"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.2", PROXIES, "10.0.0.3"),
        ("10.0.0.1", "198.51.100.1, unknown", PROXIES, "10.0.0.1"),
        ("10.0.0.1", "198.51.100.1, unknown, 10.0.0.2", PROXIES, "10.0.0.2"),
        ("10.0.0.1", "203.0.113.7:5555", PROXIES, "203.0.113.7"),
        ("10.0.0.1", "[2001:db8::7]:5555", PROXIES, "2001:db8::7"),
        ("::ffff:10.0.0.1", "203.0.113.7", PROXIES, "203.0.113.7"),
        ("2001:db8:ffff::1", "2001:db8::7", PROXIES, "2001:db8::7"),
        ("", "203.0.113.7", (UNIX,), "203.0.113.7"),
        ("", "203.0.113.7", PROXIES, ""),
    ],
    ids=[
        "a stranger names another",
        "no proxy is trusted",
        "a proxy names its client",
        "a proxy names no client",
        "a client forged the header",
        "two proxies",
        "the client is a proxy itself",
        "a word that is no address",
        "such a word before another proxy",
        "with a port",
        "IPv6 with a port",
        "a mapped address",
        "IPv6",
        "a Unix socket",
        "a Unix socket that is not trusted",
    ],
)
def test_only_what_trusted_proxies_appended_is_believed(
    peer: str, forwarded: str, trusted: tuple[str, ...], found: str
) -> None:
    assert addresses.client(peer, forwarded, trusted) == found


@given(peer=ips, forwarded=headers)
def test_a_stranger_cannot_choose_its_address(peer: str, forwarded: str) -> None:
    found = addresses.client(peer, forwarded, PROXIES)
    if not addresses.matches(peer, PROXIES):
        assert found == peer


@given(forged=headers, client=ips)
def test_a_client_behind_a_proxy_cannot_choose_its_address(forged: str, client: str) -> None:
    found = addresses.client("10.0.0.1", f"{forged}, {client}", PROXIES)
    if not addresses.matches(client, PROXIES):
        assert found == str(addresses.address(client))


@given(forwarded=st.text() | headers, peer=st.text(max_size=50) | ips)
def test_no_header_raises(peer: str, forwarded: str) -> None:
    addresses.client(peer, forwarded, (*PROXIES, UNIX))
    addresses.network(peer, 32, 64)
    addresses.matches(peer, PROXIES)


@pytest.mark.parametrize(
    ("text", "ipv4", "ipv6", "network"),
    [
        ("203.0.113.77", 32, 64, "203.0.113.77"),
        ("203.0.113.77", 24, 48, "203.0.113.0"),
        ("::ffff:203.0.113.77", 24, 48, "203.0.113.0"),
        ("2001:db8:1:2:3::4", 32, 64, "2001:db8:1:2::"),
        ("2001:db8:1:2:3::4", 24, 48, "2001:db8:1::"),
        ("fe80::1%eth0", 32, 64, "fe80::"),
        ("[2001:db8:1:2:3::4]:80", 32, 64, "2001:db8:1:2::"),
        ("/run/server.sock", 32, 64, ""),
        ("", 32, 64, ""),
    ],
)
def test_the_network_of_an_address(text: str, ipv4: int, ipv6: int, network: str) -> None:
    assert addresses.network(text, ipv4, ipv6) == network


@given(address=st.ip_addresses(v=6), other=st.integers(0, 2**64 - 1))
def test_all_addresses_of_a_network_have_one_name(address: ipaddress.IPv6Address, other: int) -> None:
    if address.ipv4_mapped is None:
        first = int(address) >> 64 << 64
        neighbour = ipaddress.IPv6Address(first | other)
        if neighbour.ipv4_mapped is None:
            assert addresses.network(str(address), 32, 64) == addresses.network(str(neighbour), 32, 64)


@pytest.mark.parametrize(
    ("text", "words", "is_right"),
    [
        ("10.0.0.0/8", (), True),
        ("2001:db8::/32", (), True),
        ("203.0.113.7", (), True),
        (UNIX, (UNIX,), True),
        (UNIX, (), False),
        ("10.0.0.1/8", (), False),
        ("example.com", (), False),
    ],
)
def test_an_entry_of_a_setting_is_an_address_or_a_network(
    text: str, words: tuple[str, ...], is_right: bool
) -> None:
    assert (addresses.problem(text, words) is None) is is_right
