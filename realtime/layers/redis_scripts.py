"""Run scripts about single keys in the Redis of a layer."""

from collections.abc import Sequence
from typing import Any

from realtime.layers.redis_pool import NamedRefusals
from realtime.scripts import Argument, KeyScript


async def run(client: Any, prefix: str, script: KeyScript, key: str, arguments: Sequence[Argument]) -> Any:
    """Run a script in the Redis of a client.

    Args:
        client: The client.
        prefix: The prefix of the layer's keys.
        script: The script.
        key: The key, without the prefix.
        arguments: The arguments of the script.

    Raises:
        redis.exceptions.RedisError: Redis is out of reach, or refuses a command of the script.
    """
    with NamedRefusals(script.commands):
        return await script.lua.run(client, [f"{prefix}:{key}"], [prefix, *arguments])
