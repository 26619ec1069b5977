-- Generation: which index this is, and whether it may be claimed from.
-- KEYS[1] root. ARGV: clock offset ms, 1 to begin a generation, closed for claims, where there is none.
-- Returns when it began (0: never), 1 if it is open, and the time, ms: all by the clock that leases pass by.
local gen, now = R .. 'gen', clock(ARGV[1])
if ARGV[2] == '1' then redis.call('HSETNX', gen, 'begun_ms', now) end
local begun = tonumber(redis.call('HGET', gen, 'begun_ms') or 0)
return { begun, redis.call('HGET', gen, 'open') == '1' and 1 or 0, now }
