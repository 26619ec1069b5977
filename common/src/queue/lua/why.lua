-- Why: where a job is, and what it waits for. Changes nothing.
-- KEYS[1] root. ARGV: job, clock offset ms.
-- Returns nothing for an unknown job, else where it is, the gate it waits at or "", when that may open by time (0: when
-- a place is given back), how many of its tenant come before it, 1 if it is claimed alone, 1 if the gate is paused.
local job, now, paused = ARGV[1], clock(ARGV[2]), '0'
local r = get(job)
if not r then return {} end
local gate, at, ahead = '', 0, 0
if r.where == 'p' then
  gate = r.extra
  for _, own in ipairs(gates_of(r)) do
    if own.name == gate then at, paused = shut(own, job, now) or 0, own.till > now and '1' or '0' end
  end
  ahead = redis.call('ZRANK', R .. 'w:' .. gate, job) or 0
elseif r.where == 'b' then
  ahead = redis.call('ZRANK', backlog(r), job) or 0
  for _, name in ipairs({ 'q:' .. string.match(r.lane, '^[^/]*'), 't:' .. r.tenant }) do
    local again = limit(name) and shut(limit(name), nil, now)
    if again then gate, at, paused = name, again, limit(name).till > now and '1' or '0' end
  end
end
return { r.where, gate, exactly(at), tostring(ahead), string.sub(r.lane, -1) == '!' and '1' or '0', paused }
