-- Open: lets workers claim from a generation.
-- KEYS[1] root. ARGV: when it began, ms.
-- Returns 1 opened, 0 there is another or none: Redis was wiped meanwhile.
-- Invariant: what is opened is what was rebuilt, never an index that was wiped after that.
local gen = R .. 'gen'
if tonumber(redis.call('HGET', gen, 'begun_ms') or 0) ~= tonumber(ARGV[1]) then return 0 end
redis.call('HSET', gen, 'open', 1)
wake()
return 1
