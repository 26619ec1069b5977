-- Places: who passes its gates, and who has places already.

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
