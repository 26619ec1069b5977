-- Lanes: which of them call a worker.

-- Whether a gate that operators limit is shut now; by time, somebody is woken when it opens.
local function is_shut(name, now)
  local again = limit(name) and shut(limit(name), nil, now)
  if again then alarm(name, again) end
  return again
end

-- The lane of the next job of a group whose jobs are claimed alone; none while it could not be released. Lanes that others
-- emptied are forgotten on the way, for nobody else comes by.
local function first_alone(group, now)
  if group.is_paused or (group.queue and is_shut('q:' .. group.queue, now)) then return nil end
  for _, tenant in ipairs(redis.call('ZRANGE', group.ring, 0, 99)) do
    for _, lane in ipairs(is_shut('t:' .. tenant, now) and {} or redis.call('ZRANGE', group.of .. tenant, 0, -1)) do
      if redis.call('EXISTS', backlog({ lane = lane, tenant = tenant })) == 1 then return lane end
      redis.call('ZREM', group.of .. tenant, lane)
    end
    if redis.call('EXISTS', group.of .. tenant) == 0 then
      redis.call('ZREM', group.ring, tenant)
      group.touched = true
    end
  end
end

-- Whether the worker should empty itself for a lane of jobs that are claimed alone; one busy worker at a time does, for as
-- long as it goes on asking.
local function is_called(want, lane)
  if want.mode == 'staying' then return false end
  local called = redis.call('GET', R .. 'alone:' .. lane)
  if want.mode == 'idle' then return called ~= '-' end
  if called and called ~= want.worker then return false end
  redis.call('SET', R .. 'alone:' .. lane, want.worker, 'PX', 30000)
  return true
end
