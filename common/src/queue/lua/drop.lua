-- Drop: forgets claims that Postgres did not confirm, and leases that are nobody's.
-- KEYS[1] root. ARGV: the worker that held them, then for each job: id, attempt.
-- Returns how many it forgot. Redispatch finds what is still queued.
-- Invariant: a lease that somebody else has taken meanwhile stays.
local dropped = 0
for i = 2, #ARGV, 2 do
  local job, r = ARGV[i], get(ARGV[i])
  if r and r.attempt == tonumber(ARGV[i + 1]) and leased(r) and r.extra == ARGV[1] then
    take_out(job, r)
    redis.call('HDEL', IDX, job)
    give_back(job, r, NOTHING)
    dropped = dropped + 1
  end
end
wake_for_fresh()
return dropped
