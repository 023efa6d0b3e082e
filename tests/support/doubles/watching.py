"""A watcher of a transport that records its calls."""

from collections.abc import Callable

from realtime.closing import CloseReason
from realtime.transports.asgi import Watcher


class Watching(Watcher):
    """Records the reasons to evict the connection, and the pongs. `then` is called with each reason."""

    def __init__(self, then: Callable[[CloseReason], object] = lambda _: None) -> None:
        self.failures: list[CloseReason] = []
        self.errors: list[BaseException | None] = []
        self.pongs: list[int] = []
        self.v1_pongs: list[int] = []
        self.times_behind = 0
        self.speaks_v1 = True
        self._then = then

    def send_failed(self, reason: CloseReason, error: BaseException | None) -> None:
        self.failures.append(reason)
        self.errors.append(error)
        self._then(reason)

    def ponged(self, n: int, *, v1: bool) -> bool:
        (self.v1_pongs if v1 else self.pongs).append(n)
        return not v1 or self.speaks_v1

    def is_behind(self) -> None:
        self.times_behind += 1
