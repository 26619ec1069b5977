-- Release: weighted fair admission from the tenants' backlogs of a lane, one job after the other.
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
    present = tonumber(present or 0), weight = tonumber(redis.call('HGET', R .. 'weights', 'q:' .. queue) or 1),
  }
end

-- Whose turn it is in a lane. It lasts until another is further behind, so that the ring is written once for many jobs.
local function turn_of(lane)
  local ring = not lane.turn and redis.call('ZRANGE', lane.ring, 0, 1, 'WITHSCORES')
  if ring and ring[1] then
    lane.turn = {
      tenant = ring[1], at = tonumber(ring[2]), ends = tonumber(ring[4] or FOREVER), has_run = false,
      key = backlog({ lane = lane.name, tenant = ring[1] }), weight = tonumber(redis.call('HGET', R .. 'weights', ring[1]) or 1),
    }
  end
  return lane.turn
end

-- Writes down what the turn cost. Without a backlog the tenant leaves the ring.
local function end_turn(lane)
  local turn, stays = lane.turn, lane.turn and redis.call('EXISTS', lane.turn.key) == 1
  if turn and not stays then redis.call('ZREM', lane.ring, turn.tenant) end
  if turn and turn.has_run then
    local into = lane.ring
    if not stays then into = R .. 'left:' .. lane.name end
    redis.call('ZADD', into, exactly(turn.at), turn.tenant)
  end
  lane.turn = nil
end

-- Whether a tenant may have one more job released; if not, it waits at its gate and not in the ring.
local function may_run(lane, turn, now)
  local gate = limit('t:' .. turn.tenant)
  local again = gate and shut(gate, nil, now)
  if not again then return true end
  redis.call('ZREM', lane.ring, turn.tenant)
  redis.call('ZADD', R .. 'left:' .. lane.name, exactly(turn.at), turn.tenant)
  redis.call('SADD', R .. 'w:t:' .. turn.tenant, lane.name)
  alarm(gate.name, again)
  lane.turn = nil
  return false
end

-- Releases one job of a lane. Returns it and its record, or nothing.
local function release(lane, now)
  while looks > 0 do
    local turn, again = turn_of(lane), lane.gate and shut(lane.gate, nil, now)
    if again then alarm(lane.gate.name, again) end
    if again or not turn then return nil end
    looks = looks - 1
    if may_run(lane, turn, now) then
      local job = redis.call('ZPOPMIN', turn.key)[1]
      local r = job and get(job)
      local is_free = r and r.where == 'b' and take(job, r, now)
      if is_free then
        if limit('t:' .. turn.tenant) then pass(limit('t:' .. turn.tenant), job, now) end
        if lane.gate then pass(lane.gate, job, now) end
        lane.present = math.max(lane.present, turn.at)
        turn.at, turn.has_run = turn.at + 1 / turn.weight, true
      end
      -- Whoever was let go at a gate may be further behind than all that is known here.
      if not job or turn.at >= turn.ends or (r and r.holds ~= '') then end_turn(lane) end
      if is_free then return job, r end
    end
  end
end

-- Writes down a lane's virtual times after a round, `present` that of all lanes; forgets a lane with nothing to release.
local function close_lane(lane, present)
  end_turn(lane)
  if redis.call('EXISTS', lane.ring) == 1 then
    redis.call('HSET', R .. 'vt', lane.name, exactly(lane.present), '*', exactly(present))
    redis.call('ZADD', R .. 'lanes', exactly(lane.at), lane.name)
    redis.call('ZREMRANGEBYSCORE', R .. 'left:' .. lane.name, '-inf', exactly(lane.present))
  else
    redis.call('HDEL', R .. 'vt', lane.name, lane.name .. '#')
    redis.call('DEL', R .. 'left:' .. lane.name)
    redis.call('ZREM', R .. 'lanes', lane.name)
    if redis.call('EXISTS', R .. 'lanes') == 0 then redis.call('DEL', R .. 'vt') end
  end
end
