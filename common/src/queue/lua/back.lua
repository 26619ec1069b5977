-- Back: giving places back, and taking jobs out of where they are.

-- What a job keeps when places are given back, as a pattern of gates: the places of agents, queues and tenants are for
-- jobs that run, those of keys and conversations also for jobs that run again.
local NOTHING, KEYS_ONLY, CONVERSATION_ONLY = '^$', '^[cv]:', '^v:'

-- Gives back a job's places, but for those in `kept` (a pattern of gates), and lets the next in line try; also where it
-- had none yet, for it may have been let go to take one. One that goes on is written down for the sweep: no lease of it
-- would pass. Nobody stands in line for a place of a queue, or is known to want one of a tenant: all hear of those.
local function give_back(job, r, kept)
  if kept ~= NOTHING then redis.call('SADD', R .. 'unleased', job) end
  if r.holds == '' and not has_limits() then return end
  for _, gate in ipairs(gates_of(r)) do
    local had = gate.max > 0 and not string.find(gate.name, kept) and redis.call('SREM', R .. 'h:' .. gate.name, job) == 1
    -- Whoever is next may have another limit than this one.
    if had or r.where == 'b' then let_go(gate.name) end
  end
  for _, name in ipairs({ 't:' .. r.tenant, 'q:' .. string.match(r.lane, '^[^/]*') }) do
    if limit(name) and redis.call('SREM', R .. 'h:' .. name, job) == 1 then
      let_go(name)
      is_all_fresh = true
    end
  end
end

-- Takes a job out of wherever it is, but for its places and its index entry.
local function take_out(job, r)
  if r.where == 'b' then redis.call('ZREM', backlog(r), job)
  elseif r.where == 'p' then
    redis.call('ZREM', R .. 'w:' .. r.extra, job)
    redis.call('ZREM', parked(r), job)
    if redis.call('EXISTS', R .. 'w:' .. r.extra) == 0 then redis.call('ZREM', TIMERS, r.extra) end
  elseif leased(r) or r.where == 'f' then redis.call('ZREM', LEASES, job) end
  if r.where == 'b' or r.where == 'p' then close(r.lane, r.tenant) end
end
