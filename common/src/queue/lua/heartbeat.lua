-- Heartbeat: compares the fence, then extends.
-- KEYS[1] root. ARGV: worker, lease ms, clock offset ms, then for each job: id, attempt.
-- Returns for each job: 1 OK, 0 LOST (a later attempt is known), 2 PASSED (ours, but its time is over), -1 UNKNOWN (Redis
-- was wiped, or is behind). After PASSED and UNKNOWN a worker that lived confirms in Postgres and registers again, but gives back what it never began.
-- Invariant: a lease that has passed is never extended.
local now, out = clock(ARGV[3]), {}
for i = 4, #ARGV, 2 do
  local job, r = ARGV[i], get(ARGV[i])
  local attempt = tonumber(ARGV[i + 1])
  if r and r.attempt > attempt then
    out[#out + 1] = 0
  elseif not r or r.attempt < attempt or r.where ~= 'l' or r.extra ~= ARGV[1] then
    out[#out + 1] = -1
  elseif tonumber(redis.call('ZSCORE', LEASES, job) or 0) <= now then
    out[#out + 1] = 2
  else
    redis.call('ZADD', LEASES, 'XX', now + tonumber(ARGV[2]), job)
    out[#out + 1] = 1
  end
end
return out
