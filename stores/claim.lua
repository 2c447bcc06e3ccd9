-- Claims of one shard: who claimed an idempotency key first. Loaded by stores/claims.py, which
-- documents the layout; one call handles one batch, atomically.
--
-- KEYS[1]  the shard's meta hash: token, incarnation, seed, layout,
--          p<partition> = offset up to which every claim is held, g<generation> = 1 while it lives,
--          kept = the first generation that was not forgotten
-- ARGV[1]  'claim' | 'restore' | 'publish' | 'clear' | 'seed' | 'keep' | 'unlink'
-- ARGV[2]  the caller's fencing token
-- clear: drops all of the meta hash but the token
-- seed: ARGV[3] seed, [4] layout
-- keep: ARGV[3] the first generation that is kept from now on
-- unlink: ARGV[3] a field of the meta hash that goes as well, or ''; [4..] keys of this shard
-- ARGV[3]  incarnation (claim: the one learnt; publish: the new one; restore: unused)
-- publish: ARGV[4..] = partition, offset, partition, offset, ...
-- claim, restore: ARGV[4] partition, [5] start offset, [6] next offset,
--   ARGV[7]  runs of equal generation: (generation u32, records u32)*, big-endian
--   ARGV[8]  records: bucket 3, field 13, value 21 bytes
--            value = content u64, partition u32, offset u48, index u24, big-endian
--
-- Answer: {0, {indexes}, values}: the records whose key is somebody else's, and those first claims;
--         {1, token} fenced; {2, what, found} lost.
local call, sub, unpack_ = redis.call, string.sub, struct.unpack
local meta, mode = KEYS[1], ARGV[1]
local RECORD = 37

local partition_field = 'p' .. (ARGV[4] or '')
local state = call('HMGET', meta, 'token', 'incarnation', partition_field)
local token, mine = tonumber(state[1] or 0), tonumber(ARGV[2])
if token > mine then return {1, state[1]} end
if token < mine then return {2, 'fencing token', state[1] or 'nothing'} end

if mode == 'clear' then
  for _, name in ipairs(call('HKEYS', meta)) do
    if name ~= 'token' then call('HDEL', meta, name) end
  end
  return {0}
end

if mode == 'seed' then
  call('HSET', meta, 'seed', ARGV[3], 'layout', ARGV[4])
  return {0}
end

if mode == 'keep' then
  if tonumber(call('HGET', meta, 'kept') or 0) < tonumber(ARGV[3]) then call('HSET', meta, 'kept', ARGV[3]) end
  return {0}
end

if mode == 'unlink' then
  if #ARGV > 3 then call('UNLINK', unpack(ARGV, 4)) end
  if ARGV[3] ~= '' then call('HDEL', meta, ARGV[3]) end
  return {0}
end

if mode == 'publish' then
  for i = 4, #ARGV, 2 do
    local stored = call('HGET', meta, 'p' .. ARGV[i])
    if not stored or tonumber(stored) < tonumber(ARGV[i + 1]) then
      call('HSET', meta, 'p' .. ARGV[i], ARGV[i + 1])
    end
  end
  call('HSET', meta, 'incarnation', ARGV[3])
  return {0}
end

if mode == 'claim' then
  if state[2] ~= ARGV[3] then return {2, 'incarnation', state[2] and 'another' or 'nothing'} end
  local stored = tonumber(state[3] or 0)
  if stored < tonumber(ARGV[5]) then return {2, 'progress of partition ' .. ARGV[4], state[3] or '0'} end
end

local live = {}
local function buckets(generation)
  if live[generation] == nil then
    live[generation] = call('HEXISTS', meta, 'g' .. generation) == 1 and meta .. ':' .. generation .. ':'
  end
  return live[generation]
end

local function open(generation)
  if not buckets(generation) then
    call('HSET', meta, 'g' .. generation, 1)
    live[generation] = meta .. ':' .. generation .. ':'
  end
  return live[generation]
end

local function same_position(claim, value) return sub(claim, 9) == sub(value, 9) end

-- 0 the caller's own, 1 its partition's at an earlier position, 2 another partition's,
-- 3 its partition's at a later position (a replay sees what came after it: anything else goes first).
local function rank(claim, value)
  if same_position(claim, value) then return 0 end
  if sub(claim, 9, 12) ~= sub(value, 9, 12) then return 2 end
  local offset, index = unpack_('>I6I3', claim, 13)
  local my_offset, my_index = unpack_('>I6I3', value, 13)
  if offset < my_offset or (offset == my_offset and index < my_index) then return 1 end
  return 3
end

-- A claim whose content is unknown (0, restored from a reject's first position) learns it.
local function fill_content(key, field, claim, value)
  if claim ~= value and sub(claim, 1, 8) == '\0\0\0\0\0\0\0\0' then call('HSET', key, field, value) end
end

-- Of the claims found in the neighbouring generations and the own one, in that order of preference
-- within equal rank: the first claim if it is somebody else's, else nil.
local function settle(keys, field, value, found)
  local best, best_rank
  for i = 1, 3 do
    local claim = found[i]
    if claim then
      local r = rank(claim, value)
      if r == 0 then fill_content(keys[i], field, claim, value) return nil end
      if not best or r < best_rank then best, best_rank = claim, r end
    end
  end
  return best
end

local function claim_alone(own, field, value)
  if call('HSETNX', own, field, value) == 1 then return nil end
  local claim = call('HGET', own, field)
  if claim == value then return nil end
  if same_position(claim, value) then fill_content(own, field, claim, value) return nil end
  return claim
end

local function claim(older, own, newer, field, value)
  local before = older and call('HGET', older, field)
  local after = newer and call('HGET', newer, field)
  if not before and not after then return claim_alone(own, field, value) end
  return settle({older, own, newer}, field, value, {before, call('HGET', own, field), after})
end

-- The ledger says that this position holds the key: whoever else is recorded nearby gives way.
local function restore(older, own, newer, field, value)
  local before = older and call('HGET', older, field)
  local here = call('HGET', own, field)
  local after = newer and call('HGET', newer, field)
  if before and same_position(before, value) then return fill_content(older, field, before, value) end
  if after and same_position(after, value) then return fill_content(newer, field, after, value) end
  if here and same_position(here, value) then return fill_content(own, field, here, value) end
  if before then call('HDEL', older, field) end
  if after then call('HDEL', newer, field) end
  call('HSET', own, field, value)
end

local act = mode == 'restore' and restore or claim
local runs, records = ARGV[7], ARGV[8]
local indexes, firsts, found = {}, {}, 0
local i = 0
for r = 1, #runs, 8 do
  local generation, count = unpack_('>I4I4', runs, r)
  local older, newer, own = buckets(generation - 1), buckets(generation + 1), open(generation)
  local alone = act == claim and not older and not newer
  for at = i * RECORD, (i + count - 1) * RECORD, RECORD do
    local bucket, field, value = sub(records, at + 1, at + 3), sub(records, at + 4, at + 16), sub(records, at + 17, at + 37)
    local first
    if alone then
      first = claim_alone(own .. bucket, field, value)
    else
      first = act(older and older .. bucket, own .. bucket, newer and newer .. bucket, field, value)
    end
    if first then
      found = found + 1
      indexes[found], firsts[found] = at / RECORD, first
    end
  end
  i = i + count
end

if mode == 'claim' and tonumber(state[3] or -1) < tonumber(ARGV[6]) then
  call('HSET', meta, partition_field, ARGV[6])
end
return {0, indexes, table.concat(firsts)}
