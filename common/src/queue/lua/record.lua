-- What is known of a dispatched job: one string in the index hash.
--   where|attempt|tenant|lane|level|holds|score|extra
-- where: b backlog, p parked (extra: the key it waits for), r ready (extra: stream entry), l leased (extra: worker),
--        o leased in the name of a worker that has not registered (extra: worker), f held back until the lease of the
--        attempt before has passed, d deferred (retrying or waiting in Postgres; it keeps its places).
-- holds: key=limit, separated by commas. KEYS[1] is the shard's root; every other key begins with it, so all of them
-- carry its hash tag and lie in one slot.
local R = KEYS[1]
local IDX, LEASES = R .. 'idx', R .. 'leases'

local function clock(offset)
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000) + tonumber(offset)
end

local function get(job)
  local text = redis.call('HGET', IDX, job)
  if not text then return nil end
  local w, a, t, l, v, h, s, x = string.match(text, '^(%a)|(%d+)|([^|]*)|([^|]*)|(%d)|([^|]*)|(%d+)|(.*)$')
  return { where = w, attempt = tonumber(a), tenant = t, lane = l, level = v, holds = h, score = s, extra = x }
end

local function put(job, r)
  redis.call('HSET', IDX, job, table.concat({ r.where, r.attempt, r.tenant, r.lane, r.level, r.holds, r.score, r.extra }, '|'))
end

local function leased(r) return r.where == 'l' or r.where == 'o' end

local function ready(lane, level) return R .. 'r:' .. lane .. ':' .. level end

-- Puts a job into its tenant's backlog and the tenant into the lane's ring, at the lane's present virtual time.
local function enqueue(job, r)
  r.where, r.extra = 'b', ''
  put(job, r)
  redis.call('ZADD', R .. 'b:' .. r.lane .. ':' .. r.tenant, r.score, job)
  redis.call('ZADD', R .. 'ring:' .. r.lane, 'NX', redis.call('HGET', R .. 'vt', r.lane) or '0', r.tenant)
  redis.call('SADD', R .. 'lanes', r.lane)
end

local function wake() redis.call('XADD', R .. 'wake', 'MAXLEN', 1, '*', 'w', '1') end
