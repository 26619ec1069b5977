-- Release: weighted fair admission from the tenants' backlogs of a lane, one job after the other.
-- Each tenant has a virtual time that grows by 1/weight with each job, and the one that is furthest behind is next
-- (stride scheduling, Waldspurger and Weihl, 1995).
local looks = 0

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

-- Releases one job of a lane to a worker. Returns it and its record, or nothing.
local function release(lane, now, worker)
  while looks > 0 do
    local turn, again = turn_of(lane), lane.gate and shut(lane.gate, nil, now)
    if again then alarm(lane.gate.name, again) end
    if again or not turn then return nil end
    looks = looks - 1
    if may_run(lane, turn, now) then
      local job = redis.call('ZPOPMIN', turn.key)[1]
      local r = job and get(job)
      local is_free = r and r.where == 'b' and not offer(job, r, worker, now) and take(job, r, now)
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
