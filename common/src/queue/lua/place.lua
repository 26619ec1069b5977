-- Places: who passes its gates, who waits at one, and who is let go when something is given back.

-- What a job keeps when places are given back, as a pattern of gates: the places of agents, queues and tenants are for
-- jobs that run, those of keys and conversations also for jobs that run again.
local NOTHING, KEYS_ONLY, CONVERSATION_ONLY = '^$', '^[cv]:', '^v:'

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

-- Passes all of a job's own gates, or none and parks it at the first that is shut. The next in line at an open one is
-- let go either way: it passes too, or waits elsewhere and lets the one behind it try, so that nothing free is left unused.
local function take(job, r, now)
  local gates, behind, at = gates_of(r), nil, nil
  for _, gate in ipairs(gates) do
    at = shut(gate, job, now)
    if at then behind = gate; break end
  end
  if behind then
    r.where, r.extra = 'p', behind.name
    put(job, r)
    redis.call('ZADD', R .. 'w:' .. behind.name, r.score, job)
    redis.call('ZADD', parked(r), r.score, job)
    alarm(behind.name, at)
  end
  for _, gate in ipairs(gates) do
    if not behind then pass(gate, job, now) end
    if gate ~= behind and redis.call('EXISTS', R .. 'w:' .. gate.name) == 1 then
      local later = shut(gate, nil, now)
      if later then alarm(gate.name, later) else let_go(gate.name) end
    end
  end
  return not behind
end

-- Takes the places of a job that runs, whatever the limits say: it has them already.
local function hold(job, r)
  local gates = gates_of(r)
  gates[#gates + 1] = limit('t:' .. r.tenant)
  gates[#gates + 1] = limit('q:' .. string.match(r.lane, '^[^/]*'))
  for _, gate in ipairs(gates) do
    if gate.max > 0 then redis.call('SADD', R .. 'h:' .. gate.name, job) end
  end
end

-- Gives back a job's places, but for those in `kept` (a pattern of gates), and lets the next in line try; also where it
-- had none yet, for it may have been let go to take one. Returns whether anybody was let go.
local function give_back(job, r, kept)
  local woken = false
  if r.holds == '' and not has_limits() then return woken end
  for _, gate in ipairs(gates_of(r)) do
    local had = gate.max > 0 and not string.find(gate.name, kept) and redis.call('SREM', R .. 'h:' .. gate.name, job) == 1
    if (had or r.where == 'b') and (gate.max == 0 or redis.call('SCARD', R .. 'h:' .. gate.name) < gate.max) then
      woken = let_go(gate.name) or woken
    end
  end
  for _, name in ipairs({ 't:' .. r.tenant, 'q:' .. string.match(r.lane, '^[^/]*') }) do
    if limit(name) and redis.call('SREM', R .. 'h:' .. name, job) == 1 then
      let_go(name)
      woken = true
    end
  end
  return woken
end

-- Takes a job out of wherever it is, but for its places and its index entry.
local function take_out(job, r)
  if r.where == 'b' then redis.call('ZREM', backlog(r), job)
  elseif r.where == 'p' then
    redis.call('ZREM', R .. 'w:' .. r.extra, job)
    redis.call('ZREM', parked(r), job)
  elseif leased(r) or r.where == 'f' then redis.call('ZREM', LEASES, job) end
end
