"""An asyncio event loop for a native thread of a process that gevent or eventlet has patched.

asyncio's own loop takes sockets, selectors and threads from the standard library. The patch has replaced them
by others that wait for a hub of greenlets. No hub runs in the thread of this loop. The sockets of this loop
come from `_socket`, the C module below `socket`, which neither library patches. The rest is passed in.
"""

import _socket
import asyncio
import contextlib
import math
import os
import select
import selectors
from collections.abc import Callable, Mapping
from typing import Any

#: The object that `select.poll` returns. Unlike `select.epoll`, it holds nothing in the kernel that a fork
#: would share, and it exists on Linux and on macOS. It is fast enough for the few sockets of this loop.
Poll = Any

# Both libraries leave the constants of `select` in place.
_IN, _OUT = select.POLLIN, select.POLLOUT


class PollSelector(selectors.BaseSelector):
    """`selectors.PollSelector` on a given poll object. The standard one uses the patched `select`."""

    def __init__(self, poll: Poll) -> None:
        self._poll = poll
        self._keys: dict[int, selectors.SelectorKey] = {}

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        fileno = _fileno(fileobj)
        if fileno in self._keys:
            raise KeyError(f"{fileobj!r} is registered already")
        key = self._keys[fileno] = selectors.SelectorKey(fileobj, fileno, events, data)
        wanted = _IN * bool(events & selectors.EVENT_READ) | _OUT * bool(events & selectors.EVENT_WRITE)
        self._poll.register(fileno, wanted)
        return key

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self._keys.pop(_fileno(fileobj))
        self._poll.unregister(key.fd)
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Rounded up. With a time rounded down, the loop would spin for the last part of a millisecond.
        within = None if timeout is None else max(0, math.ceil(timeout * 1000))
        ready = []
        for fileno, happened in self._poll.poll(within):
            # An error or a hang-up wakes the reader and the writer.
            events = selectors.EVENT_READ * bool(happened & ~_OUT) | selectors.EVENT_WRITE * bool(
                happened & ~_IN
            )
            key = self._keys[fileno]
            ready.append((key, events & key.events))
        return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._keys


def _fileno(fileobj: Any) -> int:
    return fileobj if isinstance(fileobj, int) else int(fileobj.fileno())


class NativeLoop(asyncio.SelectorEventLoop):
    """The standard loop on unpatched sockets, threads and selectors, as far as this package needs them.

    Args:
        poll: An object as `select.poll()` makes it.
        start_thread: The original `_thread.start_new_thread`.
    """

    def __init__(self, poll: Poll, start_thread: Callable[[Callable[[], None], tuple[()]], Any]) -> None:
        super().__init__(PollSelector(poll))
        self._start_thread = start_thread

    def _make_self_pipe(self) -> None:
        # As in asyncio, which uses the patched `socket.socketpair`.
        self._ssock, self._csock = _socket.socketpair()
        self._ssock.setblocking(False)
        self._csock.setblocking(False)
        self._internal_fds: int = self._internal_fds + 1
        self._add_reader(self._ssock.fileno(), self._read_from_self)  # type: ignore[attr-defined]

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Call the function in a native thread of its own. The threads of an executor would be greenlets."""
        future = self.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def work() -> None:
            result, error = None, None
            try:
                result = func(*args)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop was closed
                self.call_soon_threadsafe(settle, result, error)

        self._start_thread(work, ())
        return future

    async def getaddrinfo(
        self, host: Any, port: Any, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = await self.run_in_executor(
            None, _socket.getaddrinfo, host, port, family, type, proto, flags
        )
        return found

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | None = None,
        port: int | None = None,
        *,
        ssl: Any = None,
        sock: Any = None,
        server_hostname: str | None = None,
        family: int = 0,
        **options: Any,
    ) -> tuple[Any, Any]:
        """Connect as asyncio does, trying one address after the other."""
        if sock is None:
            sock = await self._connect(host, port, family)
            if ssl and server_hostname is None:
                server_hostname = host
        return await self._adopt(
            sock, super().create_connection, protocol_factory, ssl, server_hostname, options
        )

    async def create_unix_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: Any = None,
        *,
        ssl: Any = None,
        sock: Any = None,
        server_hostname: str | None = None,
        **options: Any,
    ) -> tuple[Any, Any]:
        if sock is None:
            sock = await self._connect_to(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, os.fspath(path))
        return await self._adopt(
            sock, super().create_unix_connection, protocol_factory, ssl, server_hostname, options
        )

    async def _adopt(
        self,
        sock: Any,
        create: Callable[..., Any],
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        ssl: Any,
        server_hostname: str | None,
        options: dict[str, Any],
    ) -> tuple[Any, Any]:
        """Make a transport of a connected socket."""
        try:
            made: tuple[Any, Any] = await create(
                protocol_factory, sock=sock, ssl=ssl, server_hostname=server_hostname, **options
            )
        except BaseException:
            sock.close()
            raise
        return made

    async def _connect(self, host: str | None, port: int | None, family: int) -> _socket.socket:
        errors: list[OSError] = []
        for found in await self.getaddrinfo(host, port, family=family, type=_socket.SOCK_STREAM):
            family, kind, protocol, _, address = found
            try:
                return await self._connect_to(family, kind, protocol, address)
            except OSError as error:
                errors.append(error)
        raise errors[0] if errors else OSError(f"{host!r} has no address")

    async def _connect_to(self, family: int, kind: int, protocol: int, address: Any) -> _socket.socket:
        made = _socket.socket(family, kind, protocol)
        made.setblocking(False)
        try:
            await self.sock_connect(made, address)  # type: ignore[arg-type]
        except BaseException:
            made.close()
            raise
        return made
