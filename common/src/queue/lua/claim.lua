-- Claim: takes up to the free slots of one slot class, each job into a lease. The tenants share the slots by their weights,
-- the one that is furthest behind first; what is released is handed out highest level first.
-- KEYS[1] root. ARGV: worker, lease ms, clock offset ms, free slots (1,000 at most, as all are written with one command),
-- slot (light|sandbox), the worker's labels as ",a,b,", its queues as ",x,y," or "" for all, mode: busy, staying (it does
-- not empty itself now), idle (it holds nothing), alone (it holds nothing, and claims nothing else until this job has ended).
-- Last, most jobs of a tenant's lane that may be parked.
-- Returns -1 while the shard is closed (Redis is new: running jobs register first), else a flat list: ms until a gate
-- may open (-1: none), 1 if the worker should come back alone; then for each job its id, attempt, 1 if it is a turn.
-- Invariant: one move from the backlog into the lease; nothing blocks. A job that is claimed alone is claimed in mode
-- alone only.
if redis.call('HGET', R .. 'gen', 'open') ~= '1' then return -1 end
local ttl, free = tonumber(ARGV[2]), tonumber(ARGV[4])
local want = { worker = ARGV[1], slot = ARGV[5], labels = ARGV[6], queues = ARGV[7], mode = ARGV[8] }
local now, out = clock(ARGV[3]), { -1, 0 }
looks, parked_max = free * 8 + 64, tonumber(ARGV[9])
if free > 0 then note(want) end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', TIMERS, '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', TIMERS, name)
  if string.sub(name, 1, 2) == 'k:' then end_offers(name, now) else look_at(name, now) end
end
local mine = 'k:' .. want.worker
if want.mode ~= 'alone' and redis.call('EXISTS', R .. 'w:' .. mine) == 1 then end_offers(mine, now, want) end

local view, is_alone = open_view(want, now), want.mode == 'alone'
take_note(view, want)
for _, group in ipairs(view) do
  group.is_over = group.is_paused
  local lane = group.is_alone and first_alone(group, now)
  if lane and is_alone then group.called = lane end
  if lane and not is_alone and is_called(want, lane) then out[2] = 1 end
end

local levels, entries, leases = {}, {}, {}
local till = string.format('%d', now + ttl)
local function release_all()
  while free > 0 and looks > 0 do
    if announced then take_note(view, want) end
    local group = furthest(view, is_alone)
    if not group then break end
    local job, r = release(view, group, now, want.worker, free)
    if job then
      r.where, r.extra = 'l', want.worker
      entries[#entries + 1], entries[#entries + 2] = job, text(r)
      leases[#leases + 1], leases[#leases + 2] = till, job
      levels[r.level] = levels[r.level] or {}
      table.insert(levels[r.level], { job, r.attempt, r.holds ~= '' and string.find(r.holds, 'v:', 1, true) and 1 or 0 })
      free = free - 1
    end
  end
end

-- What has been released has left its backlog: whatever happens then, it must get its lease.
local is_well, fault = pcall(release_all)
if #leases > 0 then
  redis.call('HSET', IDX, unpack(entries))
  redis.call('ZADD', LEASES, unpack(leases))
elseif not is_well then
  error(fault)
end
if not is_well then redis.log(redis.LOG_WARNING, 'claim: ' .. tostring(type(fault) == 'table' and fault.err or fault)) end

if free > 0 and (looks <= 0 or view.has_news) then wake(want.slot) end
-- What it let go, and has room for, it has looked at itself, unless that is for others.
local has_looked = free > 0
for lane, slot in pairs(fresh) do
  local is_for_it = (string.sub(lane, -1) == '!') == is_alone and fits(want, string.match(lane, '^([^/]*)/(.*)$'))
  if slot == want.slot and not is_for_it then has_looked = false end
end
wake_for_fresh(has_looked and want.slot)

for _, group in ipairs(view) do
  if group.called and #leases == 0 then redis.call('SET', R .. 'alone:' .. group.called, '-', 'PX', 10000) end
  end_turn(view, group)
end
close_view(view, now)
for level = 9, 0, -1 do
  for _, claim in ipairs(levels[tostring(level)] or {}) do
    for _, value in ipairs(claim) do out[#out + 1] = value end
  end
end
local timer = redis.call('ZRANGE', TIMERS, 0, 0, 'WITHSCORES')[2]
if timer then out[1] = math.max(0, timer - now) end
return out
