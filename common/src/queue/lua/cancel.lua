-- Cancel: forgets a job that nobody holds, or tells its holder.
-- KEYS[1] root. ARGV: job, seq of the change, 1 to forget it even where it is leased (it has ended in Postgres).
-- Returns 0 unknown, 1 forgotten, 2 its worker was told.
local job, r = ARGV[1], get(ARGV[1])
redis.call('PUBLISH', R .. 'hints', job .. ':' .. ARGV[2])
if not r then return 0 end
if leased(r) and ARGV[3] ~= '1' then
  local set = R .. 'cancel:' .. r.extra
  redis.call('SADD', set, job)
  redis.call('EXPIRE', set, 3600)
  redis.call('PUBLISH', R .. 'cancels', job .. ':0')
  return 2
end
take_out(job, r)
redis.call('HDEL', IDX, job)
if give_back(job, r) then wake() end
return 1
