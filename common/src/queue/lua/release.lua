-- Release: weighted fair admission from the tenants' backlogs, one job after the other.
-- In each view a tenant's virtual time grows by 1/weight with each job, and the one that is furthest behind is next (stride
-- scheduling, Waldspurger and Weihl, 1995); then the one of its lanes that is furthest behind.

-- The group whose next tenant is furthest behind, or has been away. One tenant that is next in two of them goes on in the
-- lane that is; where a look at these has taken a lane from one group to the other, all are compared anew.
local furthest
function furthest(view, is_alone)
  local first = nil
  for _, group in ipairs(view) do
    local is_asked = not group.is_over and group.is_alone == is_alone
    local turn = is_asked and turn_of(view, group)
    if is_asked and not turn then group.is_over = true end
    local lead = turn and first and view.times[turn.tenant] - view.times[first.turn.tenant]
    if turn and lead == 0 and turn.tenant == first.turn.tenant then
      local here, there = lane_of(view, group), lane_of(view, first)
      if not group.turn or not first.turn then return furthest(view, is_alone) end
      if here and there and here.at < there.at then first = group end
    elseif turn and (not first or lead < 0 or (lead == 0 and turn.stands < first.turn.stands)) then
      first = group
    end
  end
  return first
end

-- Whether a tenant may have one more job released; if not, it waits at its gate, at the end of the ring.
local function may_run(view, group, now)
  local turn = group.turn
  local gate = limit('t:' .. turn.tenant)
  local again = gate and shut(gate, nil, now)
  if not again then return true end
  end_lane(view, turn)
  group.turn = nil
  redis.call('ZADD', group.ring, '+inf', turn.tenant)
  redis.call('ZADD', R .. 'tv:' .. view.id, exactly(view.times[turn.tenant]), turn.tenant)
  redis.call('SADD', R .. 'w:t:' .. turn.tenant, view.id .. ':' .. group.name)
  alarm(gate.name, again)
  return false
end

-- The next job of a turn's lane, which leaves its backlog. What the turn may take in a row is read ahead, and leaves when that
-- is over, or when something enters the backlog meanwhile; then one at a time.
local function next_job(view, turn, lane, free)
  if not lane.jobs or lane.taken == #lane.jobs then
    end_ahead(lane.key)
    local in_turn = math.min((turn.ends - view.times[turn.tenant]) * turn.weight, lane.ends - lane.at) * lane.weight
    local many = math.min(free, math.floor(in_turn) + 1)
    if many <= 1 or lane.is_stirred then
      local job = redis.call('ZPOPMIN', lane.key)[1]
      return job, job and get(job)
    end
    local jobs = redis.call('ZRANGE', lane.key, 0, many - 1)
    if #jobs == 0 then return nil end
    lane.jobs, lane.texts, lane.taken = jobs, texts_of(jobs), 0
    ahead[lane.key] = lane
  end
  lane.taken = lane.taken + 1
  return lane.jobs[lane.taken], read(lane.texts[lane.taken])
end

-- Releases the next job of a group to a worker that has so many slots free. Returns it and its record, or nothing when that
-- cannot be: then the group is over, or somebody else is next.
local function release(view, group, now, worker, free)
  looks = looks - 1
  local again = group.gate and shut(group.gate, nil, now)
  if again then
    alarm(group.gate.name, again)
    group.is_over = true
    return nil
  end
  local turn, lane = group.turn, lane_of(view, group)
  if not lane then
    end_turn(view, group)
    return nil
  end
  if not may_run(view, group, now) then return nil end
  local job, r = next_job(view, turn, lane, free)
  local is_free = r and r.where == 'b' and (r.holds == '' or (not offer(job, r, worker, now) and take(job, r, now)))
  if is_free then
    local gate = limit('t:' .. turn.tenant)
    if gate then pass(gate, job, now) end
    if group.gate then pass(group.gate, job, now) end
    local at = view.times[turn.tenant]
    view.present, view.has_run = math.max(view.present or at, at), true
    view.times[turn.tenant] = at + 1 / (turn.weight * lane.weight)
    lane.at, lane.has_run, turn.has_run = lane.at + 1 / lane.weight, true, true
  end
  if not job or lane.at > lane.ends then end_lane(view, turn) end
  if is_free then return job, r end
end
