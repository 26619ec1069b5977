-- Register: a worker's running attempt, confirmed in Postgres, is put back after Redis was wiped, or after its lease passed.
-- KEYS[1] root. ARGV: worker, lease ms, clock offset ms, then for each job: id, attempt, tenant, lane, level, holds, score.
-- Returns for each job: 1 registered, 0 refused (a later attempt is known).
-- Invariant: only a running attempt that Postgres confirmed comes here, so its places are its own whatever the limits say.
local now, out = clock(ARGV[3]), {}
for i = 4, #ARGV, 7 do
  local job = ARGV[i]
  local r = { where = 'l', extra = ARGV[1], attempt = tonumber(ARGV[i + 1]), tenant = ARGV[i + 2], lane = ARGV[i + 3], level = ARGV[i + 4], holds = ARGV[i + 5], score = ARGV[i + 6] }
  local known = get(job)
  if known and known.attempt > r.attempt then
    out[#out + 1] = 0
  else
    if known then take_out(job, known) end
    put(job, r)
    redis.call('ZADD', LEASES, now + tonumber(ARGV[2]), job)
    hold(job, r)
    out[#out + 1] = 1
  end
end
return out
