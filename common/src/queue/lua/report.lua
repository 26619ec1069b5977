-- Report: what became of a call of a model.
-- KEYS[1] root. ARGV: clock offset ms, account, model, call, verdict (g good, b bad, n none), pause ms of the account,
-- tokens more than were admitted (may be negative), time ms that a circuit stays open, failures in a row and of the last
-- twenty that open it, the trial that it gives back because it was never made (as admit said; 0: none).
-- Returns 1 when it opened the circuit, else 0.
-- Invariant: a pause is never made shorter.
local now, A = clock(ARGV[1]), R .. 'm:' .. ARGV[2]
local C, verdict, pause, more = A .. '/' .. ARGV[3], ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7])
redis.call('ZREM', A .. ':live', ARGV[4])
if pause > 0 and now + pause > tonumber(redis.call('HGET', A, 'till') or 0) then
  redis.call('HSET', A, 'till', now + pause)
  redis.call('PEXPIRE', A, math.max(3600000, pause))
end
if more ~= 0 and redis.call('HEXISTS', A, 'level') == 1 then redis.call('HINCRBYFLOAT', A, 'level', -more) end
if tonumber(ARGV[11]) > 0 and tonumber(redis.call('HGET', C, 'open') or 0) == tonumber(ARGV[11]) then
  redis.call('HSET', C, 'open', now)
end
if verdict == 'n' then return 0 end
local was = redis.call('HMGET', C, 'open', 'last')
if verdict == 'g' and was[1] then
  redis.call('DEL', C)
  return 0
end
local last = string.sub((was[2] or '') .. (verdict == 'b' and 'b' or 'g'), -20)
local _, bad = string.gsub(last, 'b', '')
local in_a_row = #string.match(last, 'b*$')
local opens = verdict == 'b' and (was[1] or in_a_row >= tonumber(ARGV[9]) or (#last == 20 and bad >= tonumber(ARGV[10])))
if opens then redis.call('HSET', C, 'open', now + tonumber(ARGV[8]), 'last', '') else redis.call('HSET', C, 'last', last) end
redis.call('PEXPIRE', C, 600000)
return opens and 1 or 0
