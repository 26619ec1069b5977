-- Ack: ends leases whose attempt is settled in Postgres.
-- KEYS[1] root. ARGV: seconds that the log is kept, then for each job (one at least, 1,000 at most): id, attempt, seq, keep (1: it is
-- tried again and keeps the places of its keys, 2: it waits and keeps its conversation's alone; 0: it has ended. One
-- whose worker was told to stop it keeps none: then Postgres has cancelled it).
-- Returns how many leases it ended.
-- Invariants: an attempt that is not the known one changes nothing. What goes on is remembered for the places that it keeps;
-- without any it is Postgres's alone until it is queued again, or so many could wait to be tried again that they fill Redis.
local KEPT = { ['1'] = KEYS_ONLY, ['2'] = CONVERSATION_ONLY }
local ended, hints, over, told = 0, {}, {}, {}

-- Whether a worker was told to stop a job; it is forgotten then. Most workers were told nothing.
local function was_told(worker, job)
  local cancels = R .. 'cancel:' .. worker
  if told[worker] == nil then told[worker] = redis.call('EXISTS', cancels) == 1 end
  return told[worker] and redis.call('SREM', cancels, job) == 1
end

local function keeps_place(r, kept)
  for _, gate in ipairs(r.holds == '' and {} or gates_of(r)) do
    if gate.max > 0 and string.find(gate.name, kept) then return true end
  end
  return false
end

local jobs, logs = {}, {}
for i = 2, #ARGV, 4 do
  jobs[#jobs + 1], logs[#logs + 1] = ARGV[i], R .. 'log:' .. ARGV[i]
end
local texts, has_logs = texts_of(jobs), redis.call('EXISTS', unpack(logs)) > 0

for at, job in ipairs(jobs) do
  local i, r = at * 4 - 2, read(texts[at])
  local kept = KEPT[ARGV[i + 3]]
  if r and leased(r) and r.attempt == tonumber(ARGV[i + 1]) then
    local is_over = was_told(r.extra, job) or not kept or not keeps_place(r, kept)
    if not is_over then
      redis.call('ZREM', LEASES, job)
      give_back(job, r, kept)
      r.where, r.extra = 'd', ''
      put(job, r)
    else
      over[#over + 1] = job
      give_back(job, r, NOTHING)
    end
    ended = ended + 1
  elseif r and r.where == 'f' and r.attempt == tonumber(ARGV[i + 1]) + 1 then
    -- It was queued again before its worker said so here: what held it back has ended.
    redis.call('ZREM', LEASES, job)
    give_back(job, r, kept or KEYS_ONLY)
    enqueue(job, r)
  end
  if has_logs then redis.call('EXPIRE', logs[at], ARGV[1]) end
  hints[#hints + 1] = job .. ':' .. ARGV[i + 2]
end
if #over > 0 then
  redis.call('ZREM', LEASES, unpack(over))
  redis.call('HDEL', IDX, unpack(over))
end
if #hints > 0 then redis.call('PUBLISH', R .. 'hints', table.concat(hints, ' ')) end
wake_for_fresh()
return ended
