-- Views: what the workers with the same slot, labels and queues may claim, and how far each tenant is there. Slots of one view
-- are shared by tenants, whatever queues and labels their jobs have; so each view has a virtual time of its own.
-- `views`: slot, labels and queues -> id|seen|written ms|present,released ms,round|groups; id -> slot, labels and queues; # ->
-- the newest of `open`. `seen` is the last of `open` that the view took note of, `round` the newest that came while it released
-- nothing and that it may not have read yet; `groups` are those of its rings that are not empty: each queue that
-- operators limit or pause is one, for all of it may have to wait, and all other queues are `*`; with a ! before it those
-- that are claimed alone.
-- `ring:<id>:<group>`: tenants by their virtual time, or earlier where another ring has moved it or they have been away; at
-- the end those that wait at their own gate. `of:<id>:<group>:<tenant>`: its lanes, by a time of their own. `tv:<id>`:
-- tenants ahead of the present.
local NEWS, LANES, FORGOTTEN, ASLEEP = 1000, 250, 3600000, 1000
local weights = {}

local function weight(of)
  weights[of] = weights[of] or tonumber(redis.call('HGET', R .. 'weights', of) or 1)
  return weights[of]
end

local function group_name(lane)
  local queue, mark = string.match(lane, '^([^/]*)/.-(!?)$')
  return mark .. ((is_paused(queue) or limit('q:' .. queue)) and queue or '*')
end

local function group_of(view, name)
  if not view.groups[name] then
    local mark, queue = string.match(name, '^(!?)(.*)$')
    local at = view.id .. ':' .. name
    view.groups[name] = { name = name, ring = R .. 'ring:' .. at, of = R .. 'of:' .. at .. ':', is_alone = mark == '!' }
    if queue ~= '*' then
      view.groups[name].queue, view.groups[name].gate = queue, limit('q:' .. queue)
      view.groups[name].is_paused = is_paused(queue)
    end
    table.insert(view, view.groups[name])
  end
  return view.groups[name]
end

-- Forgets views of which no worker has been seen for long; one that comes back is begun anew.
local function forget_views(now)
  local known = redis.call('HGETALL', R .. 'views')
  for i = 1, #known, 2 do
    local id, written, groups = string.match(known[i + 1], '^(%d+)|%d+|(%d+)|[^|]*|(.*)$')
    if id and now - written > FORGOTTEN then
      for name in string.gmatch(groups, '%S+') do
        local ring = R .. 'ring:' .. id .. ':' .. name
        for _, tenant in ipairs(redis.call('ZRANGE', ring, 0, -1)) do
          redis.call('DEL', R .. 'of:' .. id .. ':' .. name .. ':' .. tenant)
        end
        redis.call('DEL', ring)
      end
      redis.call('DEL', R .. 'tv:' .. id)
      redis.call('HDEL', R .. 'views', known[i], id)
    end
  end
end

local function open_view(want, now)
  local key = want.slot .. ' ' .. want.labels .. ' ' .. want.queues
  local text = redis.call('HGET', R .. 'views', key)
  if not text then
    forget_views(now)
    local id = string.format('%d', redis.call('HINCRBY', R .. 'views', '#', 1))
    redis.call('HSET', R .. 'views', id, key)
    text = id .. '|0|0||'
  end
  local id, seen, written, times, groups = string.match(text, '^(%d+)|(%d+)|(%d+)|([^|]*)|(.*)$')
  local present, released, round = string.match(times, '^([^,]*),?(%d*),?(%d*)$')
  local view = { key = key, text = text, id = id, seen = seen, written = tonumber(written), present = tonumber(present) }
  view.released, view.round = tonumber(released) or 0, tonumber(round) or 0
  -- Nor does one release anything whose slots are taken for long.
  view.is_asleep = not view.present
    or (now - view.released > ASLEEP and redis.call('ZCOUNT', LEASES, now, '+inf') == 0)
  view.groups, view.times = {}, {}
  for name in string.gmatch(groups, '%S+') do group_of(view, name) end
  return view
end

-- Writes down what has changed of a view.
local function close_view(view, now)
  local names = {}
  for _, group in ipairs(view) do
    if not group.touched or redis.call('EXISTS', group.ring) == 1 then names[#names + 1] = group.name end
  end
  if #names == 0 and view.present then
    redis.call('DEL', R .. 'tv:' .. view.id)
    view.present = nil
  elseif view.has_run then
    redis.call('ZREMRANGEBYSCORE', R .. 'tv:' .. view.id, '-inf', exactly(view.present))
  end
  if view.has_run and now - view.released > ASLEEP / 4 then view.released = now end
  local present = view.present and exactly(view.present) or ''
  local times = string.format('%s,%d,%d', present, view.released, view.round)
  local function text(at)
    return string.format('%s|%s|%d|%s|%s', view.id, view.seen, at, times, table.concat(names, ' '))
  end
  if view.text ~= text(view.written) or now - view.written > FORGOTTEN / 4 then
    redis.call('HSET', R .. 'views', view.key, text(now))
  end
end
