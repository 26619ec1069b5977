-- Adopt: leases in the name of workers that Postgres says run a job of which Redis does not know: it was wiped, or is
-- behind. A worker that lives registers within the lease's time; else it passes, and its job is taken over as any other.
-- KEYS[1] root. ARGV: lease ms, clock offset ms, then for each job: id, attempt, tenant, lane, level, holds, score, worker.
-- Returns how many leases it began.
-- Invariant: a lease that is known is not extended: only its worker may do that. Places are taken whatever the limits
-- say, for the job has them already.
local now, begun = clock(ARGV[2]), 0
for i = 3, #ARGV, 8 do
  local job = ARGV[i]
  local r = { where = 'o', extra = ARGV[i + 7], attempt = tonumber(ARGV[i + 1]), tenant = ARGV[i + 2], lane = ARGV[i + 3], level = ARGV[i + 4], holds = ARGV[i + 5], score = ARGV[i + 6] }
  local known = get(job)
  local is_same = known and known.attempt == r.attempt and leased(known) and known.extra == r.extra
  if not is_same and not (known and known.attempt > r.attempt) then
    if known then take_out(job, known) end
    put(job, r)
    redis.call('ZADD', LEASES, now + tonumber(ARGV[1]), job)
    hold(job, r)
    begun = begun + 1
  end
end
return begun
