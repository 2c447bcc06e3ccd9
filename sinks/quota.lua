-- Writes fields of quota hashes, unless that would turn one back.
--
-- KEYS: one hash for each entry (of one slot, in a cluster).
-- ARGV[1]: msgpack of [now_ms, now, live, entries]; an entry is
--   [feature, expires_ms, era, period_start, period_end, inputs, plan, since, value], `value` being the JSON that
--   readers see.
-- Returns the number of fields written.
--
-- A field is kept if its (era, whether its period still runs, since, period_start, inputs) is higher: usage of a plan
-- that is over must not hide what runs. `since` is from when the subject is on the
-- plan ("" for ever): the periods of a newer plan may begin earlier, in another zone or on another day. Totals of
-- another plan since the same time and of the same period cannot be compared: the live flow, which comes in the
-- order of the log, writes them; a restore (live = false) leaves what it finds.
-- A hash expires with the last of its periods, some time later.

local function keeps(stored, now, live, era, period_start, period_end, inputs, plan, since)
  local ok, held = pcall(cjson.decode, stored)
  if not ok or type(held) ~= 'table' then return false end
  local held_era, held_inputs = tonumber(held.era) or -1, tonumber(held.inputs) or -1
  if held_era ~= era then return held_era > era end
  local held_runs, runs = tostring(held.period_end) > now, period_end > now
  if held_runs ~= runs then return held_runs end
  local held_since = tostring(held.since or '')
  if held_since ~= since then return held_since > since end
  local held_start = tostring(held.period_start)
  if held_start ~= period_start then return held_start > period_start end
  if held.plan ~= plan then return not live end
  return held_inputs > inputs
end

local now_ms, now, live, entries = unpack(cmsgpack.unpack(ARGV[1]))
local written = 0
for i, key in ipairs(KEYS) do
  local feature, expires_ms, era, period_start, period_end, inputs, plan, since, value = unpack(entries[i])
  local stored = redis.call('HGET', key, feature)
  local kept = stored and
    (stored == value or keeps(stored, now, live, era, period_start, period_end, inputs, plan, since))
  if not kept then
    redis.call('HSET', key, feature, value)
    written = written + 1
    if redis.call('PTTL', key) < expires_ms - now_ms then
      redis.call('PEXPIREAT', key, string.format('%.0f', expires_ms))
    end
  end
end
return written
