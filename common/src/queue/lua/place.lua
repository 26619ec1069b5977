-- Places: who passes its gates, and who has places already.

-- Most jobs of a tenant's lane that are parked, a tenth of them at one gate; claim sets it.
local parked_max = 0

-- Parks a job at a gate that is shut. A line that is too long keeps those that come first: the last goes back to Postgres,
-- unless it has a place, or is claimed alone, until half of the line is gone. `lines` remembers whose line that is.
local function park(job, r, gate)
  local line = R .. 'w:' .. gate.name
  r.where, r.extra = 'p', gate.name
  put(job, r)
  redis.call('ZADD', line, r.score, job)
  redis.call('ZADD', parked(r), r.score, job)
  if redis.call('ZCARD', line) * 10 <= parked_max and redis.call('ZCARD', parked(r)) <= parked_max then return end
  local last = redis.call('ZRANGE', line, -1, -1)[1]
  local gone = get(last)
  if not gone or string.sub(gone.lane, -1) == '!' then return end
  for _, own in ipairs(gates_of(gone)) do
    if redis.call('SISMEMBER', R .. 'h:' .. own.name, last) == 1 then return end
  end
  redis.call('ZREM', line, last)
  redis.call('ZREM', parked(gone), last)
  redis.call('HDEL', IDX, last)
  close(gone.lane, gone.tenant)
  redis.call('SADD', R .. 'lines', gate.name .. ' ' .. gone.lane .. ' ' .. gone.tenant)
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
    park(job, r, behind)
    alarm(behind.name, at)
  end
  for _, gate in ipairs(gates) do
    if not behind then pass(gate, job, now) end
    if gate ~= behind and redis.call('EXISTS', R .. 'w:' .. gate.name) == 1 then
      look_at(gate.name, now)
    end
  end
  return not behind
end

-- The gates at which a job that runs has a place.
local function places_of(r)
  local gates, places = gates_of(r), {}
  gates[#gates + 1] = limit('t:' .. r.tenant)
  gates[#gates + 1] = limit('q:' .. string.match(r.lane, '^[^/]*'))
  for _, gate in ipairs(gates) do
    if gate.max > 0 then places[#places + 1] = gate.name end
  end
  return places
end

-- Takes the places of a job that runs, whatever the limits say: it has them already.
local function hold(job, r)
  for _, name in ipairs(places_of(r)) do redis.call('SADD', R .. 'h:' .. name, job) end
end
