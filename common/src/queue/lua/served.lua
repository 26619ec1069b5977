-- Served: which lanes a worker serves, and which of them anybody does.
-- `asked`: what workers claim, as slot|labels|queues, by when they last asked. Who has no free slot does not ask; who is idle
-- does so every five seconds.
local ASKED, SERVED = R .. 'asked', 10000
local servers = nil

-- Whether a worker serves a lane.
local function fits(want, queue, class)
  local is_mine = string.match(class, '^[^+!]*') == want.slot
    and (want.queues == '' or string.find(want.queues, ',' .. queue .. ',', 1, true))
  for label in string.gmatch(class, '%+([^+!]+)') do
    is_mine = is_mine and string.find(want.labels, ',' .. label .. ',', 1, true)
  end
  return is_mine
end

-- Remembers that a worker asks. What nobody has asked for a minute is forgotten when somebody new does.
local function note(want)
  local now = clock(0)
  local is_new = redis.call('ZADD', ASKED, now, want.slot .. '|' .. want.labels .. '|' .. want.queues) == 1
  if is_new then redis.call('ZREMRANGEBYSCORE', ASKED, '-inf', now - 60000) end
end

-- Whether a worker asked for jobs of a lane just now.
local function is_served(lane)
  if not servers then
    servers = {}
    for _, asked in ipairs(redis.call('ZRANGEBYSCORE', ASKED, clock(0) - SERVED, '+inf')) do
      local slot, labels, queues = string.match(asked, '^(%a+)|(.*)|([^|]*)$')
      servers[#servers + 1] = { slot = slot, labels = labels, queues = queues }
    end
  end
  local queue, class = string.match(lane, '^([^/]*)/(.*)$')
  for _, want in ipairs(servers) do
    if fits(want, queue, class) then return true end
  end
  return false
end
