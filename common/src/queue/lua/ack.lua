-- Ack: ends leases whose attempt is settled in Postgres.
-- KEYS[1] root. ARGV: seconds that the log is kept, then for each job: id, attempt, seq, keep (1: the job is
-- retrying or waiting and keeps its places, unless its worker was told to stop it: then Postgres has cancelled it).
-- Returns how many leases it ended.
-- Invariant: an attempt that is not the known one changes nothing.
local ended, woken = 0, false
for i = 2, #ARGV, 4 do
  local job, r = ARGV[i], get(ARGV[i])
  if r and leased(r) and r.attempt == tonumber(ARGV[i + 1]) then
    redis.call('ZREM', LEASES, job)
    if ARGV[i + 3] == '1' and redis.call('SISMEMBER', R .. 'cancel:' .. r.extra, job) == 0 then
      r.where, r.extra = 'd', ''
      put(job, r)
    else
      redis.call('HDEL', IDX, job)
      woken = give_back(job, r) or woken
    end
    ended = ended + 1
  end
  redis.call('EXPIRE', R .. 'log:' .. job, ARGV[1])
  redis.call('PUBLISH', R .. 'hints', job .. ':' .. ARGV[i + 2])
end
if woken then wake() end
return ended
