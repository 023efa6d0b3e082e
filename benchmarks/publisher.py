"""Publishes one message of BYTES bytes to GROUP for each line of standard input.

A process of its own, so that encoding a message for the channel layer costs the measured server nothing.
"""

import argparse
import asyncio
import sys

import django
from channels.layers import get_channel_layer


async def publish_each_line(how: str, group: str, text: str) -> None:
    if how == "realtime":
        from realtime import apublish
    else:
        layer = get_channel_layer()
        assert layer is not None  # noqa: S101

        async def apublish(group: str, data: object) -> None:
            await layer.group_send(group, {"type": "chat.message", "message": data})

    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        await apublish(group, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=("realtime", "channels"))
    parser.add_argument("group")
    parser.add_argument("bytes", type=int)
    options = parser.parse_args()
    django.setup()
    asyncio.run(publish_each_line(options.how, options.group, "x" * options.bytes))
