-- Places: `h:<key>` is the set of jobs that hold one, `w:<key>` those that wait, oldest first.
-- A set of job ids, never a counter: it can be rebuilt, and giving back twice does no harm.
local function each_hold(r, visit)
  for key, limit in string.gmatch(r.holds, '([^=,]+)=(%d+)') do
    local stop = visit(key, tonumber(limit))
    if stop then return stop end
  end
end

local function unpark(key)
  while true do
    local job = redis.call('ZPOPMIN', R .. 'w:' .. key)[1]
    if not job then return nil end
    local r = get(job)
    if r and r.where == 'p' then
      enqueue(job, r)
      return r
    end
  end
end

-- Takes all of a job's places, or none and parks it behind the first key that has none free. Other keys that it would
-- have taken a place of let their next waiter try, so that no free place is left unused.
local function take(job, r)
  local full = each_hold(r, function(key, limit)
    if redis.call('SISMEMBER', R .. 'h:' .. key, job) == 0 and redis.call('SCARD', R .. 'h:' .. key) >= limit then return key end
  end)
  if not full then
    each_hold(r, function(key) redis.call('SADD', R .. 'h:' .. key, job) end)
    return true
  end
  r.where, r.extra = 'p', full
  put(job, r)
  redis.call('ZADD', R .. 'w:' .. full, r.score, job)
  each_hold(r, function(key, limit)
    if key ~= full and redis.call('SCARD', R .. 'h:' .. key) < limit then unpark(key) end
  end)
  return false
end

-- Gives back a job's places and lets the next waiters try; also where it had none yet, for it may have been let go to
-- take one. Returns whether there were any.
local function give_back(job, r)
  local woken = false
  each_hold(r, function(key, limit)
    redis.call('SREM', R .. 'h:' .. key, job)
    if redis.call('SCARD', R .. 'h:' .. key) < limit and unpark(key) then woken = true end
  end)
  return woken
end

-- Takes a job out of wherever it is, but for its places and its index entry.
local function take_out(job, r)
  if r.where == 'b' then redis.call('ZREM', R .. 'b:' .. r.lane .. ':' .. r.tenant, job)
  elseif r.where == 'p' then redis.call('ZREM', R .. 'w:' .. r.extra, job)
  elseif r.where == 'r' then redis.call('XDEL', ready(r.lane, r.level), r.extra)
  elseif leased(r) or r.where == 'f' then redis.call('ZREM', LEASES, job) end
end
