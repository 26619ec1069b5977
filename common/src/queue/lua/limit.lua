-- Limit: sets what operators decide of gates, and lets those try that waited there.
-- KEYS[1] root. ARGV: for each gate: its name, max|rate|window ms|paused till ms (0: none), or "" to remove all of it.
-- Returns how many gates it changed.
-- Invariant: a place that is limited from now on is held by every job that runs already.
local changed = 0
for i = 1, #ARGV, 2 do
  local name, text = ARGV[i], ARGV[i + 1]
  local before = redis.call('HGET', LIMITS, name) or ''
  if before ~= text then
    local kind, of = string.match(name, '^(%a):(.*)$')
    local was, is = tonumber(string.match(before, '^%d+') or 0), tonumber(string.match(text, '^%d+') or 0)
    if text == '' then redis.call('HDEL', LIMITS, name) else redis.call('HSET', LIMITS, name, text) end
    for _, job in ipairs(was == 0 and is > 0 and redis.call('ZRANGE', LEASES, 0, -1) or {}) do
      local r = get(job)
      local is_its = r and leased(r) and (kind == 't' and r.tenant == of or kind == 'q' and string.match(r.lane, '^[^/]*') == of
        or string.find(r.holds, name .. '=', 1, true))
      if is_its then redis.call('SADD', R .. 'h:' .. name, job) end
    end
    if was > 0 and is == 0 then redis.call('DEL', R .. 'h:' .. name) end
    redis.call('ZREM', TIMERS, name)
    let_go(name)
    changed = changed + 1
  end
end
if changed > 0 then wake() end
return changed
