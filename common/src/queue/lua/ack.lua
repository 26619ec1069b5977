-- Ack: ends leases whose attempt is settled in Postgres.
-- KEYS[1] root. ARGV: seconds that the log is kept, then for each job: id, attempt, seq, keep (0: it has ended; 1: it is
-- tried again and keeps its places; 2: it waits and keeps its conversation's alone, for its children may need the
-- others), unless its worker was told to stop it: then Postgres has cancelled it.
-- Returns how many leases it ended.
-- Invariant: an attempt that is not the known one changes nothing.
local ended, woken, hints = 0, false, {}
for i = 2, #ARGV, 4 do
  local job, r, keep = ARGV[i], get(ARGV[i]), ARGV[i + 3]
  if r and leased(r) and r.attempt == tonumber(ARGV[i + 1]) then
    redis.call('ZREM', LEASES, job)
    local told = redis.call('SREM', R .. 'cancel:' .. r.extra, job)
    if keep ~= '0' and told == 0 then
      local all = r.holds
      if keep == '2' then r.holds = string.match(all, 'v:[^,]+') or '' end
      r.where, r.extra = 'd', ''
      put(job, r)
      if keep == '2' then woken = give_back(job, { holds = (string.gsub(all, 'v:[^,]+', '')) }) or woken end
    else
      redis.call('HDEL', IDX, job)
      woken = give_back(job, r) or woken
    end
    ended = ended + 1
  elseif r and r.where == 'f' and r.attempt == tonumber(ARGV[i + 1]) + 1 then
    -- It was queued again before its worker said so here: what held it back has ended.
    redis.call('ZREM', LEASES, job)
    enqueue(job, r)
    woken = true
  end
  redis.call('EXPIRE', R .. 'log:' .. job, ARGV[1])
  hints[#hints + 1] = job .. ':' .. ARGV[i + 2]
end
if #hints > 0 then redis.call('PUBLISH', R .. 'hints', table.concat(hints, ' ')) end
if woken then wake() end
return ended
