"""The steps on the work between gateways and workers, each one Lua call: it happens whole or not at all.

A channel is an actor. Its hash (`FleetKeys.channel`) holds, by a number that counts its utterances:

    u:<number>   an utterance that waits, as `daemon.fleet.wire` writes it
    k:<number>   its ticket: whose it is, in JSON (`daemon.fleet.store.Ticket`)
    t:<number>   when it was accepted, ms by the clock of Redis
    i:<index>    set while the utterance with this index waits
    head, tail   numbers of the one whose turn it is, and of the last one
    last         index of the last utterance that was accepted
    entry        id of the channel's entry in the stream of work; there is one exactly while an utterance waits
    history      what the channel sounded like up to `head`
    tries        how often `head` was begun
    reason       why the last of these failed; gone once another has begun

Work is always taken and given back under the id of its entry. An id that is not the channel's `entry` any more belongs to
somebody who was given up for dead: such a step changes nothing.

A Redis without memory refuses only what a script would write first: new work is refused whole, and what frees memory,
because it begins with that, is not.
Acknowledged entries are trimmed, not deleted: a deleted entry would make the lag that Redis reports unknown for a while.
"""

from typing import Final

_NOW: Final = """
local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function is_ours(work, group, entry, consumer)
  return #redis.call('XPENDING', work, group, entry, entry, 1, consumer) > 0
end
"""

ACCEPT: Final = (
    _NOW
    + """
-- KEYS: work, channel. ARGV: channel's name, index, 1 where the utterance before it must have been accepted, the utterance,
-- history or '', seconds until all of it expires, the ticket.
-- Returns 'stored', 'waiting' (it was there already), 'done' (it is scored), or 'gap': Redis has lost what came before.
local index = tonumber(ARGV[2])
local last = tonumber(redis.call('HGET', KEYS[2], 'last') or '-1')
if index <= last then
  if redis.call('HEXISTS', KEYS[2], 'i:' .. index) == 1 then return 'waiting' end
  return 'done'
end
if ARGV[3] == '1' and index > last + 1 then return 'gap' end
local number = redis.call('HINCRBY', KEYS[2], 'tail', 1)
if number == 1 and ARGV[5] ~= '' then redis.call('HSET', KEYS[2], 'history', ARGV[5]) end
redis.call('HSET', KEYS[2], 'last', index, 'u:' .. number, ARGV[4], 'k:' .. number, ARGV[7],
  't:' .. number, now(), 'i:' .. index, '')
redis.call('HSETNX', KEYS[2], 'head', 1)
if redis.call('HEXISTS', KEYS[2], 'entry') == 0 then
  redis.call('HSET', KEYS[2], 'entry', redis.call('XADD', KEYS[1], '*', 'channel', ARGV[1]))
end
redis.call('EXPIRE', KEYS[2], ARGV[6])
return 'stored'
"""
)

TAKE: Final = (
    _NOW
    + """
-- KEYS: work, channel. ARGV: group, entry, how many attempts there are, 1 where this one would be made alone.
-- Counts an attempt. Returns the ticket, the utterance, history, ms since it was accepted, how many attempts that makes, and
-- why the last one failed; nothing where the entry is not the channel's turn any more; 'expired' where the channel is gone;
-- 'alone', and counts nothing, where the last attempt is at hand and the worker of the one before it died.
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  return 'expired'
end
if redis.call('HGET', KEYS[2], 'entry') ~= ARGV[2] then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  return false
end
local head = redis.call('HGET', KEYS[2], 'head')
local reason = redis.call('HGET', KEYS[2], 'reason') or ''
local tried = tonumber(redis.call('HGET', KEYS[2], 'tries') or '0')
if ARGV[4] == '0' and tried > 0 and tried + 1 == tonumber(ARGV[3]) and reason == '' then return 'alone' end
tried = redis.call('HINCRBY', KEYS[2], 'tries', 1)
redis.call('HDEL', KEYS[2], 'reason')
return {
  redis.call('HGET', KEYS[2], 'k:' .. head),
  redis.call('HGET', KEYS[2], 'u:' .. head),
  redis.call('HGET', KEYS[2], 'history') or '',
  now() - redis.call('HGET', KEYS[2], 't:' .. head),
  tried,
  reason,
}
"""
)

FINISH: Final = """
-- KEYS: work, channel, result, notices, dead. ARGV: group, entry, channel's name, index, event id, the result, the history
-- with this utterance in it, or '' to leave it as it was, seconds until all of it expires, notices kept, dead letters kept,
-- then the fields of a dead letter, if it is one.
-- Stores the result and tells its gateway, forgets the audio, and puts the channel's next utterance on the stream.
-- Returns 1, or 0 where the entry is not the channel's turn any more.
if redis.call('HGET', KEYS[2], 'entry') ~= ARGV[2] then
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  return 0
end
local head = redis.call('HGET', KEYS[2], 'head')
redis.call('HDEL', KEYS[2], 'u:' .. head, 'k:' .. head, 't:' .. head, 'i:' .. ARGV[4], 'tries', 'reason')
redis.call('SET', KEYS[3], ARGV[6], 'EX', ARGV[8])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[9], '*', 'id', ARGV[5])
redis.call('EXPIRE', KEYS[4], ARGV[8])
if #ARGV > 10 then redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[10], '*', unpack(ARGV, 11)) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[2], 'history', ARGV[7]) end
head = redis.call('HINCRBY', KEYS[2], 'head', 1)
if redis.call('HEXISTS', KEYS[2], 'u:' .. head) == 1 then
  redis.call('HSET', KEYS[2], 'entry', redis.call('XADD', KEYS[1], '*', 'channel', ARGV[3]))
else
  redis.call('HDEL', KEYS[2], 'entry')
end
redis.call('EXPIRE', KEYS[2], ARGV[8])
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
local oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2] or ARGV[2]
redis.call('XTRIM', KEYS[1], 'MINID', oldest)
return 1
"""

RELEASE: Final = (
    _NOW
    + """
-- KEYS: work, channel. ARGV: group, entry, consumer, channel's name, visibility timeout in ms, why the attempt failed or '',
-- 1 where there was an attempt.
-- After a failure the entry is left as if its worker had been silent for the whole timeout: who looks for such entries finds
-- it, a little later and likely elsewhere. Else the attempt does not count, and a new entry lets anybody go on at once.
if redis.call('HGET', KEYS[2], 'entry') ~= ARGV[2] or not is_ours(KEYS[1], ARGV[1], ARGV[2], ARGV[3]) then
  return 0
end
if ARGV[6] ~= '' then
  redis.call('HSET', KEYS[2], 'reason', ARGV[6])
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[2], 'IDLE', ARGV[5], 'JUSTID')
else
  redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
  if ARGV[7] == '1' then redis.call('HINCRBY', KEYS[2], 'tries', -1) end
  redis.call('HSET', KEYS[2], 'entry', redis.call('XADD', KEYS[1], '*', 'channel', ARGV[4]))
end
return 1
"""
)

BEAT: Final = (
    _NOW
    + """
-- KEYS: work, workers, card. ARGV: group, consumer, ms after which a worker counts as gone, the card, then entries.
-- Says that the worker is there, and renews its hold on the entries that are still its own.
redis.call('SET', KEYS[3], ARGV[4])
redis.call('ZADD', KEYS[2], now(), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now() - ARGV[3])
for at = 5, #ARGV do
  if is_ours(KEYS[1], ARGV[1], ARGV[at], ARGV[2]) then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[at], 'JUSTID')
  end
end
return 1
"""
)

LEAVE: Final = """
-- KEYS: work, workers. ARGV: group, consumer, ms after which a consumer without work is forgotten.
-- Forgets a worker that ends and those that are long gone; who holds work stays, or the work would be lost.
redis.call('ZREM', KEYS[2], ARGV[2])
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = {}
  for at = 1, #row, 2 do consumer[row[at]] = row[at + 1] end
  if consumer.pending == 0 and (consumer.name == ARGV[2] or consumer.idle > tonumber(ARGV[3])) then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], consumer.name)
  end
end
return 1
"""

OFFER: Final = (
    _NOW
    + """
-- KEYS: interims, interim, workers. ARGV: event id, the utterance, ms that it is worth something, how many may wait per
-- worker, ms after which a worker counts as gone.
-- Returns 1, or 0 where there is no room.
local alive = redis.call('ZCOUNT', KEYS[3], now() - ARGV[5], '+inf')
if redis.call('LLEN', KEYS[1]) >= alive * ARGV[4] then return 0 end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
"""
)

ANSWER: Final = """
-- KEYS: result, notices. ARGV: event id, the result, ms that it is kept, notices kept, seconds that notices are kept.
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'id', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[5])
return 1
"""

STATUS: Final = (
    _NOW
    + """
-- KEYS: work, workers, interims, dead. ARGV: group, ms after which a worker counts as gone.
-- Returns how many channels wait for a worker and how many are being scored, ms since the oldest of both came, ms since the
-- oldest that waits came, workers, interim utterances that wait, and dead letters so far.
local function age(entry)
  return entry and math.max(0, now() - string.match(entry, '^%d+')) or 0
end
local waiting, held, oldest, first = redis.call('XLEN', KEYS[1]), 0, false, false
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, row in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for at = 1, #row, 2 do group[row[at]] = row[at + 1] end
    if group.name == ARGV[1] then
      held = group.pending
      waiting = group.lag or 0
      local next = redis.call('XRANGE', KEYS[1], '(' .. group['last-delivered-id'], '+', 'COUNT', 1)[1]
      first = next and next[1]
      oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2] or first
    end
  end
end
local dead = 0
if redis.call('EXISTS', KEYS[4]) == 1 then
  local row = redis.call('XINFO', 'STREAM', KEYS[4])
  for at = 1, #row, 2 do
    if row[at] == 'entries-added' then dead = row[at + 1] end
  end
end
local workers = redis.call('ZCOUNT', KEYS[2], now() - ARGV[2], '+inf')
return {waiting, held, age(oldest), age(first), workers, redis.call('LLEN', KEYS[3]), dead}
"""
)
