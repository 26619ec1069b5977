-- Generation: which index this is, and whether it may be claimed from.
-- KEYS[1] root. ARGV: clock offset ms, 1 to begin a generation, closed for claims, where there is none, and the run id of
-- the server that answers.
-- Returns when it began (0: never, or it was written to another server), 1 if it is open, and the time, ms: all by the clock
-- that leases pass by.
-- Invariant: what was written to another server may be behind, so it is forgotten whole before a generation begins, as a
-- wipe would do; in one step with it, for nobody may write between the two. What stands there without a generation is no
-- better: it may have come from a file that was written between a wipe and the generation after it.
local gen, now = R .. 'gen', clock(ARGV[1])
local is_own = redis.call('HGET', gen, 'server') == ARGV[3]
if ARGV[2] == '1' and not is_own then
  for _, name in ipairs(redis.call('KEYS', R .. '*')) do redis.call('UNLINK', R .. string.sub(name, #R + 1)) end
  redis.call('HSET', gen, 'begun_ms', now, 'server', ARGV[3])
  is_own = true
end
if not is_own then return { 0, 0, now } end
return { tonumber(redis.call('HGET', gen, 'begun_ms')), redis.call('HGET', gen, 'open') == '1' and 1 or 0, now }
