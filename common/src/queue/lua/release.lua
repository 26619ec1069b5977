-- Release: weighted fair admission from the tenants' backlogs of a lane into its ready streams.
-- Each tenant has a virtual time that grows by 1/weight with each job; the one that is furthest behind is next, and one
-- that comes back from idleness starts at the lane's present time, so it gains no credit (stride scheduling,
-- Waldspurger and Weihl, 1995).
local function release(lane, window)
  if redis.call('SISMEMBER', R .. 'paused', string.match(lane, '^[^/]*')) == 1 then return 0 end
  local free, scanned = window, 0
  for level = 0, 9 do free = free - redis.call('XLEN', ready(lane, level)) end
  local ring = R .. 'ring:' .. lane
  while free > 0 and scanned < window * 8 + 64 do
    scanned = scanned + 1
    local head = redis.call('ZRANGE', ring, 0, 0, 'WITHSCORES')
    local tenant = head[1]
    if not tenant then break end
    local backlog = R .. 'b:' .. lane .. ':' .. tenant
    local job = redis.call('ZPOPMIN', backlog)[1]
    local r = job and get(job)
    if not job then
      redis.call('ZREM', ring, tenant)
    elseif r and r.where == 'b' and take(job, r) then
      r.extra = redis.call('XADD', ready(lane, r.level), '*', 'j', job)
      r.where = 'r'
      put(job, r)
      free = free - 1
      redis.call('HSET', R .. 'vt', lane, head[2])
      if redis.call('EXISTS', backlog) == 0 then
        redis.call('ZREM', ring, tenant)
      else
        redis.call('ZADD', ring, tostring(tonumber(head[2]) + 1 / tonumber(redis.call('HGET', R .. 'weights', tenant) or 1)), tenant)
      end
    end
  end
  return free
end
