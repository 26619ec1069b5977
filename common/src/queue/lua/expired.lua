-- Expired: leases that have passed, the longest first. Changes nothing: Postgres decides what becomes of them.
-- KEYS[1] root. ARGV: clock offset ms, most to return.
-- Returns a flat list of job, attempt, worker.
local out = {}
for _, job in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', clock(ARGV[1]), 'LIMIT', 0, ARGV[2])) do
  local r = get(job)
  if r and r.where == 'l' then
    out[#out + 1] = job
    out[#out + 1] = r.attempt
    out[#out + 1] = r.extra
  else
    redis.call('ZREM', LEASES, job)
  end
end
return out
