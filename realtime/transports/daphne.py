"""A faster transport on Daphne, which uses autobahn's and Twisted's objects of the connection.

Behind Daphne's ASGI `send` is autobahn's protocol of the connection, and behind that Twisted's transport with
the socket. If exactly these are found, a transport

- sees that the protocol is closed, which Daphne's `send` ignores silently;
- knows how much is buffered, for which Daphne has no limit;
- sends pings and sees pongs;
- aborts a connection, instead of waiting for ever until a dead peer has read the rest;
- writes directly to the socket if nothing is queued before, which costs a quarter of the way through
  Twisted's reactor.

Correctness does not depend on this module. When a connection opens, everything that is used beyond public
names is checked. If anything is unknown, the connection gets an `AsgiTransport`. TLS counts as unknown.
"""

import asyncio
import functools
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from realtime.closing import CloseReason
from realtime.transports.aborting import AbortingTransport
from realtime.transports.asgi import Event, Options, Ping, Send, Shared, Watcher
from realtime.transports.inflow import Inflow, Rest, Turn
from realtime.wire import frames, rfc6455

logger = logging.getLogger("realtime.transports")

#: If more bytes than this are buffered in this process, a handler that sends must wait.
HIGH_WATER = 64 * 1024
#: Seconds between two checks of a handler that waits.
LOOK_INTERVAL = 0.01

#: Twisted's transports that are a plain stream socket, without TLS.
_PLAIN = {("twisted.internet.tcp", "Server"), ("twisted.internet.unix", "Server")}


class OnDaphne(AbortingTransport):
    """The base of the transports on Daphne: the abilities that do not depend on the way of messages.

    Args:
        send: The ASGI `send` of the connection.
        protocol: Autobahn's protocol of the connection, as `is_usable` wants it.
        options: The limits of the transport.
        watcher: The owner, told about failures, pongs and bytes that wait.
    """

    __slots__ = ("_allowed", "_inflow", "_parse", "_protocol", "_ready", "_send_now", "_twisted")

    def __init__(
        self,
        send: Send,
        protocol: Any,
        options: Options,
        watcher: Watcher,
    ) -> None:
        super().__init__(send, options, watcher)
        self._protocol = protocol
        self._twisted = protocol.transport
        self._parse: Callable[[bytes], object] | None = None
        """Autobahn's method that takes what was read; None if reads do not come here."""
        self._inflow: Inflow | None = None
        """What the client sends, made with its first frame that is no pong."""
        self._send_now = protocol.transport.socket.send
        self._allowed = options.max_unsent
        self._ready = False
        """True if frames made here may be written: from the handshake to the end of the connection."""

    @property
    def can_ping(self) -> bool:
        return True

    def _buffered(self) -> int:
        twisted, chopped = self._twisted, self._protocol.send_queue
        waiting: int = len(twisted.dataBuffer) - twisted.offset + twisted._tempDataLen
        return waiting + sum(len(data) for data, _ in chopped) if chopped else waiting

    async def accept(self, event: Event, first: Event | None = None) -> None:
        """Complete the handshake as on any server, with the protocol's pongs and close frames led here."""
        if not self.closed:
            # Before the handshake is answered, because a close frame may already wait to be read.
            self._listen()
        await super().accept(event, first)

    def _opened(self) -> None:
        # Daphne negotiates no compression. If it did, the client could not read frames made here.
        self._ready = not self.closed and self._protocol._perMessageCompress is None
        if self._ready and _reads_as_known(self._protocol):
            self._listen_to_reads()

    def _listen(self) -> None:
        self._protocol.onPong = self._ponged
        self._protocol.onCloseFrame = functools.partial(self._peer_closes, self._protocol.onCloseFrame)

    def _listen_to_reads(self) -> None:
        self._parse = self._protocol.dataReceived
        self._protocol.dataReceived = self._received

    def _stop_listening(self) -> None:
        # These refer to this transport, which refers to the protocol.
        for name in ("onPong", "onCloseFrame"):
            vars(self._protocol).pop(name, None)
        self._stop_reads()

    # -- writing -----------------------------------------------------------------------------------

    def _write(self, wire: bytes) -> None:
        """Write frames, in order with all frames that are sent on this connection."""
        protocol, twisted = self._protocol, self._twisted
        if protocol.state != protocol.STATE_OPEN:
            # After the peer's own close frame nothing may be sent. Daphne reports that end.
            if not protocol.wasClean:
                self._fail(CloseReason.SEND_FAILED, None)
            return
        if twisted._tempDataLen or twisted.dataBuffer or protocol.send_queue:
            protocol.sendData(wire)
            self._watcher.is_behind()
            if self._buffered() > self._allowed:
                self._fail(CloseReason.SLOW_CONSUMER, None)
            return
        try:
            sent = self._send_now(wire)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(CloseReason.SEND_FAILED, error)
            return
        if sent < len(wire):
            rest = wire[sent:]
            # A client that reads may be sent a message above the cap.
            self._allowed = self._options.max_unsent + len(rest)
            twisted.write(rest)
            self._watcher.is_behind()

    async def drained(self) -> None:
        """Wait until at most `HIGH_WATER` bytes are buffered.

        The buffer is polled. A producer, which Twisted would notify, would keep a closed connection open
        until it is unregistered.
        """
        await super().drained()
        while self._ready and self._buffered() > HIGH_WATER:  # noqa: ASYNC110 - Twisted has no such event
            await asyncio.sleep(LOOK_INTERVAL)

    # -- reading -----------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        # Daphne itself reads all the time, and has no limit for what waits to be received.
        self._twisted.pauseProducing()

    def resume_reading(self) -> None:
        self._twisted.resumeProducing()

    def stop_reading(self) -> bool:
        self.pause_reading()
        return super().stop_reading()

    @property
    def counts_frames(self) -> bool:
        return self._parse is not None

    @property
    def is_busy(self) -> bool:
        """True if frames of the client are at its handlers, or wait for them."""
        return self._watcher.is_busy

    def arrived(self, frames: int, size: int, waiting: int) -> Turn:
        """Ask the owner when frames that were read are parsed."""
        return self._watcher.arrived(frames, size, waiting)

    def parse(self, data: bytes) -> object:
        """Have autobahn parse what was read."""
        return self._parse(data) if self._parse is not None else None

    def _read_after_close(self, parse: Callable[[bytes], object], rest: Rest, data: bytes) -> object:
        """Have autobahn parse what a client still sends after it was closed, up to a limit."""
        if rest.takes(data):
            return parse(data)
        return self.stop_reading()

    # -- ending ------------------------------------------------------------------------------------

    def close(self, event: Event, goodbye: Event | None = None) -> None:
        """Close as on any known server, without autobahn's own timer."""
        # Disable autobahn's own timer of 1 s. If it takes longer to close many connections, Twisted fires the
        # timer before the close frames are written, and clients get a RST. `_cut_off_later` replaces it.
        self._protocol.closeHandshakeTimeout = 0
        parse, inflow, was_closed = self._parse, self._inflow, self.closed
        held = inflow.close() if inflow is not None and not was_closed else b""
        super().close(event, goodbye)
        if parse is None or was_closed or self._is_over():
            return
        if event.get("code") == CloseReason.RATE_LIMITED.code:
            self.stop_reading()
            return
        # A client that goes on sending instead of closing must not keep this process busy until CLOSE_LIMIT.
        self._stop_reads()
        read_on = functools.partial(self._read_after_close, parse, Rest())
        self._protocol.dataReceived = read_on
        if inflow is not None:
            # Reading may have been paused. Behind what waits may be the client's close frame.
            self.resume_reading()
            read_on(held)

    def abandon(self) -> None:
        """Drop everything that waits, and remove the callbacks of this transport from the protocol."""
        super().abandon()
        self._ready = False
        self._stop_listening()

    def _ended(self) -> None:
        self._stop_reads()

    def _stop_reads(self) -> None:
        vars(self._protocol).pop("dataReceived", None)
        if self._inflow is not None:
            self._inflow.close()
        self._parse = self._inflow = None

    def abort(self) -> None:
        self._twisted.abortConnection()

    def _socket(self) -> Any:
        # Twisted deletes the attribute when the connection has ended.
        return getattr(self._twisted, "socket", None)

    def _is_over(self) -> bool:
        return bool(self._twisted.disconnected)

    def _end_seen(self, reported: int | None = None) -> CloseReason | None:
        # If a client breaks the protocol, autobahn drops it without a close frame and reports a broken
        # transport.
        protocol = self._protocol
        if not protocol.failedByMe:
            return None
        large = protocol.wasMaxMessagePayloadSizeExceeded or protocol.wasMaxFramePayloadSizeExceeded
        return CloseReason.TOO_LARGE if large else CloseReason.PROTOCOL_ERROR

    # -- what autobahn and Twisted call ------------------------------------------------------------

    def _received(self, data: bytes) -> object:
        """Handle a read that is exactly one pong, as nearly every read is. All others are parsed in turn.

        Autobahn, Daphne and the queue behind them take 30 microseconds for a pong. This method takes two.
        """
        protocol, inflow = self._protocol, self._inflow
        if (
            len(data) <= rfc6455.LONGEST_SHORT
            # No part of a frame was read before.
            and (inflow is None or not inflow.waiting)
            and not protocol.data
            and protocol.current_frame is None
            and protocol.state == protocol.STATE_OPEN
            and (frame := rfc6455.short_frame(data)) is not None
            and self._is_pong(*frame)
        ):
            return None
        if protocol.state != protocol.STATE_OPEN:
            return self.parse(data)
        if inflow is None:
            inflow = self._inflow = Inflow(self, self._options.rest)
            inflow.began(protocol.data)
        inflow.received(data)
        return None

    def _is_pong(self, opcode: int, payload: bytes) -> bool:
        """Handle a pong of either kind. Return False for any other frame."""
        if opcode == rfc6455.TEXT and not self._protocol.inside_message:
            n = frames.pong_number(payload)
            if n is None or not self._watcher.ponged(n, v1=True):
                return False
            # Daphne sends pings of its own to clients that have sent it no message for a while.
            self._protocol.last_ping = time.time()
            return True
        if opcode != rfc6455.PONG or not rfc6455.is_number(payload):
            return False
        return self._watcher.ponged(int(payload), v1=False)

    def _ponged(self, payload: bytes) -> None:
        # It answers a ping of ours or of Daphne's, or none.
        if rfc6455.is_number(payload):
            self._watcher.ponged(int(payload), v1=False)

    def _peer_closes(self, answer: Callable[..., object], code: object, reason: object) -> object:
        """Let autobahn answer the peer's close frame. It then waits until the peer has read everything."""
        done = answer(code, reason)
        # A client that reads is done in a moment. One that does not read would keep the connection for ever.
        self._cut_off_later(self._options.close_limit)
        return done


class DaphneTransport(OnDaphne):
    """A transport that writes directly to the socket while nothing is queued, otherwise behind the queue."""

    __slots__ = ("_held", "_largest")

    def __init__(
        self,
        send: Send,
        protocol: Any,
        options: Options,
        watcher: Watcher,
    ) -> None:
        super().__init__(send, protocol, options, watcher)
        # Daphne's own limit holds in both directions. A larger message goes to Daphne, which refuses it.
        self._largest: int = protocol.maxMessagePayloadSize or sys.maxsize
        self._held: bytes | None = None
        """The frames that are kept back since `hold`; None if frames are not kept back."""

    def hold(self) -> None:
        """Keep frames back until `release`, up to `HIGH_WATER` bytes of them."""
        if self._held is None:
            self._held = b""

    def release(self) -> None:
        """Write the frames that were kept back."""
        self._write_held()
        self._held = None

    def _write_held(self) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._write(held)

    def write(self, event: Event, size: int) -> None:
        """Write the message as a frame made here. Before the handshake, or behind a queue, use ASGI."""
        text, data = event.get("text"), event.get("bytes")
        # Other events, and lone surrogates, go to Daphne, which refuses them.
        with suppress(UnicodeEncodeError):
            if isinstance(text, str) and text and not data:
                return self._write_frame(rfc6455.TEXT, text.encode(), event, size)
            if isinstance(data, bytes) and data and not text:
                return self._write_frame(rfc6455.BINARY, data, event, size)
        self._write_held()
        return super().write(event, size)

    def _write_frame(self, opcode: int, payload: bytes, event: Event, size: int) -> None:
        if self._ready and not self._queue and len(payload) <= self._largest:
            wire = rfc6455.frame(opcode, payload)
            if self._held is None:
                self._write(wire)
                return
            self._held += wire
            if len(self._held) > HIGH_WATER:
                self._write_held()
        else:
            self._write_held()
            super().write(event, size)

    def write_shared(self, shared: Shared) -> None:
        """Write the frames of all messages together. Before the handshake, or behind a queue, use `write`."""
        self._write_held()
        if self._ready and not self._queue and shared.size <= self._largest:
            self._write(shared.wire)
        else:
            super().write_shared(shared)

    def ping(self, ping: Ping) -> None:
        """Send a ping of either kind. Before the handshake, a ping of RFC 6455 is dropped."""
        if self._held and self._ready and len(self._held) < HIGH_WATER:
            self._held += ping.wire
            return
        self._write_held()
        if self._ready and (ping.event is None or not self._queue):
            self._write(ping.wire)
        elif ping.event is not None:
            self.write(ping.event, ping.size)

    def close(self, event: Event, goodbye: Event | None = None) -> None:
        self._write_held()
        super().close(event, goodbye)

    def abandon(self) -> None:
        super().abandon()
        if self._held:
            self._held = b""


class WrappedDaphneTransport(OnDaphne):
    """A transport behind a middleware: each message goes through the middleware's `send`, in order.

    Pings of RFC 6455 do not, because ASGI has none. They are written whole, behind the frames that Daphne has
    buffered. A message that a middleware holds back does not hold them back: the question is if the client
    lives.
    """

    __slots__ = ("_listens",)

    def __init__(
        self,
        send: Send,
        protocol: Any,
        options: Options,
        watcher: Watcher,
    ) -> None:
        super().__init__(send, protocol, options, watcher)
        self._allowed += HIGH_WATER
        self._listens = True
        """False if another transport takes the pongs of this protocol: a middleware may serve several
        consumers on one connection.
        """

    @property
    def can_ping(self) -> bool:
        return self._listens

    def _opened(self) -> None:
        # A middleware may delay the handshake, so the compression is not known. Pings are never compressed.
        self._ready = not self.closed
        if self._ready and self._listens and _reads_as_known(self._protocol):
            self._listen_to_reads()

    async def accept(self, event: Event, first: Event | None = None) -> None:
        self._listens = "onPong" not in vars(self._protocol)
        await super().accept(event, first)

    def _listen(self) -> None:
        if self._listens:
            super()._listen()

    def _stop_listening(self) -> None:
        if self._listens:
            super()._stop_listening()

    def _is_pong(self, opcode: int, payload: bytes) -> bool:
        # A pong of `realtime.v1` is a message, which the middleware may want to see.
        return opcode != rfc6455.TEXT and super()._is_pong(opcode, payload)

    def write(self, event: Event, size: int) -> None:
        """Hand the message to the writer, which waits for its turn and for room."""
        self._allow(size)
        if self._may_write():
            super().write(event, size)

    def write_shared(self, shared: Shared) -> None:
        """Hand the messages to the writer, as `write` does."""
        self._allow(shared.size)
        if self._may_write():
            super().write_shared(shared)

    def _allow(self, size: int) -> None:
        # A client that reads may be sent a message above the cap.
        allowed = self._options.max_unsent + HIGH_WATER + size
        is_behind = self._queue or self._buffered()
        self._allowed = max(self._allowed, allowed) if is_behind else allowed

    def _may_write(self) -> bool:
        """Return False if a message would be sent to nobody: the connection has ended, or must end now."""
        protocol = self._protocol
        if not self._ready or protocol.state == protocol.STATE_CONNECTING:
            return True
        if protocol.state != protocol.STATE_OPEN:
            # A protocol that is still closing has its end reported by Daphne.
            if protocol.state == protocol.STATE_CLOSED and not protocol.wasClean:
                self._fail(CloseReason.SEND_FAILED, None)
            return False
        if self._buffered() > self._allowed:
            # A middleware may pass messages on later than its `send` returns, and send messages of its own.
            self._fail(CloseReason.SLOW_CONSUMER, None)
            return False
        return True

    def _fail(self, reason: CloseReason, error: BaseException | None) -> None:
        if reason is CloseReason.SEND_FAILED and self._protocol.wasClean:
            # The message waited for the middleware while the client closed.
            reason = CloseReason.CLIENT_CLOSED
        super()._fail(reason, error)

    def ping(self, ping: Ping) -> None:
        """Send a ping. Before the handshake, and after the close, a ping of RFC 6455 is dropped."""
        if ping.event is not None:
            self.write(ping.event, ping.size)
        elif self._ready and self._may_write() and self._protocol.state == self._protocol.STATE_OPEN:
            allowed = self._allowed
            self._write(ping.wire)
            # The messages that still wait for the middleware count, not the rest of a ping.
            self._allowed = allowed

    async def _room(self) -> None:
        """Wait until at most `HIGH_WATER` bytes are buffered.

        The queue of this transport is bounded, and the buffer of Daphne is not.
        """
        if self._buffered() > HIGH_WATER:
            # One turn of the loop is enough if the client reads.
            await asyncio.sleep(0)
        while self._buffered() > HIGH_WATER and not self._is_over():  # noqa: ASYNC110 - Twisted has no such event
            await asyncio.sleep(LOOK_INTERVAL)

    def _is_held_back(self) -> bool:
        return bool(self._protocol.state == self._protocol.STATE_OPEN)


def _reads_as_known(protocol: Any) -> bool:
    """Return True if the protocol, after its handshake, has the attributes that `_received` uses."""
    return (
        isinstance(getattr(protocol, "data", None), bytes)
        and getattr(protocol, "current_frame", protocol) is None
        and getattr(protocol, "inside_message", None) is False
        and isinstance(getattr(protocol, "last_ping", None), float)
        and callable(getattr(protocol, "dataReceived", None))
    )


def protocol_behind(send: Any) -> Any:
    """Return autobahn's protocol of the connection, if `send` is Daphne's own callable.

    Returns:
        None if it is another callable, or if anything that is used here differs from the known one.
    """
    if type(send) is not functools.partial or send.keywords or len(send.args) != 1:
        return None
    names = getattr(send.func, "__module__", ""), getattr(send.func, "__name__", "")
    if names != ("daphne.server", "handle_reply"):
        return None
    (protocol,) = send.args
    return protocol if is_usable(protocol) else None


def is_usable(protocol: Any) -> bool:
    """Return True if this is Daphne's protocol, and everything that is used here is as known."""
    try:
        return _is_known(protocol) and _is_plain(protocol.transport)
    except (AttributeError, TypeError) as error:
        logger.debug("Not a known version of Daphne: %s", error)
        return False


def uses_tls(protocol: Any) -> bool:
    """Return True if Daphne itself ends the TLS of this connection."""
    twisted = getattr(protocol, "transport", None)
    in_tls = type(twisted).__module__ == "twisted.protocols.tls" or bool(getattr(twisted, "TLS", False))
    return is_protocol(protocol) and in_tls


def scope_of(protocol: Any) -> dict[str, Any]:
    """Return the values in the scope that Daphne made for this connection alone; none for other objects."""
    if not is_protocol(protocol):
        return {}
    names = {"headers": "clean_headers", "client": "client_addr", "server": "server_addr"}
    return {key: getattr(protocol, name, None) for key, name in names.items()}


def is_protocol(protocol: Any) -> bool:
    """Return True if this is Daphne's protocol of a WebSocket, of any version."""
    return type(protocol).__module__ == "daphne.ws_protocol"


def _is_known(protocol: Any) -> bool:
    """Return True if the protocol is as known. Raise AttributeError if an attribute is missing."""
    return (
        type(protocol).__module__ == "daphne.ws_protocol"
        # Its callbacks are replaced on the object.
        and isinstance(vars(protocol), dict)
        and isinstance(protocol.state, int)
        and isinstance(protocol.STATE_OPEN, int)
        and isinstance(protocol.STATE_CLOSED, int)
        and isinstance(protocol.STATE_CONNECTING, int)
        and isinstance(protocol.wasClean, bool)
        and isinstance(protocol.failedByMe, bool)
        and isinstance(protocol.wasMaxMessagePayloadSizeExceeded, bool)
        and isinstance(protocol.wasMaxFramePayloadSizeExceeded, bool)
        and len(protocol.send_queue) == 0
        and protocol._perMessageCompress is None
        and not protocol.maskServerFrames
        and not protocol.autoFragmentSize
        and not protocol.logOctets
        and not protocol.logFrames
        and isinstance(protocol.maxMessagePayloadSize, int)
        and all(map(callable, (protocol.sendData, protocol.onPong, protocol.onCloseFrame)))
    )


def _used_of(twisted: Any) -> tuple[Any, ...]:
    """Return the methods of Twisted's transport that are used. Raise AttributeError if one is missing."""
    return (
        twisted.write,
        twisted.abortConnection,
        twisted.pauseProducing,
        twisted.resumeProducing,
        twisted.socket.send,
    )


def _is_plain(twisted: Any) -> bool:
    """Return True if this is a known stream socket. Raise AttributeError if an attribute is missing."""
    return (
        (type(twisted).__module__, type(twisted).__qualname__) in _PLAIN
        and not twisted.TLS
        and isinstance(twisted.dataBuffer, bytes)
        and isinstance(twisted.offset, int)
        and isinstance(twisted._tempDataLen, int)
        and twisted.disconnected in (False, True)
        and all(map(callable, _used_of(twisted)))
    )
