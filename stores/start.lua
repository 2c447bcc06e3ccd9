-- Leases and the start of a deployment's processes. Loaded by stores/lease.py; one call is one atomic step.
--
-- KEYS[1]  hash: m<process> = the holder that waits for a start; record = the start that runs;
--          stop = the process that asked all to end.
--          A lease is the string KEYS[1]:<process>, its holder's, which expires.
-- ARGV[1]  mode
-- ARGV[2]  the caller's process number
-- ARGV[3]  the caller as a holder: a text of its own
--
-- Answer: {1, ...} done; {0, holder, milliseconds} the lease is another's ('' and 0: nobody's).
local call, hash = redis.call, KEYS[1]
local mode, process, me = ARGV[1], ARGV[2], ARGV[3]
local lease = hash .. ':' .. process
local holder = call('GET', lease)

-- ARGV[4] milliseconds, ARGV[5] a holder that is known to be dead
if mode == 'acquire' and (not holder or holder == me or holder == ARGV[5]) then
  call('SET', lease, me, 'PX', ARGV[4])
  return {1}
end
if holder ~= me then return {0, holder or '', holder and call('PTTL', lease) or 0} end

if mode == 'renew' then
  call('PEXPIRE', lease, ARGV[4])
  return {1, call('HGETALL', hash)}
end
if mode == 'release' then
  call('DEL', lease)
  call('HDEL', hash, 'm' .. process)
  return {1}
end
if mode == 'call' then -- the leader calls for a new start
  call('DEL', hash)
  return {1}
end
if mode == 'stop' then -- seen by every process at its next renewal
  call('HSET', hash, 'stop', process)
  return {1}
end
if mode == 'join' then -- answers who leads, and the record
  call('HSET', hash, 'm' .. process, me)
  return {1, call('GET', hash .. ':0') or '', call('HGET', hash, 'record') or ''}
end

-- ARGV[4] how many processes: of each, its holder if that waits for the start, else ''
local function waiting()
  local found = {}
  for i = 0, tonumber(ARGV[4]) - 1 do
    local member = call('HGET', hash, 'm' .. i)
    found[i + 1] = member and member == call('GET', hash .. ':' .. i) and member or ''
  end
  return found
end

if mode == 'waiting' then return {1, waiting()} end
if mode == 'publish' then -- ARGV[5] the record, ARGV[6..] the members that it names
  local found = waiting()
  for i = 1, #found do
    if found[i] ~= ARGV[5 + i] then return {1, i - 1} end
  end
  call('HSET', hash, 'record', ARGV[5])
  return {1, -1}
end
return redis.error_reply('unknown mode')
