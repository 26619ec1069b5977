-- Lanes: which of them call a worker, and their virtual times before and after a round of releases.

-- Whether a gate that operators limit is shut now; by time, somebody is woken when it opens.
local function is_shut(name, now)
  local again = limit(name) and shut(limit(name), nil, now)
  if again then alarm(name, again) end
  return again
end

-- Whether the worker should empty itself for a lane of jobs that are claimed alone; one busy worker at a time does, for as
-- long as it goes on asking. Nobody does for jobs that could not be released then.
local function is_called(want, name, queue, now)
  if want.mode == 'alone' or want.mode == 'staying' then return false end
  if redis.call('SISMEMBER', R .. 'paused', queue) == 1 or is_shut('q:' .. queue, now) then return false end
  local may_run = false
  for _, tenant in ipairs(redis.call('ZRANGE', R .. 'ring:' .. name, 0, 99)) do
    may_run = not is_shut('t:' .. tenant, now)
    if may_run then break end
  end
  local called = may_run and redis.call('GET', R .. 'alone:' .. name)
  if not may_run or want.mode == 'idle' then return may_run and called ~= '-' end
  if called and called ~= want.worker then return false end
  redis.call('SET', R .. 'alone:' .. name, want.worker, 'PX', 30000)
  return true
end

-- What release needs to know of a lane; nil while its queue is paused.
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
