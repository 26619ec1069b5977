-- Claim: takes up to the free slots of one slot class, each job into a lease. The lanes share the slots by their queues'
-- weights, the one that is furthest behind first; what is released is handed out highest level first.
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
local now, lanes, out = clock(ARGV[3]), {}, { -1, 0 }
looks, parked_max = free * 8 + 64, tonumber(ARGV[9])
if free > 0 then note(want) end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', TIMERS, '-inf', now, 'LIMIT', 0, 100)) do
  redis.call('ZREM', TIMERS, name)
  if string.sub(name, 1, 2) == 'k:' then end_offers(name, now) else look_at(name, now) end
end
local mine = 'k:' .. want.worker
if want.mode ~= 'alone' and redis.call('EXISTS', R .. 'w:' .. mine) == 1 then end_offers(mine, now, want) end

local known = redis.call('ZRANGE', R .. 'lanes', 0, -1, 'WITHSCORES')
for i = 1, #known, 2 do
  local queue, class = string.match(known[i], '^([^/]*)/(.*)$')
  local is_alone = string.sub(class, -1) == '!'
  if fits(want, queue, class) then
    if is_alone and is_called(want, known[i], queue, now) then out[2] = 1 end
    if is_alone == (want.mode == 'alone') then lanes[#lanes + 1] = open_lane(known[i], known[i + 1]) end
  end
end

local touched, present, levels, entries, leases = {}, 0, {}, {}, {}
local till = string.format('%d', now + ttl)
while free > 0 and #lanes > 0 do
  local first = 1
  for i = 2, #lanes do if lanes[i].at < lanes[first].at then first = i end end
  local lane = lanes[first]
  local job, r = release(lane, now, want.worker)
  if job then
    r.where, r.extra = 'l', want.worker
    entries[#entries + 1], entries[#entries + 2] = job, text(r)
    leases[#leases + 1], leases[#leases + 2] = till, job
    levels[r.level] = levels[r.level] or {}
    table.insert(levels[r.level], { job, r.attempt, string.find(r.holds, 'v:', 1, true) and 1 or 0 })
    touched[lane.name], present, free = lane, math.max(present, lane.at), free - 1
    lane.at = lane.at + 1 / lane.weight
  else
    if want.mode == 'alone' and not touched[lane.name] then redis.call('SET', R .. 'alone:' .. lane.name, '-', 'PX', 10000) end
    touched[lane.name] = touched[lane.name] or lane
    table.remove(lanes, first)
  end
end
if free > 0 and looks == 0 then wake() end

if #leases > 0 then
  redis.call('HSET', IDX, unpack(entries))
  redis.call('ZADD', LEASES, unpack(leases))
end
for _, lane in pairs(touched) do close_lane(lane, present) end
for level = 9, 0, -1 do
  for _, claim in ipairs(levels[tostring(level)] or {}) do
    for _, value in ipairs(claim) do out[#out + 1] = value end
  end
end
local timer = redis.call('ZRANGE', TIMERS, 0, 0, 'WITHSCORES')[2]
if timer then out[1] = math.max(0, timer - now) end
return out
