"""Scripts in Lua, which Redis runs as one step.

Private: docs/reference.md lists the public names.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from redis.exceptions import NoScriptError

Argument: TypeAlias = str | int | float


class Script:
    """A script in Lua. Redis is sent its text only if it does not know it yet."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Any, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run the script in the Redis of a client.

        Raises:
            redis.exceptions.RedisError: Redis is out of reach, or the script failed.
        """
        try:
            return await client.execute_command("EVALSHA", self.sha, len(keys), *keys, *arguments)
        except NoScriptError:
            return await client.execute_command("EVAL", self.text, len(keys), *keys, *arguments)


@dataclass(frozen=True, slots=True)
class KeyScript:
    """A script about one key, in two forms: for Redis, and for the in-memory layer.

    Attributes:
        lua: The script for Redis. KEYS[1] is the key, and ARGV[1] the prefix of the layer's keys.
            ARGV[2] is the first argument.
        in_memory: The same in Python: `in_memory(store, key, arguments, now)`. `store` has a value of any
            type for each key, and `now` is in seconds on a clock that never goes back. The layer holds a lock
            meanwhile.
        commands: The commands in the script, in words. Redis does not say which of them it refused.
    """

    lua: Script
    in_memory: Callable[[dict[str, Any], str, Sequence[Argument], float], Any]
    commands: str
