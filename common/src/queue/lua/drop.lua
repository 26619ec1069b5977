-- Drop: forgets claims that Postgres did not confirm, and leases that are nobody's.
-- KEYS[1] root. ARGV: the worker that held them, clock offset ms, "passed" for those alone whose leases have passed, else
-- "", then for each job: id, attempt.
-- Returns how many it forgot. Redispatch finds what is still queued.
-- Invariant: a lease that somebody else has taken meanwhile stays.
local dropped, now = 0, clock(ARGV[2])
for i = 4, #ARGV, 2 do
  local job, r = ARGV[i], get(ARGV[i])
  local is_its = r and r.attempt == tonumber(ARGV[i + 1]) and leased(r) and r.extra == ARGV[1]
  if is_its and (ARGV[3] ~= 'passed' or tonumber(redis.call('ZSCORE', LEASES, job) or 0) <= now) then
    take_out(job, r)
    redis.call('HDEL', IDX, job)
    give_back(job, r, NOTHING)
    dropped = dropped + 1
  end
end
wake_for_fresh()
return dropped
