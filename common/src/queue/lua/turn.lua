-- Turns: whose turn it is in a group of a view, and which of its lanes. A turn lasts until another tenant is further behind,
-- so that the ring is written once for many jobs.

-- How many tenants one claim may look at yet: the next goes on.
local looks = 0

-- Writes down what was taken of a turn's lane, and forgets it when it is empty.
local function end_lane(view, turn)
  local lane = turn.lane
  turn.lane = nil
  if not lane then return end
  end_ahead(lane.key)
  local is_only = lane.ends == math.huge
  if redis.call('EXISTS', lane.key) == 0 then
    redis.call('ZREM', turn.lanes, lane.name)
    close(lane.name, turn.tenant)
    turn.is_over = is_only
  elseif lane.has_run and not (is_only and #view == 1) then
    redis.call('ZADD', turn.lanes, exactly(lane.at), lane.name)
  end
end

-- Writes down what a turn cost. Without a lane the tenant leaves the ring; who released nothing stays where it stands.
local function end_turn(view, group)
  local turn = group.turn
  if not turn then return end
  group.turn = nil
  end_lane(view, turn)
  local at = exactly(view.times[turn.tenant])
  if turn.is_over then
    redis.call('ZREM', group.ring, turn.tenant)
  elseif turn.has_run then
    redis.call('ZADD', group.ring, at, turn.tenant)
  end
  if turn.has_run then redis.call('ZADD', R .. 'tv:' .. view.id, at, turn.tenant) end
end

-- How far ahead of a round a tenant goes that comes now: not at all when it came while nothing was released. Who brings more
-- than a job belongs to it too when that may be so.
local function ahead_of(view, group, lane, tenant, arrival)
  if not view.present or group.is_paused or arrival <= view.round then return 0 end
  if redis.call('ZCARD', backlog({ lane = lane, tenant = tenant })) == 1 then return 2 end
  return view.is_asleep and 0 or 1
end

-- Forgets lanes of a tenant that were emptied without a turn of it, now and then: one that comes to a turn only seldom may have
-- filled and emptied any number.
local function forget_lanes(group, tenant)
  local of = group.of .. tenant
  if redis.call('ZCARD', of) % LANES ~= 0 then return end
  for _, lane in ipairs(redis.call('ZRANGE', of, 0, -1)) do
    if redis.call('EXISTS', backlog({ lane = lane, tenant = tenant })) == 0 then redis.call('ZREM', of, lane) end
  end
end

-- Takes a tenant's lane into a view. Beside other lanes of the tenant it begins one job behind the first of them.
local function join(view, lane, tenant, arrival)
  local group, first = group_of(view, group_name(lane)), math.huge
  end_turn(view, group)
  local at = view.times[tenant]
  if not at then
    local ahead = ahead_of(view, group, lane, tenant, arrival)
    at = entry(view.id, view.present, tenant, arrival, ahead)
  end
  local is_new = redis.call('ZADD', group.ring, 'NX', exactly(at), tenant) == 1
  for _, any in ipairs(view) do
    local head = (any ~= group or not is_new) and redis.call('ZRANGE', any.of .. tenant, 0, 0, 'WITHSCORES')
    first = math.min(first, head and tonumber(head[2]) or math.huge)
  end
  redis.call('ZADD', group.of .. tenant, 'NX', first < math.huge and exactly(first + 1) or 0, lane)
  forget_lanes(group, tenant)
  group.touched, group.is_over = true, group.is_paused
end

-- Takes note of what has come into `open`: all of it, or a part when there is much. What came while nothing was released is
-- one round, whoever reads it when.
local function take_note(view, want)
  announced = false
  -- Each costs a look at all groups.
  local most = math.floor(NEWS / math.max(1, #view))
  local news = redis.call('ZRANGEBYSCORE', R .. 'open', '(' .. view.seen, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
  view.has_news = #news == 2 * most
  if view.has_news and view.is_asleep and tonumber(view.seen) >= view.round then
    view.round = tonumber(redis.call('HGET', R .. 'views', '#'))
  end
  for i = 1, #news, 2 do
    local lane, tenant = string.match(news[i], '^(%S+) (.*)$')
    if fits(want, string.match(lane, '^([^/]*)/(.*)$')) then join(view, lane, tenant, tonumber(news[i + 1])) end
    view.seen = news[i + 1]
  end
end

-- Whose turn it is in a group; nil when nobody can have one. A ring may have a tenant earlier than it is: then it goes where
-- it belongs, and the next is looked at. Nobody has a turn before the present time: having waited gains nothing.
local function turn_of(view, group)
  local turn = group.turn
  local left = turn and turn.ends - view.times[turn.tenant]
  if turn and (left < 0 or (left == 0 and turn.has_run)) then end_turn(view, group) end
  while not group.turn do
    local head = redis.call('ZRANGE', group.ring, 0, 1, 'WITHSCORES')
    local tenant, at = head[1], tonumber(head[2])
    group.touched = true
    if not tenant or at == math.huge then return nil end
    local known = view.times[tenant] or tonumber(redis.call('ZSCORE', R .. 'tv:' .. view.id, tenant) or at)
    local least, stands = view.present or at, at
    at = math.max(at, known, least)
    local ends = math.max(tonumber(head[4]) or math.huge, least)
    if at > ends then
      redis.call('ZADD', group.ring, exactly(at), tenant)
      looks = looks - 1
      if looks <= 0 then return nil end
    else
      view.times[tenant] = at
      group.turn = { tenant = tenant, stands = stands, ends = ends, weight = weight(tenant), lanes = group.of .. tenant }
    end
  end
  return group.turn
end

-- The lane of a turn that is furthest behind; nil when the tenant has none. What operators have limited or paused since it came
-- goes to a group of its own, whose turn ends by that.
local function lane_of(view, group)
  local turn = group.turn
  if not turn then return nil end
  while not turn.lane do
    local first = redis.call('ZRANGE', turn.lanes, 0, 1, 'WITHSCORES')
    local name = first[1]
    turn.is_over = not name
    if not name then return nil end
    if not group.queue and group_name(name) ~= group.name then
      redis.call('ZREM', turn.lanes, name)
      join(view, name, turn.tenant, 0)
    else
      turn.lane = {
        name = name, key = backlog({ lane = name, tenant = turn.tenant }), at = tonumber(first[2]),
        ends = tonumber(first[4]) or math.huge, weight = weight('q:' .. string.match(name, '^[^/]*')),
      }
    end
  end
  return turn.lane
end
