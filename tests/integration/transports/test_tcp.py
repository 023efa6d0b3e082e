"""The state of a TCP connection, as the kernel of this machine reports it."""

import socket
import sys
from collections.abc import Iterator

import pytest

from realtime.transports import tcp
from tests.support.assertions.eventually import eventually

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports it")

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Two ends of a connection. The kernel of the second holds few unread bytes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with socket.create_connection(listener.getsockname()) as ours:
            theirs, _ = listener.accept()
            with theirs:
                ours.setblocking(False)
                yield ours, theirs


def look(connection: socket.socket) -> tcp.Line:
    line = tcp.look(connection)
    assert line is not None
    return line


def fill(connection: socket.socket) -> int:
    """Write until the kernel takes no more. Return the number of bytes that it took."""
    written = 0
    try:
        while True:
            written += connection.send(bytes(65536))
    except BlockingIOError:
        return written


def test_bytes_that_arrive_are_acknowledged(pair: Pair) -> None:
    ours, _ = pair
    before = look(ours).acknowledged
    ours.send(bytes(100))
    eventually(lambda: look(ours).waiting == 0, within=5)
    assert look(ours).acknowledged == before + 100


def test_bytes_wait_if_the_peer_has_no_room(pair: Pair) -> None:
    ours, _ = pair
    before, written = look(ours).acknowledged, fill(ours)
    eventually(lambda: look(ours).window == 0, within=5)
    line = look(ours)
    assert line.waiting > 0
    assert line.waiting + line.acknowledged - before == written


def test_a_peer_that_reads_makes_room(pair: Pair) -> None:
    ours, theirs = pair
    fill(ours)
    eventually(lambda: look(ours).window == 0, within=5)
    before = look(ours)
    for _ in range(64):
        theirs.recv(4096)
    eventually(
        lambda: look(ours).acknowledged + look(ours).window > before.acknowledged + before.window, within=5
    )


def test_nothing_is_known_of_other_objects_than_tcp_sockets() -> None:
    closed = socket.socket()
    closed.close()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert tcp.look(ours) is None, "a unix socket"
    assert tcp.look(closed) is None
    assert tcp.look(object()) is None
