-- Release: weighted fair admission from the tenants' backlogs of a lane into its ready streams.
-- Each tenant has a virtual time that grows by 1/weight with each job, and the one that is furthest behind is next
-- (stride scheduling, Waldspurger and Weihl, 1995).
local looks = 0

-- What release needs to know of a lane.
local function open_lane(name, score)
  local queue = string.match(name, '^[^/]*')
  if redis.call('SISMEMBER', R .. 'paused', queue) == 1 then return nil end
  local present = redis.call('HGET', R .. 'vt', name)
  return {
    name = name, at = tonumber(score), ring = R .. 'ring:' .. name, gate = limit('q:' .. queue),
    present = tonumber(present or 0), weight = tonumber(redis.call('HGET', R .. 'weights', 'q:' .. queue) or 1), levels = {},
  }
end

-- Whether a tenant may have one more job released; if not, it waits at its gate and not in the ring.
local function may_run(lane, tenant, at, now)
  local gate = limit('t:' .. tenant)
  local again = gate and shut(gate, nil, now)
  if not again then return true end
  redis.call('ZREM', lane.ring, tenant)
  redis.call('ZADD', R .. 'left:' .. lane.name, at, tenant)
  redis.call('SADD', R .. 'w:t:' .. tenant, lane.name)
  alarm(gate.name, again)
  return false
end

-- Releases one job of a lane. Returns whether there was one.
local function release(lane, now)
  while looks > 0 do
    local head = redis.call('ZRANGE', lane.ring, 0, 0, 'WITHSCORES')
    local tenant, again = head[1], lane.gate and shut(lane.gate, nil, now)
    if again then alarm(lane.gate.name, again) end
    if again or not tenant then return false end
    looks = looks - 1
    if may_run(lane, tenant, head[2], now) then
      local key = backlog({ lane = lane.name, tenant = tenant })
      local job = redis.call('ZPOPMIN', key)[1]
      local r = job and get(job)
      if not job then redis.call('ZREM', lane.ring, tenant) end
      if r and r.where == 'b' and take(job, r, now) then
        if limit('t:' .. tenant) then pass(limit('t:' .. tenant), job, now) end
        if lane.gate then pass(lane.gate, job, now) end
        redis.call('XADD', ready(lane.name, r.level), '*', 'j', job)
        lane.levels[tonumber(r.level)] = true
        lane.present = math.max(lane.present, tonumber(head[2]))
        local weight = tonumber(redis.call('HGET', R .. 'weights', tenant) or 1)
        local is_last = redis.call('EXISTS', key) == 0
        if is_last then redis.call('ZREM', lane.ring, tenant) end
        local into = lane.ring
        if is_last then into = R .. 'left:' .. lane.name end
        redis.call('ZADD', into, exactly(tonumber(head[2]) + 1 / weight), tenant)
        return true
      end
    end
  end
  return false
end

-- Writes down a lane's virtual times after a round, `present` that of all lanes; forgets a lane with nothing to release.
local function close_lane(lane, present)
  if redis.call('EXISTS', lane.ring) == 1 then
    redis.call('HSET', R .. 'vt', lane.name, exactly(lane.present), '*', exactly(present))
    redis.call('ZADD', R .. 'lanes', exactly(lane.at), lane.name)
    redis.call('ZREMRANGEBYSCORE', R .. 'left:' .. lane.name, '-inf', exactly(lane.present))
  else
    redis.call('HDEL', R .. 'vt', lane.name)
    redis.call('DEL', R .. 'left:' .. lane.name)
    redis.call('ZREM', R .. 'lanes', lane.name)
    if redis.call('EXISTS', R .. 'lanes') == 0 then redis.call('DEL', R .. 'vt') end
  end
end
