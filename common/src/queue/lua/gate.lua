-- Gates: what a job passes before it runs. t:<tenant> and q:<queue> are passed by every job; the others are in its
-- record: a:<agent>, c:<concurrency key>, v:<conversation>, x:<rate key>.
-- `h:<gate>` is the set of jobs that have a place, never a counter; `s:<gate>` the last starts, newest first, as many as the
-- largest of their limits needs (`n:<gate>`: rate|window ms); `w:<gate>` those that wait there, oldest first (w:t:<tenant>:
-- rings at whose end the whole tenant waits); `limits` what operators set, gate -> max|rate|window ms|paused till ms, 0 for none;
-- `timers` when a gate may open by time.
local LIMITS, TIMERS, FOREVER = R .. 'limits', R .. 'timers', 9007199254740991
local rows, is_limited = {}, nil

local function has_limits()
  if is_limited == nil then is_limited = redis.call('EXISTS', LIMITS) == 1 end
  return is_limited
end

local function limit(gate)
  if has_limits() and rows[gate] == nil then
    local m, n, w, u = string.match(redis.call('HGET', LIMITS, gate) or '', '^(%d+)|(%d+)|(%d+)|(%d+)$')
    rows[gate] = m and { name = gate, max = tonumber(m), rate = tonumber(n), window = tonumber(w), till = tonumber(u) } or false
  end
  return rows[gate] or nil
end

-- The gates in a job's record; what it says itself counts before what an operator set.
local function gates_of(r)
  local gates = {}
  for name, m, n, w in string.gmatch(r.holds, '([^=,]+)=(%d+)/?(%d*)/?(%d*)') do
    local set = limit(name) or { max = 0, rate = 0, window = 0, till = 0 }
    local max, rate = tonumber(m), tonumber(n) or 0
    gates[#gates + 1] = {
      name = name, max = max > 0 and max or set.max, till = set.till,
      rate = rate > 0 and rate or set.rate, window = rate > 0 and tonumber(w) or set.window,
    }
  end
  return gates
end

-- False when a job may pass now, else when to look again, ms; 0: when a place is given back.
local function shut(gate, job, now)
  if gate.till > now then return gate.till end
  if gate.max > 0 and redis.call('SCARD', R .. 'h:' .. gate.name) >= gate.max
    and not (job and redis.call('SISMEMBER', R .. 'h:' .. gate.name, job) == 1) then return 0 end
  local start = gate.rate > 0 and tonumber(redis.call('LINDEX', R .. 's:' .. gate.name, gate.rate - 1) or 0) or 0
  return start + gate.window > now and gate.rate > 0 and start + gate.window
end

-- Takes a place, and counts a start.
local function pass(gate, job, now)
  if gate.max > 0 then redis.call('SADD', R .. 'h:' .. gate.name, job) end
  if gate.rate > 0 then
    -- Jobs of one key may name different limits: all that the largest of them needs is kept, for as long.
    local starts, largest = R .. 's:' .. gate.name, R .. 'n:' .. gate.name
    local rate, window = string.match(redis.call('GET', largest) or '', '^(%d+)|(%d+)$')
    rate, window = math.max(gate.rate, tonumber(rate) or 0), math.max(gate.window, tonumber(window) or 0)
    redis.call('LPUSH', starts, now)
    redis.call('LTRIM', starts, 0, rate - 1)
    redis.call('PEXPIRE', starts, window)
    redis.call('SET', largest, string.format('%d|%d', rate, window), 'PX', window)
  end
end

-- Remembers when to look at a gate again: for whom it opens first, as each is held to its own limit. Workers that sleep longer
-- than that are woken to hear of it.
local function alarm(name, at)
  if at <= 0 or at >= FOREVER then return end
  local first = redis.call('ZRANGE', TIMERS, 0, 0, 'WITHSCORES')[2]
  redis.call('ZADD', TIMERS, 'LT', at, name)
  if not first or at < tonumber(first) then wake() end
end
