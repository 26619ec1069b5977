-- Expired: leases that have passed, the longest first. Postgres decides what becomes of their jobs; a job that was held
-- back behind one of them goes to its backlog.
-- KEYS[1] root. ARGV: clock offset ms, most to return, how many of them to go past.
-- Returns a flat list of job, attempt, worker, 1 if the worker has not registered since Redis was wiped.
local out = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', clock(ARGV[1]), 'LIMIT', ARGV[3], ARGV[2])) do
  local r = get(job)
  if r and leased(r) then
    out[#out + 1] = job
    out[#out + 1] = r.attempt
    out[#out + 1] = r.extra
    out[#out + 1] = r.where == 'o' and 1 or 0
  else
    redis.call('ZREM', LEASES, job)
    if r and r.where == 'f' then
      give_back(job, r, KEYS_ONLY)
      enqueue(job, r)
    end
  end
end
wake_for_fresh()
return out
