-- Claim: takes exactly the free slots of one slot class, each job into a lease. The lanes share the slots in turn; in a
-- lane what is released goes highest level first.
-- KEYS[1] root. ARGV: worker, lease ms, clock offset ms, free slots, slot (light|sandbox), the worker's labels as
-- ",a,b,", its queues as ",x,y," or "" for all, most to start the lanes' rotation at.
-- Returns -1 while the shard is closed (Redis is new: running jobs register first), else a flat list of
-- job, attempt, 1 if it is a conversation's turn.
-- Invariant: one move from the ready stream into the lease; nothing blocks.
if redis.call('HGET', R .. 'gen', 'open') ~= '1' then return -1 end
local worker, ttl, free, slot, labels, queues = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4]), ARGV[5], ARGV[6], ARGV[7]
local now, lanes, out = clock(ARGV[3]), {}, {}
for _, lane in ipairs(redis.call('SMEMBERS', R .. 'lanes')) do
  local queue, class = string.match(lane, '^([^/]*)/(.*)$')
  local fits = string.match(class, '^[^+]*') == slot and (queues == '' or string.find(queues, ',' .. queue .. ',', 1, true))
  for label in string.gmatch(class, '%+([^+]+)') do
    fits = fits and string.find(labels, ',' .. label .. ',', 1, true)
  end
  if fits then
    lanes[#lanes + 1] = lane
  end
end
local function take_from(lane, count)
  local taken = 0
  release(lane, count)
  for level = 9, 0, -1 do
    local stream = ready(lane, level)
    for _, entry in ipairs(taken < count and redis.call('XRANGE', stream, '-', '+', 'COUNT', count - taken) or {}) do
      local job = entry[2][2]
      local r = get(job)
      redis.call('XDEL', stream, entry[1])
      if r and r.where == 'r' and r.extra == entry[1] then
        r.where, r.extra = 'l', worker
        put(job, r)
        redis.call('ZADD', LEASES, now + ttl, job)
        taken = taken + 1
        out[#out + 1] = job
        out[#out + 1] = r.attempt
        out[#out + 1] = string.find(r.holds, 'v:', 1, true) and 1 or 0
      end
    end
  end
  return taken
end
local first = #lanes > 0 and tonumber(ARGV[8]) % #lanes or 0
repeat
  local before, share = free, math.max(1, math.floor(free / math.max(1, #lanes)))
  for i = 1, #lanes do
    if free > 0 then free = free - take_from(lanes[(first + i - 1) % #lanes + 1], math.min(share, free)) end
  end
until free == 0 or free == before
for _, lane in ipairs(lanes) do
  if redis.call('EXISTS', R .. 'ring:' .. lane) == 0 then
    for level = 0, 9 do redis.call('DEL', ready(lane, level)) end
    redis.call('HDEL', R .. 'vt', lane)
    redis.call('SREM', R .. 'lanes', lane)
  end
end
return out
