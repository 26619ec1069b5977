-- Waiters: who waits at a gate, and who is let go when something is given back.

-- Whether a job's queue releases nothing now.
local function is_held(r)
  local queue = string.match(r.lane, '^[^/]*')
  local gate = limit('q:' .. queue)
  return is_paused(queue)
    or (gate ~= nil and gate.max > 0 and redis.call('SCARD', R .. 'h:q:' .. queue) >= gate.max)
end

-- Where in a ring a tenant stands that comes into it: before all times, so that somebody who has been away does not wait for
-- a round of all others; but at its own time when it left if that is yet to come, so that leaving gains nothing. `ahead` is
-- 2 for who comes with a single job, 1 for who brings more, and 0 for a round that begins at the present time. Each of these
-- is in the order of its arrival.
local function entry(view, present, tenant, arrival, ahead)
  local own = tonumber(redis.call('ZSCORE', R .. 'tv:' .. view, tenant) or 0)
  if own > (present or 0) then return own end
  if ahead == 0 then return (present or 0) + arrival % 50000 * 1e-8 end
  return arrival % 1e9 * 1e-9 - ahead
end

-- Sees to it that a gate at which somebody waits is looked at again in a while, and one at which nobody does is not.
local function watch(name)
  if redis.call('EXISTS', R .. 'w:' .. name) == 1 then
    redis.call('ZADD', TIMERS, 'LT', clock(0) + SERVED, name)
  else
    redis.call('ZREM', TIMERS, name)
  end
end

-- Of so many at the head of a line, lets the first try again for which a worker asks, or for which none does. Those before it
-- whose queues release nothing try when these do, and keep nothing free from the others.
local function let_one_go(name, many, is_asked)
  local line = R .. 'w:' .. name
  for _, job in ipairs(redis.call('ZRANGE', line, 0, many - 1)) do
    local r = get(job)
    local waits = r and r.where == 'p' and r.extra == name
    if not waits then redis.call('ZREM', line, job) end
    if waits and is_served(r.lane) == is_asked then
      redis.call('ZREM', line, job)
      redis.call('ZREM', parked(r), job)
      enqueue(job, r)
      if not is_held(r) then return true end
    end
  end
  return false
end

-- Lets the first that waits at a gate try again; where no worker asks for jobs like it, the first of those behind it for
-- which one does. When nobody takes it, the gate is looked at again.
local function let_go(name)
  local tenant = string.match(name, '^t:(.*)$')
  if tenant then
    local rings = redis.call('SMEMBERS', R .. 'w:' .. name)
    redis.call('DEL', R .. 'w:' .. name)
    for _, ring in ipairs(rings) do
      local view = string.match(ring, '^%d+')
      local known = redis.call('HGET', R .. 'views', redis.call('HGET', R .. 'views', view) or '')
      local present = tonumber(string.match(known or '', '^%d+|%d+|%d+|([^|,]*)') or '')
      local at = entry(view, present, tenant, 0, present and 1 or 0)
      redis.call('ZADD', R .. 'ring:' .. ring, 'XX', exactly(at), tenant)
    end
    return
  end
  if let_one_go(name, 1, true) or let_one_go(name, 1000, true) or let_one_go(name, 200, false) then
    return watch(name)
  end
  -- More of them than one script may move: the next claim goes on.
  if redis.call('EXISTS', R .. 'w:' .. name) == 1 then alarm(name, 1) end
end

-- Lets the next that waits at a gate try again if it is open. The time for that has come.
local function look_at(name, now)
  if string.sub(name, 1, 2) == 't:' then return let_go(name) end
  local first = redis.call('ZRANGE', R .. 'w:' .. name, 0, 0)[1]
  local r = first and get(first)
  for _, gate in ipairs(r and gates_of(r) or {}) do
    local later = gate.name == name and shut(gate, first, now)
    if later then return alarm(name, later) end
  end
  let_go(name)
end
