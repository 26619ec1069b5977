-- Stray: entries that nobody looks at until something else happens: deferred jobs, and those that have a place and no
-- lease. Their row may have ended by a hand that could not tell Redis.
-- KEYS[1] root. ARGV: cursor, entries to look at.
-- Returns the next cursor (0: the end), then jobs.
local reply = redis.call('HSCAN', IDX, ARGV[1], 'COUNT', ARGV[2])
local out = { reply[1] }
for i = 1, #reply[2], 2 do
  local where, holds = string.match(reply[2][i + 1], '^(%a)|%d+|[^|]*|[^|]*|%d|([^|]*)|')
  if where == 'd' or (holds ~= '' and (where == 'b' or where == 'p')) then out[#out + 1] = reply[2][i] end
end
return out
