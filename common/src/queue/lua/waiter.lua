-- Waiters: who waits at a gate, and who is let go when something is given back.

-- Whether a job's queue releases nothing now.
local function is_held(r)
  local queue = string.match(r.lane, '^[^/]*')
  local gate = limit('q:' .. queue)
  return redis.call('SISMEMBER', R .. 'paused', queue) == 1
    or (gate ~= nil and gate.max > 0 and redis.call('SCARD', R .. 'h:q:' .. queue) >= gate.max)
end

-- Lets the first that waits at a gate try again; those before it whose queues release nothing try when these do, and
-- keep nothing free from the others. Returns whether there was one.
local function let_go(name)
  local tenant = string.match(name, '^t:(.*)$')
  if tenant then
    local lanes = redis.call('SMEMBERS', R .. 'w:' .. name)
    redis.call('DEL', R .. 'w:' .. name)
    for _, lane in ipairs(lanes) do
      if redis.call('EXISTS', backlog({ lane = lane, tenant = tenant })) == 1 then enter(lane, tenant) end
    end
    return #lanes > 0
  end
  for _ = 1, 200 do
    local job = redis.call('ZPOPMIN', R .. 'w:' .. name)[1]
    if not job then return false end
    local r = get(job)
    if r and r.where == 'p' and r.extra == name then
      redis.call('ZREM', parked(r), job)
      enqueue(job, r)
      if not is_held(r) then return true end
    end
  end
  alarm(name, 1) -- More of them than one script may move: the next claim goes on.
  return true
end
