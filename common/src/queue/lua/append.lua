-- Append: adds events to a job's log, if the caller still holds the attempt.
-- KEYS[1] root. ARGV: job, attempt, worker, number before the first event, last number written to Postgres,
-- seconds that the log is kept, clock offset ms, then for each event: number, JSON.
-- Returns 1 appended, 0 fenced, -1 Redis does not know the caller's lease, or it has passed (register first), -2 the log
-- lacks what comes before: seed it.
-- Invariant: numbers in the log grow without holes above what Postgres has; repeating a call adds nothing twice.
local job, r, log = ARGV[1], get(ARGV[1]), R .. 'log:' .. ARGV[1]
if r and r.attempt > tonumber(ARGV[2]) then return 0 end
if not r or r.where ~= 'l' or r.extra ~= ARGV[3] or r.attempt < tonumber(ARGV[2]) then return -1 end
if tonumber(redis.call('ZSCORE', LEASES, job) or 0) <= clock(ARGV[7]) then return -1 end
local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
local last = math.max(newest and tonumber(string.match(newest[1], '^%d+')) or 0, tonumber(ARGV[5]))
if last < tonumber(ARGV[4]) then return -2 end
for i = 8, #ARGV, 2 do
  if tonumber(ARGV[i]) > last then
    redis.call('XADD', log, ARGV[i] .. '-0', 'e', ARGV[i + 1])
    last = tonumber(ARGV[i])
  end
end
redis.call('EXPIRE', log, ARGV[6])
redis.call('PUBLISH', R .. 'hints', job .. ':' .. last)
return 1
