-- Dispatch: makes jobs known, so that they can be released.
-- KEYS[1] root. ARGV: most jobs per backlog, clock offset ms, "next" where they are the next of lines at gates, most lanes per
-- tenant, then for each job: id, attempt, tenant, lane, level, holds, score.
-- Returns for each job: 1 added, 0 known already, or that it stays in Postgres: 2 spilled (the backlog is full, or would be
-- one too many), 3 in line (so is the line at one of its gates, and it is not next).
-- Invariant: a job is in one place only, never with an attempt below the one that is known, and is not released while
-- the lease of an attempt before has not passed: its sandbox may still run. A full backlog keeps those that come first.
-- Parked jobs are none of it: they keep nothing from those that may run.
local cap, now, lanes_max, out = tonumber(ARGV[1]), clock(ARGV[2]), tonumber(ARGV[4]), {}

-- Whether a job's lane is one of its tenant's, or may become one: then jobs that came before it may have been left in Postgres.
local lanes = {}
local function has_lane(r)
  local key, of = r.lane .. ' ' .. r.tenant, R .. 'lanes:' .. r.tenant
  if lanes[key] == nil then
    local is_known = redis.call('SISMEMBER', of, r.lane) == 1
    lanes[key] = is_known or redis.call('SCARD', of) < lanes_max
    if not lanes[key] then
      redis.call('SADD', R .. 'crowded', r.tenant)
    elseif not is_known and redis.call('SISMEMBER', R .. 'crowded', r.tenant) == 1 then
      redis.call('SADD', R .. 'spilled', key)
    end
  end
  return lanes[key]
end

-- Whether there is room for a job; one that comes later may have to make some. `full` remembers the last that stays.
local full, room = {}, {}
local function has_room(r)
  local key = r.lane .. ' ' .. r.tenant
  if full[key] and full[key] <= tonumber(r.score) then return false end
  room[key] = (room[key] or cap - redis.call('ZCARD', backlog(r))) - 1
  if room[key] >= 0 then return true end
  full[key] = 0
  local last = redis.call('ZRANGE', backlog(r), -1, -1, 'WITHSCORES')
  if last[1] then full[key] = tonumber(last[2]) end
  if not last[1] or tonumber(last[2]) <= tonumber(r.score) then return false end
  local known = get(last[1])
  take_out(last[1], known)
  redis.call('HDEL', IDX, last[1])
  give_back(last[1], known, NOTHING)
  return true
end

-- Whether a job stands behind others that wait in Postgres for the line at their gate to be half gone.
local has_lines = ARGV[3] == '' and redis.call('EXISTS', R .. 'lines') == 1
local function is_in_line(r)
  for name in string.gmatch(has_lines and r.holds or '', '([^=,]+)=') do
    if redis.call('SISMEMBER', R .. 'lines', name .. ' ' .. r.lane .. ' ' .. r.tenant) == 1 then
      local last = redis.call('ZRANGE', R .. 'w:' .. name, -1, -1, 'WITHSCORES')[2]
      if not last or tonumber(last) <= tonumber(r.score) then return true end
    end
  end
  return false
end

for i = 5, #ARGV, 7 do
  local job = ARGV[i]
  local r = { attempt = tonumber(ARGV[i + 1]), tenant = ARGV[i + 2], lane = ARGV[i + 3], level = ARGV[i + 4], holds = ARGV[i + 5], score = ARGV[i + 6] }
  local known = get(job)
  if known and known.attempt >= r.attempt then
    out[#out + 1] = 0
  elseif not known and is_in_line(r) then
    out[#out + 1] = 3
  elseif not known and not (has_lane(r) and has_room(r)) then
    out[#out + 1] = 2
  elseif known and tonumber(redis.call('ZSCORE', LEASES, job) or 0) > now then
    r.where, r.extra = 'f', ''
    put(job, r)
    out[#out + 1] = 1
  else
    if known then take_out(job, known) end
    -- Places that were taken in the name of a worker which never registered may be too many.
    if known and leased(known) then give_back(job, known, known.where == 'o' and NOTHING or KEYS_ONLY) end
    enqueue(job, r)
    out[#out + 1] = 1
  end
end
for key in pairs(full) do redis.call('SADD', R .. 'spilled', key) end
wake_for_fresh()
return out
