-- Append: adds events to the logs of attempts that their callers still hold.
-- KEYS[1] root. ARGV: seconds that a log is kept, clock offset ms, then for each log: job, attempt, worker, number before
-- the first event, last number written to Postgres, how many events, and for each event: number, JSON.
-- Returns for each log 1 appended, 0 fenced, -1 Redis does not know the caller's lease, or it has passed (register first),
-- -2 the log lacks what comes before: seed it.
-- Invariant: numbers in a log grow without holes above what Postgres has; repeating a call adds nothing twice.
local now, codes, hints, i = clock(ARGV[2]), {}, {}, 3
while i <= #ARGV do
  local job, attempt, r, log = ARGV[i], tonumber(ARGV[i + 1]), get(ARGV[i]), R .. 'log:' .. ARGV[i]
  local from, code = i + 6, 1
  i = from + 2 * tonumber(ARGV[i + 5])
  if r and r.attempt > attempt then
    code = 0
  elseif not r or r.where ~= 'l' or r.extra ~= ARGV[from - 4] or r.attempt < attempt
    or tonumber(redis.call('ZSCORE', LEASES, job) or 0) <= now then
    code = -1
  else
    local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
    local last = math.max(newest and tonumber(string.match(newest[1], '^%d+')) or 0, tonumber(ARGV[from - 2]))
    if last < tonumber(ARGV[from - 3]) then
      code = -2
    else
      for at = from, i - 1, 2 do
        if tonumber(ARGV[at]) > last then
          redis.call('XADD', log, ARGV[at] .. '-0', 'e', ARGV[at + 1])
          last = tonumber(ARGV[at])
        end
      end
      redis.call('EXPIRE', log, ARGV[1])
      hints[#hints + 1] = job .. ':' .. last
    end
  end
  codes[#codes + 1] = code
end
if #hints > 0 then redis.call('PUBLISH', R .. 'hints', table.concat(hints, ' ')) end
return codes
