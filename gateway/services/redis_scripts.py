"""What runs inside Redis: one script for each call of the state, so that each is one atomic step.

Every script has one key, and as its first argument the time, or nothing: then it takes the server's own, by which all
replicas go, however their clocks differ. What is stored carries its own end beside Redis's, so that both times agree.

A value is a hash: ``v`` the octets, ``at`` when it was written, ``until`` its end. A bucket is a hash: ``tokens``, and
``at`` when there were so many. A tally is a sorted set: each member with ``=`` before it, and ``until``.

*Promises*: what stands under a key and is not ours (another type, no numbers, too large, without an end) counts as
nothing, and the next write replaces it. Nothing is stored without an end.
"""

from __future__ import annotations

from typing import Final

VALUE_OCTETS: Final = 65_536
MEMBER_OCTETS: Final = 4 * 2_048
LONGEST: Final = 10 * 366 * 86_400.0
"""Seconds that anything is kept, at most; Redis refuses times that are too far away."""

_PRELUDE: Final = f"""
local key = KEYS[1]
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = tonumber(time[1]) + tonumber(time[2]) / 1000000
end
local function is(kind) return redis.call('TYPE', key)['ok'] == kind end
local function ends_in(seconds)
  redis.call('PEXPIRE', key, string.format('%.0f', math.ceil(math.min(seconds, {LONGEST}) * 1000)))
end
local function number(value) return tonumber(value or '') end
local function live(ends) return ends and ends > now and ends - now <= {2 * LONGEST} end
local function read()
  if not is('hash') or redis.call('HSTRLEN', key, 'v') > {VALUE_OCTETS} then return nil end
  local found = redis.call('HMGET', key, 'v', 'at', 'until')
  if not found[1] or not live(number(found[3])) then return nil end
  return found[1], number(found[2])
end
local function clear_unless(kind)
  -- A script that has deleted something may write on a server that is full: do it for what is not ours only.
  local found = redis.call('TYPE', key)['ok']
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end
local function write(value, at, ends)
  clear_unless('hash')
  redis.call('HSET', key, 'v', value, 'at', string.format('%.6f', at), 'until', string.format('%.6f', ends))
  ends_in(ends - now)
end
local function tally_ends()
  if not is('zset') then return nil end
  local ends = number(redis.call('ZSCORE', key, 'until'))
  return live(ends) and ends or nil
end
"""

GET: Final = f"{_PRELUDE} return {{read() or false}}"

PUT: Final = f"""{_PRELUDE}
write(ARGV[2], now, now + tonumber(ARGV[3]))
return 1
"""

PUT_NEW: Final = f"""{_PRELUDE}
local there = read()
if there then return {{there}} end
write(ARGV[2], now, now + tonumber(ARGV[3]))
return {{false}}
"""

DELETE: Final = "return redis.call('DEL', KEYS[1])"

TAKE: Final = f"""{_PRELUDE}
local capacity, rate, cost = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local tokens, back = capacity, false
if is('hash') then
  local found = redis.call('HMGET', key, 'tokens', 'at')
  local kept, at = number(found[1]), number(found[2])
  if kept and kept >= 0 and at then
    tokens = math.min(capacity, kept + math.max(0, now - at) * rate)
    back = at > now
  end
end
if cost == 0 and not back then return {{1, string.format('%.17g', tokens)}} end
local allowed = tokens + 1e-9 >= cost
if allowed then tokens = math.max(0, tokens - cost) end
clear_unless('hash')
redis.call('HSET', key, 'tokens', string.format('%.17g', tokens), 'at', string.format('%.6f', now))
ends_in((capacity - tokens) / rate)
return {{allowed and 1 or 0, string.format('%.17g', tokens)}}
"""

COUNT: Final = f"""{_PRELUDE}
if not tally_ends() then
  clear_unless('none')
  redis.call('ZADD', key, string.format('%.6f', now + tonumber(ARGV[4])), 'until')
  ends_in(tonumber(ARGV[4]))
end
return redis.call('ZINCRBY', key, ARGV[3], '=' .. ARGV[2])
"""

TALLY: Final = f"""{_PRELUDE}
if not tally_ends() then return {{}} end
local found = redis.call('ZREVRANGE', key, 0, ARGV[2], 'WITHSCORES')
local counts = {{}}
for i = 1, #found, 2 do
  if string.sub(found[i], 1, 1) == '=' and #found[i] <= {MEMBER_OCTETS + 1} then
    counts[#counts + 1] = string.sub(found[i], 2)
    counts[#counts + 1] = found[i + 1]
  end
end
return counts
"""

SETTLE: Final = f"""{_PRELUDE}
local what, age = ARGV[2], tonumber(ARGV[5])
local there, at = read()
if there and (what == 'new' or (at and at >= now - age)) then return 0 end
if what == 'delete' then redis.call('DEL', key)
else write(ARGV[3], now - age, now - age + tonumber(ARGV[4])) end
return 1
"""
"""What was learned elsewhere `age` seconds ago, to be kept for what then is left of its time: ``new`` unless there is
something, ``set`` and ``delete`` unless there is something newer. Gives 0 when what is there stays."""
