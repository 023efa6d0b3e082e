"""The counts of all processes, in Redis: the scripts that ask and change them.

Each subject has a hash. A field is the id of a process, and after it a digest of the id of a client if the
client gave one. Its value is the number of connections. Each process writes its own numbers as they are, not
changes of them, so a repeated write does no harm.

A process is alive as long as its key exists, which it renews. The value of the key is the replication id of
the Redis (`master_replid` in INFO). A Redis that was restarted or promoted has another one. It may lack the
latest numbers, so the process is not alive there. The numbers of other processes count for
nothing, and are removed when their subject is looked at. If the key of a process is gone, the
process writes all of its numbers again, under a new id.

All keys are in one Redis, because one script looks at several subjects.

Private: docs/reference.md lists the public names.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from realtime.limits.counts import Place, client_of, cost, subject_of
from realtime.scripts import Argument, KeyScript, Script

#: The key, without the prefix of the layer. All other keys begin with it.
KEY = "realtime.limits"
#: The characters of the id of a process.
ID_LENGTH = 16
#: The answer of a script for a process that is not alive.
NOT_ALIVE = -1
#: Seconds for which numbers are kept that no process writes again.
NUMBERS_TTL = 3600.0

_COMMANDS = "DEL, EXISTS, GET, HDEL, HGETALL, HINCRBY, HSET, INFO, PEXPIRE and SET"

#: The places of one connection, each with the limit of its subject.
Wanted = Sequence[tuple[Place, int]]


def count_arguments(
    process: str, lifetime: float, numbers: Iterable[tuple[Place, int]], wanted: Iterable[Wanted]
) -> list[Argument]:
    """Return the arguments of COUNT.

    Args:
        process: The id of the process that calls.
        lifetime: Seconds for which it is alive from now on.
        numbers: Its connections, by place. They must include those of all wanted places.
        wanted: The places of new connections.
    """
    call = {
        "process": process,
        "lifetime": round(lifetime * 1000),
        "keep": round(NUMBERS_TTL * 1000),
        "numbers": [[subject_of(place), _digest(place), number] for place, number in numbers],
        "wanted": [[[subject_of(place), _digest(place), limit] for place, limit in each] for each in wanted],
    }
    return [json.dumps(call)]


def _digest(place: Place) -> str:
    """Return a digest of the id of a client: with the id itself, one could close its connections."""
    client = client_of(place)
    return hashlib.sha256(client.encode()).hexdigest()[:16] if client else ""


# -- in Redis --------------------------------------------------------------------------------------

_REPLID = """
local replid = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)') or ''
"""

_REGISTER = Script(
    _REPLID
    + """
local process, old, lifetime = ARGV[2], ARGV[3], ARGV[4]
redis.call('SET', KEYS[1] .. ':alive:' .. process, replid, 'PX', lifetime)
if old ~= '' then
  redis.call('DEL', KEYS[1] .. ':alive:' .. old)
end
return 1
"""
)

_RENEW = Script(
    _REPLID
    + """
local key, lifetime = KEYS[1] .. ':alive:' .. ARGV[2], ARGV[3]
if redis.call('GET', key) ~= replid then
  redis.call('DEL', key)
  return -1
end
redis.call('PEXPIRE', key, lifetime)
return 1
"""
)

_COUNT = Script(
    """
local call = cjson.decode(ARGV[2])
local process = call.process
if redis.call('PEXPIRE', KEYS[1] .. ':alive:' .. process, call.lifetime) == 0 then
  return -1
end

local function key_of(subject)
  return KEYS[1] .. ':' .. subject
end

for _, number in ipairs(call.numbers) do
  local key, name = key_of(number[1]), process .. number[2]
  if number[3] > 0 then
    redis.call('HSET', key, name, number[3])
    redis.call('PEXPIRE', key, call.keep)
  else
    redis.call('HDEL', key, name)
  end
end

local alive = {[process] = true}
local function is_alive(other)
  if alive[other] == nil then
    alive[other] = redis.call('EXISTS', KEYS[1] .. ':alive:' .. other) == 1
  end
  return alive[other]
end

-- The places that one more connection needs.
local function cost(client, connections)
  if client ~= '' and connections == 1 then
    return 0
  end
  return 1
end

local found = {}
local function look(subject)
  if found[subject] then
    return found[subject]
  end
  local clients, taken = {}, 0
  local fields = redis.call('HGETALL', key_of(subject))
  for i = 1, #fields, 2 do
    local other, client = string.sub(fields[i], 1, ID_LENGTH), string.sub(fields[i], ID_LENGTH + 1)
    if is_alive(other) then
      clients[client] = (clients[client] or 0) + tonumber(fields[i + 1])
    else
      redis.call('HDEL', key_of(subject), fields[i])
    end
  end
  for client, connections in pairs(clients) do
    taken = taken + connections
    if client ~= '' and connections > 1 then
      taken = taken - 1
    end
  end
  found[subject] = {clients = clients, taken = taken}
  return found[subject]
end

local answers = {}
for i, wanted in ipairs(call.wanted) do
  answers[i] = 0
  for j, place in ipairs(wanted) do
    local at = look(place[1])
    local needed = cost(place[2], at.clients[place[2]] or 0)
    if answers[i] == 0 and needed > 0 and at.taken + needed > place[3] then
      answers[i] = j
    end
  end
  if answers[i] == 0 then
    for _, place in ipairs(wanted) do
      local at, client = look(place[1]), place[2]
      at.taken = at.taken + cost(client, at.clients[client] or 0)
      at.clients[client] = (at.clients[client] or 0) + 1
      redis.call('HINCRBY', key_of(place[1]), process .. client, 1)
      redis.call('PEXPIRE', key_of(place[1]), call.keep)
    end
  end
end
return answers
""".replace("ID_LENGTH", str(ID_LENGTH))
)


# -- in memory -------------------------------------------------------------------------------------


@dataclass
class _Store:
    """The content of Redis: the processes, each with the time until which it is alive, and their numbers."""

    alive: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, dict[tuple[str, str], int]] = field(default_factory=dict)

    def clients(self, subject: str, now: float) -> dict[str, int]:
        """Return the connections of a subject by client. Remove those of processes that are not alive."""
        clients: dict[str, int] = {}
        numbers = self.numbers.get(subject, {})
        for (process, client), number in tuple(numbers.items()):
            if self.alive.get(process, now) > now:
                clients[client] = clients.get(client, 0) + number
            else:
                self.write(subject, process, client, 0)
        return clients

    def write(self, subject: str, process: str, client: str, number: int) -> None:
        """Write a number; 0 removes it."""
        numbers = self.numbers.setdefault(subject, {})
        if number:
            numbers[process, client] = number
        else:
            numbers.pop((process, client), None)
        if not numbers:
            del self.numbers[subject]


def _store_at(store: dict[str, Any], key: str) -> _Store:
    if key not in store:
        store[key] = _Store()
    found: _Store = store[key]
    return found


def _register_in_memory(store: dict[str, Any], key: str, arguments: Sequence[Argument], now: float) -> int:
    process, old, lifetime = arguments
    here = _store_at(store, key)
    here.alive[str(process)] = now + float(lifetime) / 1000
    here.alive.pop(str(old), None)
    return 1


def _renew_in_memory(store: dict[str, Any], key: str, arguments: Sequence[Argument], now: float) -> int:
    process, lifetime = arguments
    return _renew(_store_at(store, key), str(process), float(lifetime) / 1000, now)


def _renew(here: _Store, process: str, lifetime: float, now: float) -> int:
    is_alive = here.alive.pop(process, now) > now
    if is_alive and lifetime > 0:
        here.alive[process] = now + lifetime
    return 1 if is_alive else NOT_ALIVE


def _count_in_memory(
    store: dict[str, Any], key: str, arguments: Sequence[Argument], now: float
) -> int | list[int]:
    call, here = json.loads(str(arguments[0])), _store_at(store, key)
    process: str = call["process"]
    if _renew(here, process, call["lifetime"] / 1000, now) == NOT_ALIVE:
        return NOT_ALIVE
    own: dict[tuple[str, str], int] = {}
    for subject, client, number in call["numbers"]:
        own[subject, client] = number
        here.write(subject, process, client, number)
    answers = []
    for wanted in call["wanted"]:
        answer = 0
        for position, (subject, client, limit) in enumerate(wanted, start=1):
            clients = here.clients(subject, now)
            needed = cost(client, clients.get(client, 0))
            if not answer and needed and _taken(clients) + needed > limit:
                answer = position
        if not answer:
            for subject, client, _ in wanted:
                own[subject, client] += 1
                here.write(subject, process, client, own[subject, client])
        answers.append(answer)
    return answers


def _taken(clients: dict[str, int]) -> int:
    return sum(number - (1 if client and number > 1 else 0) for client, number in clients.items())


#: Make a process alive. Arguments: its id, its last id or an empty text, and milliseconds.
REGISTER = KeyScript(_REGISTER, _register_in_memory, _COMMANDS)
#: Keep a process alive. Arguments: its id, and milliseconds; 0 ends it. Returns NOT_ALIVE if it is not alive.
RENEW = KeyScript(_RENEW, _renew_in_memory, _COMMANDS)
#: Write numbers of a process, and take places for new connections. The arguments: `count_arguments`.
#: Returns NOT_ALIVE; or for each new connection 0, or the number of its first place that is not free.
COUNT = KeyScript(_COUNT, _count_in_memory, _COMMANDS)
