-- Dispatch: makes jobs known, so that they can be released.
-- KEYS[1] root. ARGV: most jobs per backlog, clock offset ms, "next" where they are the next of lines at gates, most lanes per
-- tenant, then for each job: id, attempt, tenant, lane, level, holds, score.
-- Returns for each job: 1 added, 0 known already, or that it stays in Postgres: 2 spilled (the backlog is full, or would be
-- one too many), 3 in line (so is the line at one of its gates, and it is not next).
-- Invariant: a job is in one place only, never with an attempt below the one that is known, and is not released while
-- the lease of an attempt before has not passed: its sandbox may still run. A full backlog keeps those that come first.
-- Parked jobs are none of it: they keep nothing from those that may run.
local cap, now, lanes_max, out = tonumber(ARGV[1]), clock(ARGV[2]), tonumber(ARGV[4]), {}

local jobs, texts = {}, {}
for i = 5, #ARGV, 7 do jobs[#jobs + 1] = ARGV[i] end
for at, known in ipairs(texts_of(jobs)) do texts[jobs[at]] = known end

-- Each backlog that these jobs are for: its lane and tenant, and what is found out about it below.
local homes = {}
local function home_of(r)
  local of = homes[r.lane] or {}
  homes[r.lane] = of
  of[r.tenant] = of[r.tenant] or { lane = r.lane, tenant = r.tenant, name = r.lane .. ' ' .. r.tenant }
  return of[r.tenant]
end

-- Jobs enter their backlogs together: `entering` are the homes of such, `entered` which tenants are among them.
local entries, entering, entered = {}, {}, {}

local function add(home, job, r)
  r.where, r.extra = 'b', ''
  texts[job] = text(r)
  entries[#entries + 1], entries[#entries + 2] = job, texts[job]
  if not home.scored then
    home.scored, entered[r.tenant] = {}, true
    entering[#entering + 1] = home
  end
  local scored = home.scored
  scored[#scored + 1], scored[#scored + 2] = r.score, job
end

local function enter_all()
  if #entries == 0 then return end
  redis.call('HSET', IDX, unpack(entries))
  for _, home in ipairs(entering) do
    enter(home, home.scored)
    home.scored = nil
  end
  entries, entering, entered = {}, {}, {}
end

-- Whether a job's lane is one of its tenant's, or may become one: then jobs that came before it may have been left in Postgres.
local function has_lane(home)
  if home.has_lane == nil then
    if entered[home.tenant] then enter_all() end
    local of = R .. 'lanes:' .. home.tenant
    local is_known = redis.call('SISMEMBER', of, home.lane) == 1
    home.has_lane = is_known or redis.call('SCARD', of) < lanes_max
    if not home.has_lane then
      redis.call('SADD', R .. 'crowded', home.tenant)
    elseif not is_known and redis.call('SISMEMBER', R .. 'crowded', home.tenant) == 1 then
      redis.call('SADD', R .. 'spilled', home.name)
    end
  end
  return home.has_lane
end

-- Whether there is room for a job; one that comes later may have to make some. `full` remembers the last that stays. What
-- was to enter before the first of its tenant's lane is asked for has entered, see above.
local function has_room(home, r)
  if home.full and home.full <= tonumber(r.score) then return false end
  home.room = (home.room or cap - redis.call('ZCARD', backlog(home))) - 1
  if home.room >= 0 then return true end
  home.full = 0
  enter_all()
  local last = redis.call('ZRANGE', backlog(home), -1, -1, 'WITHSCORES')
  if last[1] then home.full = tonumber(last[2]) end
  if not last[1] or tonumber(last[2]) <= tonumber(r.score) then return false end
  local known = get(last[1])
  take_out(last[1], known)
  redis.call('HDEL', IDX, last[1])
  texts[last[1]] = nil
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

for at, job in ipairs(jobs) do
  local i = at * 7 - 2
  local r = { attempt = tonumber(ARGV[i + 1]), tenant = ARGV[i + 2], lane = ARGV[i + 3], level = ARGV[i + 4], holds = ARGV[i + 5], score = ARGV[i + 6] }
  local known, home = read(texts[job]), home_of(r)
  -- One that gave its place back before it in this script may have let it go.
  if known and known.where == 'p' then known = get(job) end
  if known and known.attempt >= r.attempt then
    out[#out + 1] = 0
  elseif not known and is_in_line(r) then
    out[#out + 1] = 3
  elseif not known and not (has_lane(home) and has_room(home, r)) then
    out[#out + 1] = 2
  elseif known and tonumber(redis.call('ZSCORE', LEASES, job) or 0) > now then
    r.where, r.extra = 'f', ''
    put(job, r)
    texts[job] = text(r)
    out[#out + 1] = 1
  else
    if known and known.where ~= 'd' then
      enter_all()
      take_out(job, known)
    end
    -- Places that were taken in the name of a worker which never registered may be too many.
    if known and leased(known) then give_back(job, known, known.where == 'o' and NOTHING or KEYS_ONLY) end
    add(home, job, r)
    out[#out + 1] = 1
  end
end
enter_all()
for _, of in pairs(homes) do
  for _, home in pairs(of) do
    if home.full then redis.call('SADD', R .. 'spilled', home.name) end
  end
end
wake_for_fresh()
return out
