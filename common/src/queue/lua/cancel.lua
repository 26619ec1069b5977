-- Cancel: forgets jobs that nobody holds, or tells their holders.
-- KEYS[1] root. ARGV: for each job: id, seq of the change, 1 to forget it even where it is leased (it has ended in
-- Postgres). Returns how many of them were known.
local known, hints = 0, {}
for i = 1, #ARGV, 3 do
  local job, r = ARGV[i], get(ARGV[i])
  hints[#hints + 1] = job .. ':' .. ARGV[i + 1]
  if r then known = known + 1 end
  if r and leased(r) and ARGV[i + 2] ~= '1' then
    local set = R .. 'cancel:' .. r.extra
    redis.call('SADD', set, job)
    redis.call('EXPIRE', set, 3600)
    redis.call('PUBLISH', R .. 'cancels', job .. ':0')
  elseif r then
    take_out(job, r)
    redis.call('HDEL', IDX, job)
    give_back(job, r, NOTHING)
  end
end
if #hints > 0 then redis.call('PUBLISH', R .. 'hints', table.concat(hints, ' ')) end
wake_for_fresh()
return known
