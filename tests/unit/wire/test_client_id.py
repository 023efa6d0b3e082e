"""The id of a client in the query string of its URL."""

import pytest

from realtime.wire import client_id

ID = "a1B2-c3._"


@pytest.mark.parametrize("query", [b"", b"other=1", b"clients=12345678", b"client", b"Client=12345678"])
def test_a_query_string_without_the_parameter_has_no_id(query: bytes) -> None:
    assert client_id.find(query, "client" if query != b"client" else "id") == ""


@pytest.mark.parametrize(
    "query", [f"client={ID}", f"a=b&client={ID}&c=d", f"%63lient={ID}", "client=a1B2%2Dc3._"]
)
def test_the_id_is_found(query: str) -> None:
    assert client_id.find(query.encode(), "client") == ID


def test_the_parameter_has_the_name_that_the_consumer_gives_it() -> None:
    assert client_id.find(b"client=ffffffff&device=eeeeeeee", "device") == "eeeeeeee"


@pytest.mark.parametrize("value", ["x" * 8, "x" * 64])
def test_the_shortest_and_the_longest_id_are_taken(value: str) -> None:
    assert client_id.find(f"client={value}".encode(), "client") == value


@pytest.mark.parametrize(
    "value",
    ["", "x" * 7, "x" * 65, "1234567 8", "1234567%00", "12345678%0A", "%C3%A4" * 8, "\xe4" * 8, "a/bcdefgh"],
)
def test_a_malformed_id_is_refused_and_not_repeated_in_the_text(value: str) -> None:
    with pytest.raises(ValueError, match="The query parameter client is not 8 to 64") as caught:
        client_id.find(f"client={value}".encode("latin-1"), "client")
    assert not value or value not in str(caught.value)


def test_two_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="occurs 2 times"):
        client_id.find(b"client=12345678&client=12345678", "client")
