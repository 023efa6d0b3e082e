"""Histories in Redis: the scripts that append and read messages, and the code that runs them.

Each group has two keys. Each publish id has one more.

- The position, a hash: the epoch, the offset of the latest message, the forks, and the replication id of the
  Redis that wrote it last. It outlives the messages.
- The messages, a stream: the id of an entry is `<offset>-0`, and its only field is the encoded message.
- A publish id, a string: the position that the message got.

Redis may lose any of them alone, because it evicts single keys. Without a position, a new epoch begins and
the messages are deleted. Without messages, nothing after the position was lost, but nothing is kept.

A Redis that was restarted or promoted has another replication id (`master_replid` in INFO). It may lack the
latest messages, so the first call that reaches it begins a new epoch, which remembers where it forked off.

Every script makes all reads, which find keys of a wrong type, before its first write. Its first write is one
that Redis refuses as long as it takes no writes, as a replica or because its memory is full. Therefore a
script that fails has changed nothing.

Private: docs/reference.md lists the public names.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from realtime.history.positions import MAX_FORKS, Entry, Log, Position
from realtime.history.retention import Retention
from realtime.scripts import Script

#: The commands in the scripts. Redis does not say which of them it refused.
IN_SCRIPTS = "DEL, GET, HMGET, HSET, INFO, PEXPIRE, PUBLISH, SET, XADD, XLEN, XRANGE and XREVRANGE"

#: Begins a message with a position on the pub/sub layer: a byte with which no message begins. msgpack never
#: uses it, and it is in no UTF-8 text, so in no JSON. Encrypted messages are ASCII.
MARKER = b"\xc1"

#: Groups whose positions one call looks at. Redis answers other clients between two calls.
GROUPS_PER_CALL = 100

_LARGEST = 2**53 - 1


# Every script begins with this.
_LOOK = """
local info = redis.call('INFO', 'replication')
local _, before = string.find(info, 'master_replid:', 1, true)
local replid = before and string.sub(info, before + 1, before + 40) or ''

-- Return the forks of a new epoch: the latest, and the earlier ones.
local function older_forks(latest, forks)
  local older, count = latest, 1
  for fork in string.gmatch(forks, '%S+') do
    if count < MAX_FORKS then
      older, count = older .. ' ' .. fork, count + 1
    end
  end
  return older
end

-- Return the position of a group: epoch, offset, forks; and true if the epoch is a new one.
local function look(position_key, new_epoch)
  local stored = redis.call('HMGET', position_key, 'epoch', 'offset', 'replid', 'forks')
  local epoch, offset, forks = stored[1], tonumber(stored[2]), stored[4] or ''
  if not (epoch and offset) then
    return new_epoch, 0, '', true
  end
  if stored[3] == replid then
    return epoch, offset, forks, false
  end
  return new_epoch, offset, older_forks(string.format('%s:%.0f', epoch, offset), forks), true
end
""".replace("MAX_FORKS", str(MAX_FORKS))

# A script that reads begins with this.
_LOOK_TO_READ = (
    _LOOK
    + """
-- Return the state of a group: its position, and the number of messages. A stream that does not end with the
-- latest message holds nothing of use.
local function look_to_read(position_key, history_key, new_epoch)
  local state = {length = redis.call('XLEN', history_key)}
  state.epoch, state.offset, state.forks, state.begins = look(position_key, new_epoch)
  if state.length > 0 then
    local last = redis.call('XREVRANGE', history_key, '+', '-', 'COUNT', 1)[1]
    if last[1] ~= string.format('%.0f-0', state.offset) then
      state.length, state.stale = 0, true
    end
  end
  return state
end

-- Write what a reader found: first all new epochs, because Redis may refuse these writes, then the rest.
local function write_epoch(state, position_key)
  if state.begins then
    redis.call('HSET', position_key, 'epoch', state.epoch, 'offset', string.format('%.0f', state.offset),
      'replid', replid, 'forks', state.forks)
  end
end
local function write_rest(state, position_key, history_key, lifetime)
  if state.stale then redis.call('DEL', history_key) end
  redis.call('PEXPIRE', position_key, lifetime)
end
"""
)

# KEYS: for each group, the position and the messages. ARGV: a name for new epochs; for each group, the
# lifetime of its position in ms. Returns a text with a line for each group, which is cheaper to parse than
# arrays.
_POSITIONS = Script(
    _LOOK_TO_READ
    + """
local states, answer = {}, {}
for number = 1, #KEYS / 2 do
  states[number] = look_to_read(KEYS[2 * number - 1], KEYS[2 * number], ARGV[1])
end
for number, state in ipairs(states) do
  write_epoch(state, KEYS[2 * number - 1])
end
for number, state in ipairs(states) do
  write_rest(state, KEYS[2 * number - 1], KEYS[2 * number], ARGV[1 + number])
  answer[number] = string.format('%s %.0f %.0f %s', state.epoch, state.offset,
    state.offset - state.length + 1, state.forks)
end
return table.concat(answer, '\\n')
"""
)

# KEYS: the position, the messages. ARGV: a name for a new epoch; the lifetime of the position in ms; the
# epoch that lost messages.
_DISTRUST = Script(
    _LOOK
    + """
local epoch, offset, forks, begins = look(KEYS[1], ARGV[1])
if begins or epoch ~= ARGV[3] then return end
local number = string.format('%.0f', offset)
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'replid', replid,
  'forks', older_forks('!' .. epoch .. ':' .. number, forks))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
)

# KEYS: the position, the messages. ARGV: a name for a new epoch; the lifetime of the position in ms; the
# offset after which to read, or nothing for the newest; the number of messages; bytes.
_READ = Script(
    _LOOK_TO_READ
    + """
local state = look_to_read(KEYS[1], KEYS[2], ARGV[1])
write_epoch(state, KEYS[1])
write_rest(state, KEYS[1], KEYS[2], ARGV[2])
local length = state.length
local answer = {state.epoch, state.offset, state.offset - length + 1, state.forks}
local newest, limit, room = ARGV[3] == '', tonumber(ARGV[4]), tonumber(ARGV[5])
local bound = newest and '+' or string.format('%.0f-0', tonumber(ARGV[3]) + 1)
local count, bytes, step = 0, 0, 1
while length > 0 and count < limit do
  local wanted = math.min(step, limit - count)
  local some
  if newest then
    some = redis.call('XREVRANGE', KEYS[2], bound, '-', 'COUNT', wanted)
  else
    some = redis.call('XRANGE', KEYS[2], bound, '+', 'COUNT', wanted)
  end
  local number
  for _, entry in ipairs(some) do
    bytes = bytes + #entry[2][2]
    if count > 0 and bytes > room then return answer end
    count = count + 1
    number = tonumber(string.match(entry[1], '^%d+'))
    answer[#answer + 1] = number
    answer[#answer + 1] = entry[2][2]
  end
  if #some < wanted then break end
  bound = string.format('%.0f-0', newest and number - 1 or number + 1)
  -- So many that they should fit.
  step = math.max(1, math.min(step * 4, math.floor((room - bytes) * count / math.max(bytes, 1))))
end
return answer
"""
)

# KEYS: the position, the messages; the publish id, if there is one. ARGV: a name for a new epoch; the
# lifetime of the position in ms; the largest number of messages; their lifetime in ms; the encoded message;
# the channel for it or nothing. The answer is one line, which redis-py reads faster than an array.
_APPEND = Script(
    _LOOK
    + """
local epoch, offset, forks, begins = look(KEYS[1], ARGV[1])
if KEYS[3] then
  local earlier = redis.call('GET', KEYS[3])
  if earlier then return redis.status_reply('1 ' .. earlier) end
end
local number = string.format('%.0f', offset + 1)
if begins and forks == '' and redis.call('XLEN', KEYS[2]) > 0 then redis.call('DEL', KEYS[2]) end
local added = redis.pcall('XADD', KEYS[2], 'MAXLEN', ARGV[3], number .. '-0', 'm', ARGV[5])
if type(added) == 'table' and added.err then
  -- Nothing was written. If the stream goes on beyond the position, it is not the stream of this position.
  if not string.find(added.err, 'equal or smaller', 1, true) then return added end
  redis.call('DEL', KEYS[2])
  redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[3], number .. '-0', 'm', ARGV[5])
end
if begins then
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'offset', number, 'replid', replid, 'forks', forks)
else
  redis.call('HSET', KEYS[1], 'offset', number)
end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
local position = epoch .. ' ' .. number
if KEYS[3] then redis.call('SET', KEYS[3], position, 'PX', ARGV[4]) end
if ARGV[6] ~= '' then redis.call('PUBLISH', ARGV[6], '\\193' .. position .. ' ' .. ARGV[5]) end
return redis.status_reply('0 ' .. position)
"""
)


def split(content: bytes) -> tuple[Position | None, bytes]:
    """Return the position of a message on the pub/sub layer, if it has one, and the message itself."""
    if content.startswith(MARKER):
        epoch, _, rest = content[len(MARKER) :].partition(b" ")
        offset, _, message = rest.partition(b" ")
        if offset.isdigit():
            return Position(epoch.decode(errors="replace"), int(offset)), message
    return None, content


def new_epoch() -> str:
    """Return a random name for an epoch: ASCII letters, digits, "-" and "_"."""
    return secrets.token_urlsafe(8)


class Streams:
    """The histories of the groups of one channel layer.

    Args:
        prefix: The beginning of the names of all keys.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    async def append(
        self, client: Any, group: str, content: bytes, keep: Retention, once: str | None, channel: str = ""
    ) -> tuple[Position, bool]:
        """Append a message to the history of a group.

        Args:
            client: A client of the Redis of this group.
            group: The name of the group.
            content: The encoded message.
            keep: The part of its history that the group keeps.
            once: The publish id.
            channel: The channel of Redis to which the message is published as well.

        Returns:
            The position of the message, and True if the publish id was used before. Then nothing is appended
            or published, and the position is that of the earlier message.
        """
        keys = self._keys(group)
        if once is not None:
            keys.append(f"{self._prefix}:once:{group}:{once}")
        position_ttl, size, ttl = _arguments(keep)
        answer = await _APPEND.run(client, keys, (new_epoch(), position_ttl, size, ttl, content, channel))
        repeated, epoch, offset = answer.decode().split(" ")
        return Position(epoch, int(offset)), repeated == "1"

    async def read(
        self,
        client: Any,
        group: str,
        after: int | None,
        keep: Retention,
        limit: int,
        max_bytes: int,
        decode: Callable[[bytes], str],
    ) -> Log:
        """Read messages of a group.

        Args:
            client: A client of the Redis of this group.
            group: The name of the group.
            after: The offset after which to read, oldest first; None for the newest messages.
            keep: The part of its history that the group keeps.
            limit: The largest number of messages.
            max_bytes: About the largest number of bytes. One message is read even if it is larger.
            decode: Returns the frame for clients that is in an encoded message, or raises any exception. A
                message that cannot be decoded, and all messages before it, count as no longer kept.
        """
        bounds = ["" if after is None else after, limit, max_bytes]
        lifetime = _milliseconds(keep.position_ttl)
        answer = await _READ.run(client, self._keys(group), [new_epoch(), lifetime, *bounds])
        epoch, offset, first, forks = answer[:4]
        log = _log((epoch.decode(), offset, first, forks.decode()))
        found = list(zip(answer[4::2], answer[5::2], strict=True))
        if after is None:
            found.reverse()
        entries: list[Entry] = []
        for offset, content in found:
            try:
                entries.append(Entry(offset, decode(content)))
            except Exception:
                # For example, the key of the encryption was replaced.
                first = offset + 1
                entries.clear()
        return replace(log, first=first, entries=tuple(entries))

    async def distrust(self, client: Any, group: str, keep: Retention, epoch: str) -> None:
        """Begin a new epoch that trusts no earlier one, because messages were lost at a fork of this epoch.

        If another epoch has begun already, nothing is done.
        """
        await _DISTRUST.run(client, self._keys(group), [new_epoch(), _milliseconds(keep.position_ttl), epoch])

    async def positions(self, client: Any, groups: Mapping[str, float]) -> dict[str, Log]:
        """Return the histories of groups without their messages, and renew the lifetime of each position.

        Args:
            client: A client of the Redis of these groups.
            groups: The seconds for which its position is kept, by the name of the group.

        Raises:
            redis.exceptions.RedisError: A call failed. It has changed nothing. Calls before it, for other
                groups, were made.
        """
        found: dict[str, Log] = {}
        names = tuple(groups)
        for start in range(0, len(names), GROUPS_PER_CALL):
            some = names[start : start + GROUPS_PER_CALL]
            keys = [key for group in some for key in self._keys(group)]
            lifetimes = [_milliseconds(groups[group]) for group in some]
            # A name means something only within its group, so all groups may get the same.
            answer = await _POSITIONS.run(client, keys, [new_epoch(), *lifetimes])
            for group, line in zip(some, answer.decode().split("\n"), strict=True):
                found[group] = _log(line.split(" ", 3))
        return found

    def _keys(self, group: str) -> list[str]:
        return [f"{self._prefix}:position:{group}", f"{self._prefix}:history:{group}"]


@lru_cache(maxsize=1000)
def _arguments(keep: Retention) -> tuple[str, str, str]:
    """Return the arguments of `_APPEND` that many messages share."""
    return str(_milliseconds(keep.position_ttl)), str(keep.size), str(_milliseconds(keep.ttl))


def _milliseconds(seconds: float) -> int:
    return max(1, min(_LARGEST, round(seconds * 1000)))


def _log(state: Sequence[Any]) -> Log:
    """Read what a script returns of a group: the epoch, the offset, the offset of the oldest message, forks.

    A fork that is not trusted begins with an exclamation mark.
    """
    epoch, offset, first, forks = state
    texts = forks.split()
    parts = (each.removeprefix("!").partition(":") for each in texts)
    trusted = next((number for number, each in enumerate(texts) if each.startswith("!")), MAX_FORKS)
    return Log(
        epoch,
        int(offset),
        int(first),
        tuple(Position(name, int(last)) for name, _, last in parts),
        trusted=trusted,
    )
