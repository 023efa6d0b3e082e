"""A page with the browser client, whose clock, network and server are the test."""

from pathlib import Path
from typing import Self

from playwright.async_api import Page, Route

from realtime.wire import frames

HERE = Path(__file__).parent
MODULE = HERE.parent.parent / "realtime" / "static" / "realtime" / "realtime.js"
ORIGIN = "https://site.test"
HALF = 0.5  # the value of Math.random() in these tests: a back-off takes half of its window


async def _site(route: Route) -> None:
    if route.request.url == f"{ORIGIN}/realtime.js":
        await route.fulfill(body=MODULE.read_text(), content_type="text/javascript")
    else:
        await route.fulfill(body="<!doctype html><title>client</title>", content_type="text/html")


class Client:
    """A RealtimeConnection in a page, with its clock, network and server. Durations are in its seconds."""

    def __init__(self, page: Page) -> None:
        self.page = page

    async def start(
        self,
        url: str = "/ws/",
        connect: bool = True,
        options: dict[str, object] | None = None,
        tickets: bool = False,
    ) -> Self:
        """Open a page with a connection.

        Args:
            url: The address of the connection.
            connect: Connect immediately.
            options: The options of the connection.
            tickets: The connection has a function `ticket`. Each call waits in the list `asked` of the page.
        """
        await self.page.route(f"{ORIGIN}/**", _site)
        await self.page.add_init_script(path=HERE / "fake_websocket.js")
        await self.page.clock.install(time=1_700_000_000)
        await self.page.goto(ORIGIN)
        await self.page.clock.pause_at(1_700_000_100)
        await self.page.evaluate(
            """async ([url, connect, random, options, tickets]) => {
                Math.random = () => random;
                const module = await import("/realtime.js");
                window.module = module;
                window.asked = [];
                if (tickets) {
                    options.ticket = () => new Promise((resolve, reject) => asked.push({ resolve, reject }));
                }
                window.connection = new module.RealtimeConnection(url, options);
                window.seen = [];
                const names = [
                    "state", "message", "recovered", "reset", "presence", "notification", "groups",
                    "removed", "refresh", "ping", "goodbye", "error",
                ];
                for (const name of names) {
                    connection.addEventListener(name, ({ detail }) => seen.push({ event: name, ...detail }));
                }
                // Settles later: outcome(promise) says how, or that it is still pending.
                window.outcomes = {};
                window.watch = (name, promise) => {
                    outcomes[name] = "pending";
                    const keep = (outcome) => (outcomes[name] = outcome);
                    promise.then(keep, (error) => keep(error.code ?? error.name));
                };
                if (connect) connection.connect();
            }""",
            [url, connect, HALF, options or {}, tickets],
        )
        return self

    async def run(self, script: str, argument: object = None) -> object:
        return await self.page.evaluate(f"(argument) => {{ {script} }}", argument)

    async def get(self, expression: str) -> object:
        return await self.page.evaluate(expression)

    async def state(self) -> object:
        return await self.get("connection.state")

    async def events(self, name: str) -> list[dict[str, object]]:
        return [event for event in await self.get("seen") if event["event"] == name]  # type: ignore[attr-defined]

    async def passes(self, seconds: float) -> None:
        """Let time pass; every timer fires when it is due."""
        await self.page.clock.run_for(round(seconds * 1000))

    async def sleeps(self, seconds: float) -> None:
        """Let the machine sleep. Then the wall clock has jumped, and each timer fires at most once."""
        await self.page.clock.fast_forward(round(seconds * 1000))

    async def shown(self) -> None:
        """Make the page visible again."""
        await self.run("document.dispatchEvent(new Event('visibilitychange'))")

    async def sockets(self) -> int:
        return int(await self.get("WebSocket.all.length"))  # type: ignore[call-overload]

    async def waited(self) -> float:
        """Return the seconds that the connection waits from the end of one socket to the next one."""
        return float(await self.get("(connection.retryAt - connection.lastClose.at) / 1000"))  # type: ignore[arg-type]

    # The server.

    async def accept(self, *, groups: list[str] | None = None, max_silence: float = 45.0) -> None:
        """Open the newest socket, and send the welcome of the server."""
        await self.run("WebSocket.all.at(-1).accept()")
        await self.says(frames.Welcome(f"connection-{await self.sockets()}", max_silence, groups or []))

    async def says(self, frame: frames.ServerFrame, *, socket: int = -1) -> None:
        await self.sends(frames.build(frame), socket=socket)

    async def sends(self, text: str, *, socket: int = -1) -> None:
        await self.run("WebSocket.all.at(argument[0]).deliver(argument[1])", [socket, text])

    async def drops(self, code: int, reason: str = "", *, socket: int = -1) -> None:
        await self.run("WebSocket.all.at(argument[0]).drop(argument[1], argument[2])", [socket, code, reason])

    async def sent(self, *, socket: int = -1) -> list[frames.ClientFrame]:
        """Return all frames that the client sent on this socket, as the server reads them."""
        texts = await self.page.evaluate("(socket) => WebSocket.all.at(socket).sent", socket)
        return [frames.parse(text) for text in texts]

    async def ref(self) -> frames.Ref:
        """Return the ref of the last command."""
        return (await self.sent())[-1].ref  # type: ignore[union-attr]
