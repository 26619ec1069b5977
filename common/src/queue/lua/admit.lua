-- Admit: may a call of a model begin?
-- KEYS[1] root. ARGV: clock offset ms, account, model, call, calls at once (0: any), tokens a minute (0: any), tokens of
-- the call, time ms that its place holds unless it is renewed, time ms of a circuit's trial.
-- Returns what stands in its way and for how many ms: 1 the account is paused, 2 the circuit of its model is open, 3 no place
-- is free, 4 the minute's tokens are used up. When nothing does: 0, and until when ms it tries an open circuit (0: it does not).
-- Invariant: places are a set of calls, never a counter; while a circuit is open one call tries it at a time.
local now, A = clock(ARGV[1]), R .. 'm:' .. ARGV[2]
local C, L = A .. '/' .. ARGV[3], A .. ':live'
local places, rate, need = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local till, open = tonumber(redis.call('HGET', A, 'till') or 0), tonumber(redis.call('HGET', C, 'open') or 0)
if till > now then return { 1, till - now } end
if open > now then return { 2, open - now } end
if places > 0 then
  redis.call('ZREMRANGEBYSCORE', L, '-inf', now)
  if redis.call('ZCARD', L) >= places then return { 3, 100 } end
end
if rate > 0 then
  local kept = redis.call('HMGET', A, 'level', 'at')
  local level = math.min(rate, tonumber(kept[1] or rate) + (now - tonumber(kept[2] or now)) * rate / 60000)
  need = math.min(need, rate)
  if level < need then return { 4, math.ceil((need - level) * 60000 / rate) } end
  redis.call('HSET', A, 'level', level - need, 'at', now)
  redis.call('PEXPIRE', A, 3600000)
end
local trial = open > 0 and now + tonumber(ARGV[9]) or 0
if trial > 0 then redis.call('HSET', C, 'open', trial) end
if places > 0 then
  redis.call('ZADD', L, now + tonumber(ARGV[8]), ARGV[4])
  redis.call('PEXPIRE', L, 3600000)
end
return { 0, trial }
