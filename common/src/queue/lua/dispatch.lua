-- Dispatch: makes jobs known, so that they can be released.
-- KEYS[1] root. ARGV: most jobs per backlog, clock offset ms, then for each job: id, attempt, tenant, lane, level, holds,
-- score.
-- Returns for each job: 1 added, 0 known already, 2 spilled (the backlog is full: it stays in Postgres).
-- Invariant: a job is in one place only, never with an attempt below the one that is known, and is not released while
-- the lease of an attempt before has not passed: its sandbox may still run.
local cap, now, out, added = tonumber(ARGV[1]), clock(ARGV[2]), {}, false
local full = {}
for i = 3, #ARGV, 7 do
  local job = ARGV[i]
  local r = { attempt = tonumber(ARGV[i + 1]), tenant = ARGV[i + 2], lane = ARGV[i + 3], level = ARGV[i + 4], holds = ARGV[i + 5], score = ARGV[i + 6] }
  local known = get(job)
  if known and known.attempt >= r.attempt then
    out[#out + 1] = 0
  elseif not known and (full[r.lane .. ' ' .. r.tenant] or redis.call('ZCARD', R .. 'b:' .. r.lane .. ':' .. r.tenant) >= cap) then
    full[r.lane .. ' ' .. r.tenant] = true
    out[#out + 1] = 2
  elseif known and tonumber(redis.call('ZSCORE', LEASES, job) or 0) > now then
    r.where, r.extra = 'f', ''
    put(job, r)
    out[#out + 1] = 1
  else
    if known then take_out(job, known) end
    enqueue(job, r)
    out[#out + 1] = 1
    added = true
  end
end
for backlog in pairs(full) do redis.call('SADD', R .. 'spilled', backlog) end
if added then wake() end
return out
