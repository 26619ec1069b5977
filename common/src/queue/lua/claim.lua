-- Claim: takes exactly the free slots of one slot class, highest level first, each job into a lease.
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
    release(lane, free * 2)
    lanes[#lanes + 1] = lane
  end
end
local first = #lanes > 0 and tonumber(ARGV[8]) % #lanes or 0
for level = 9, 0, -1 do
  for i = 1, #lanes do
    if free == 0 then break end
    local stream = ready(lanes[(first + i - 1) % #lanes + 1], level)
    for _, entry in ipairs(redis.call('XRANGE', stream, '-', '+', 'COUNT', free)) do
      local job = entry[2][2]
      local r = get(job)
      redis.call('XDEL', stream, entry[1])
      if r and r.where == 'r' and r.extra == entry[1] then
        r.where, r.extra = 'l', worker
        put(job, r)
        redis.call('ZADD', LEASES, now + ttl, job)
        free = free - 1
        out[#out + 1] = job
        out[#out + 1] = r.attempt
        out[#out + 1] = string.find(r.holds, 'v:', 1, true) and 1 or 0
      end
    end
  end
end
for _, lane in ipairs(lanes) do
  local left = redis.call('ZCARD', R .. 'ring:' .. lane)
  for level = 0, 9 do left = left + redis.call('XLEN', ready(lane, level)) end
  if left == 0 then redis.call('SREM', R .. 'lanes', lane) end
end
return out
