-- Stray: entries that nobody looks at until something else happens: deferred jobs, and those that may have a place and have
-- no lease. Their row may have ended by a hand that could not tell Redis.
-- KEYS[1] root. ARGV: where to look: unleased (jobs that went on after an attempt) or idx (all), cursor, entries to look at.
-- Returns the next cursor (0: the end), then jobs.
-- Invariant: a job that went on stays in `unleased` until it is seen here with a lease, or without an entry.
local out = {}
if ARGV[1] == 'unleased' then
  local reply = redis.call('SSCAN', R .. 'unleased', ARGV[2], 'COUNT', ARGV[3])
  out[1] = reply[1]
  for _, job in ipairs(reply[2]) do
    local r = get(job)
    if r and not leased(r) then out[#out + 1] = job else redis.call('SREM', R .. 'unleased', job) end
  end
  return out
end
local reply = redis.call('HSCAN', IDX, ARGV[2], 'COUNT', ARGV[3])
out[1] = reply[1]
for i = 1, #reply[2], 2 do
  local where, holds = string.match(reply[2][i + 1], '^(%a)|%d+|[^|]*|[^|]*|%d|([^|]*)|')
  if where == 'd' or (holds ~= '' and (where == 'b' or where == 'p')) then out[#out + 1] = reply[2][i] end
end
return out
