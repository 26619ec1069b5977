-- Drop: forgets claims that Postgres did not confirm, and leases that are nobody's.
-- KEYS[1] root. ARGV: the worker that held them, then for each job: id, attempt.
-- Returns how many it forgot. Redispatch finds what is still queued.
-- Invariant: a lease that somebody else has taken meanwhile stays.
local dropped, woken = 0, false
for i = 2, #ARGV, 2 do
  local job, r = ARGV[i], get(ARGV[i])
  if r and r.attempt == tonumber(ARGV[i + 1]) and leased(r) and r.extra == ARGV[1] then
    take_out(job, r)
    redis.call('HDEL', IDX, job)
    woken = give_back(job, r, NOTHING) or woken
    dropped = dropped + 1
  end
end
if woken then wake() end
return dropped
