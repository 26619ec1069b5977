-- Sticky: a turn is offered to the worker that keeps its conversation's sandbox, and a moment later to everyone.
-- `kept:<conversation gate>` is that worker and, once the turn was offered, when the offer ends, ms. An offered turn is
-- parked at k:<worker>, in whose `w:` its score is that end; the worker's next claim takes it back into the backlog, as
-- does whoever comes when the offer has ended. So a dead worker costs OFFER ms, once a turn, and a wipe costs the sandbox.
local OFFER = 50

-- Offers a job that a worker is about to get to the one that keeps its sandbox. Returns whether it did.
local function offer(job, r, worker, now)
  local gate = string.match(r.holds, 'v:[^=]*')
  if not gate or string.sub(r.lane, -1) == '!' then return false end
  local places = R .. 'h:' .. gate
  if redis.call('SCARD', places) > redis.call('SISMEMBER', places, job) then return false end
  local keeper, ends = string.match(redis.call('GET', R .. 'kept:' .. gate) or '', '^(%S+) ?(%d*)$')
  if not keeper or keeper == worker or (ends ~= '' and tonumber(ends) <= now) then return false end
  if ends == '' then
    ends = now + OFFER
    redis.call('SET', R .. 'kept:' .. gate, keeper .. ' ' .. exactly(ends), 'KEEPTTL')
  end
  r.where, r.extra = 'p', 'k:' .. keeper
  put(job, r)
  redis.call('ZADD', R .. 'w:' .. r.extra, exactly(ends), job)
  redis.call('ZADD', parked(r), r.score, job)
  local known = redis.call('ZSCORE', TIMERS, r.extra)
  if not known or tonumber(known) > tonumber(ends) then alarm(r.extra, tonumber(ends)) end
  return true
end

-- Takes jobs offered to a worker back into their backlogs: those of lanes that `want` serves, or without `want` those whose
-- offer has ended.
local function end_offers(name, now, want)
  for _, job in ipairs(redis.call('ZRANGEBYSCORE', R .. 'w:' .. name, '-inf', want and '+inf' or now, 'LIMIT', 0, 1000)) do
    local r = get(job)
    if not want or (r and fits(want, string.match(r.lane, '^([^/]*)/(.*)$'))) then
      redis.call('ZREM', R .. 'w:' .. name, job)
      if r and r.where == 'p' and r.extra == name then
        redis.call('ZREM', parked(r), job)
        enqueue(job, r)
      end
    end
  end
  local first = redis.call('ZRANGE', R .. 'w:' .. name, 0, 0, 'WITHSCORES')[2]
  if first then redis.call('ZADD', TIMERS, first, name) else redis.call('ZREM', TIMERS, name) end
end
