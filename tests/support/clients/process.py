"""Clients in a process of their own, which can run in a network namespace, be stopped or killed.

`python -m tests.support.clients.process URL … --count N` opens N clients for each URL, of the subprotocol
`realtime.v1`, or of none with `--plain`. With `--session KEY`, they have the cookie of that session. They
answer pings until the process is terminated. When all are open, and whenever a number has changed, the
process prints a line of JSON: {"at": seconds on the monotonic clock, "open": n, "frames": n of any type,
"messages": n, "pings": n}.
"""

import argparse
import asyncio
import json
import time

from tests.support.clients.websocket import Client, connect_many


def report(clients: list[Client]) -> dict[str, int]:
    return {
        "open": sum(client.is_open for client in clients),
        "frames": sum(len(client.received) for client in clients),
        "messages": sum(len(client.messages) for client in clients),
        "pings": sum(len(client.of_type("ping")) for client in clients),
    }


async def run(urls: list[str], count: int, *, plain: bool, session: str) -> None:
    headers = {"Cookie": f"sessionid={session}"} if session else None
    clients = [
        client for url in urls for client in await connect_many(count, url, plain=plain, headers=headers)
    ]
    last: dict[str, int] = {}
    while True:
        if (now := report(clients)) != last:
            print(json.dumps({"at": time.monotonic(), **now}), flush=True)  # noqa: T201 - the product of this program
            last = now
        await asyncio.sleep(0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="+")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--session", default="")
    options = parser.parse_args()
    asyncio.run(run(options.url, options.count, plain=options.plain, session=options.session))
