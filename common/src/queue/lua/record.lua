-- What is known of a dispatched job: one string in the index hash.
--   where|attempt|tenant|lane|level|holds|score|extra
-- where: b backlog, p parked (extra: the gate it waits at), l leased (extra: worker), o leased in the name of a worker
--        that has not registered (extra: worker), f held back until the lease of the attempt before has passed,
--        d deferred (retrying or waiting in Postgres; it keeps its places).
-- lane: queue/class, and a ! at its end for jobs that are claimed alone.
-- holds: gate=max/rate/window, separated by commas. KEYS[1] is the shard's root; every other key begins with it, so all
-- of them carry its hash tag and lie in one slot.
local R = KEYS[1]
local IDX, LEASES = R .. 'idx', R .. 'leases'

local function clock(offset)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(offset)
end

local function read(text)
  if not text then return nil end
  local w, a, t, l, v, h, s, x = string.match(text, '^(%a)|(%d+)|([^|]*)|([^|]*)|(%d)|([^|]*)|(%d+)|(.*)$')
  return { where = w, attempt = tonumber(a), tenant = t, lane = l, level = v, holds = h, score = s, extra = x }
end

local function get(job) return read(redis.call('HGET', IDX, job)) end

-- The records of some jobs, as they are written; false for those that are not known. Each call from Lua costs about a
-- microsecond beside what it does.
local function texts_of(jobs) return redis.call('HMGET', IDX, unpack(jobs)) end

-- A number that is written as one costs Lua a printf of a float: where it is known to be whole, say so.
local function text(r)
  return r.where .. '|' .. string.format('%d', r.attempt) .. '|' .. r.tenant .. '|' .. r.lane .. '|' .. r.level .. '|' .. r.holds
    .. '|' .. r.score .. '|' .. r.extra
end

local function put(job, r) redis.call('HSET', IDX, job, text(r)) end

local function leased(r) return r.where == 'l' or r.where == 'o' end
local function backlog(r) return R .. 'b:' .. r.lane .. ':' .. r.tenant end
local function parked(r) return R .. 'p:' .. r.lane .. ':' .. r.tenant end

-- Wakes idle workers: those with slots of a kind, or all.
local function wake(slot)
  for _, one in ipairs(slot and { slot } or { 'light', 'sandbox' }) do
    redis.call('XADD', R .. 'wake:' .. one, 'MAXLEN', 1, '*', 'w', '1')
  end
end

local function exactly(number) return string.format('%.17g', number) end

-- Who has something to release. `open` holds every "lane tenant" with a backlog by when that last began, as a growing number;
-- each view of the workers (view.lua) takes note of what is new there at its next claim. `lanes:<tenant>` are a tenant's.
local announced = true

local function announce(lane, tenant)
  redis.call('ZADD', R .. 'open', redis.call('HINCRBY', R .. 'views', '#', 1), lane .. ' ' .. tenant)
  redis.call('SADD', R .. 'lanes:' .. tenant, lane)
  announced = true
end

-- Forgets a tenant's lane when nothing waits in it.
local function close(lane, tenant)
  local r = { lane = lane, tenant = tenant }
  if redis.call('EXISTS', backlog(r), parked(r)) > 0 then return end
  redis.call('ZREM', R .. 'open', lane .. ' ' .. tenant)
  redis.call('SREM', R .. 'lanes:' .. tenant, lane)
end

local paused = nil

local function is_paused(queue)
  if not paused then
    paused = {}
    for _, name in ipairs(redis.call('SMEMBERS', R .. 'paused')) do paused[name] = true end
  end
  return paused[queue] or false
end

-- Slots that have got something to release: of a lane by its name, or all. Nobody needs to hear of a paused queue's lane:
-- who resumes the queue wakes all.
local fresh, is_all_fresh = {}, false

-- Lanes whose backlogs are read ahead (release.lua), by their keys.
local ahead = {}

-- Takes what was released of such a lane out of its backlog. What follows is read anew.
local function end_ahead(key)
  local lane = ahead[key]
  if not lane then return end
  ahead[key] = nil
  if lane.taken > 0 then redis.call('ZREMRANGEBYRANK', lane.key, 0, lane.taken - 1) end
  lane.jobs = nil
end

-- Puts jobs of one backlog into it: `r` is the record of any of them, `scored` their scores and names in turn.
local function enter(r, scored)
  local key = backlog(r)
  -- Where one lets another in there may be more: to read ahead would be in vain.
  if ahead[key] then ahead[key].is_stirred = true end
  end_ahead(key)
  redis.call('ZADD', key, unpack(scored))
  if redis.call('ZCARD', key) * 2 == #scored then announce(r.lane, r.tenant) end
  if fresh[r.lane] == nil then
    local queue, slot = string.match(r.lane, '^([^/]*)/(%a+)')
    fresh[r.lane] = not is_paused(queue) and slot
  end
end

local function enqueue(job, r)
  r.where, r.extra = 'b', ''
  put(job, r)
  enter(r, { r.score, job })
end

-- Wakes the workers whose slots have got something, but for those of one kind.
local function wake_for_fresh(but)
  if is_all_fresh then return wake() end
  local woken = { [but or ''] = true }
  for _, slot in pairs(fresh) do
    if slot and not woken[slot] then wake(slot) end
    woken[slot] = true
  end
end
