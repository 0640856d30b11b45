-- The response envelope of REST. It runs on the way back, after the transcoder, so that it sees
-- finished JSON. Success is wrapped by putting strings together, never by decoding: what passes
-- here is most of the traffic. Errors are rare and may cost a little.
--
-- WRAP_SUCCESS is set by the line before this file: true for unary methods, false for streams,
-- whose messages go out bare while an error before the first one still gets the envelope.

local byte, find, format, gsub, match, sub = string.byte, string.find, string.format, string.gsub, string.match, string.sub
local floor = math.floor

local CODES = {
  [1] = "CANCELLED", [2] = "UNKNOWN", [3] = "INVALID_PARAMETER", [4] = "DEADLINE_EXCEEDED",
  [5] = "NOT_FOUND", [6] = "ALREADY_EXISTS", [7] = "PERMISSION_DENIED",
  [8] = "RESOURCE_EXHAUSTED", [9] = "FAILED_PRECONDITION", [10] = "ABORTED",
  [11] = "OUT_OF_RANGE", [12] = "UNIMPLEMENTED", [13] = "INTERNAL", [14] = "UNAVAILABLE",
  [15] = "DATA_LOSS", [16] = "UNAUTHENTICATED",
}
local INVALID_ARGUMENT = 3

-- The date changes once a second, and formatting it is dear.
local last_second, last_date = -1, ""

local function timestamp(handle)
  local now = tonumber(handle:timestampString(EnvoyTimestampResolution.MILLISECOND))
  local second = floor(now / 1000)
  if second ~= last_second then
    last_second, last_date = second, os.date("!%Y-%m-%dT%H:%M:%S", second)
  end
  return format("%s.%03dZ", last_date, now - second * 1000)
end

-- A request id is the client's word; nothing in it may end the JSON string.
local function request_id(headers)
  local id = headers:get("x-request-id") or ""
  if find(id, "[^%w%-_.:]") then
    id = gsub(id, '["\\\128-\255%c]', "?")
  end
  return '"' .. id .. '"'
end

-- Position after the JSON value that begins at `at`.
local function skip(json, at)
  local first = byte(json, at)
  if first == 34 then -- a string
    at = at + 1
    while true do
      local stop = find(json, '["\\]', at)
      if not stop then return #json + 1 end
      if byte(json, stop) == 34 then return stop + 1 end
      at = stop + 2
    end
  elseif first == 123 or first == 91 then -- an object or an array
    local depth = 0
    while true do
      local stop = find(json, '["{}%[%]]', at)
      if not stop then return #json + 1 end
      local char = byte(json, stop)
      if char == 34 then
        at = skip(json, stop)
      else
        depth = depth + ((char == 123 or char == 91) and 1 or -1)
        at = stop + 1
        if depth == 0 then return at end
      end
    end
  end
  return find(json, "[,%]}%s]", at) or #json + 1
end

-- The members of a JSON object, each value as its own text.
local function members(json)
  local result, at = {}, 2
  while true do
    local _, stop, key = find(json, '^%s*,?%s*"([^"]*)"%s*:%s*', at)
    if not stop then return result end
    at = skip(json, stop + 1)
    result[key] = sub(json, stop + 1, at - 1)
  end
end

-- The elements of a JSON array, each as its own text.
local function elements(json)
  local result, at = {}, 2
  while true do
    local _, stop = find(json, "^[%s,]*", at)
    at = stop + 1
    if at >= #json or byte(json, at) == 93 then return result end
    stop = skip(json, at)
    result[#result + 1] = sub(json, at, stop - 1)
    at = stop
  end
end

-- What the transcoder makes of a google.rpc.Status, as the members of our error.
local function explain(json)
  local status = members(json)
  local number = tonumber(status.code) or 2
  local code = CODES[number] or "UNKNOWN"
  local violations, others = {}, {}
  for _, detail in ipairs(elements(status.details or "[]")) do
    local kind = match(detail, '"@type"%s*:%s*"[^"]*google%.rpc%.(%w+)"')
    if kind == "BadRequest" then
      local fields = members(detail)
      for _, violation in ipairs(elements(fields.field_violations or fields.fieldViolations or "[]")) do
        violations[#violations + 1] = violation
      end
    elseif kind ~= "RequestInfo" then
      if kind == "ErrorInfo" and number ~= INVALID_ARGUMENT then
        local reason = match(detail, '"reason"%s*:%s*"([%w_]+)"')
        code = reason or code
      end
      others[#others + 1] = detail
    end
  end
  for _, detail in ipairs(others) do
    violations[#violations + 1] = detail
  end
  return '"' .. code .. '"', status.message or '""', "[" .. table.concat(violations, ",") .. "]"
end

-- What Envoy refused a request for is in the words of its transcoder; they name the field.
local function refused_field(message)
  local field = match(message, '^"Could not find field \\"([%w_.]+)\\" in the type')
  if field then
    return field, "unknown parameter", "UNKNOWN_FIELD"
  end
  field = match(message, '^"([%w_]+) is in the path')
  if field then
    return field, "it is in the path; leave it out of the query", "REPEATED_FIELD"
  end
  field = match(message, '^"([%w_.]+): invalid value')
  if field then
    return field, sub(message, #field + 4, -2), "INVALID_VALUE"
  end
end

-- The answer that Envoy made by itself has the envelope already; give it its details.
local function refine(json)
  local answer = members(json)
  local fault = members(answer.error or "{}")
  local message = fault.message or '""'
  local field, description, reason = refused_field(message)
  if not field then
    return
  end
  local details = '[{"field":"' .. field .. '","description":"' .. description
    .. '","reason":"' .. reason .. '"}]'
  return answer.request_id or '""', fault.code, message, details
end

local function set_body(handle, body, text)
  handle:headers():replace("content-length", tostring(body:setBytes(text)))
end

local function fail(handle, body, id, code, message, details)
  set_body(handle, body, '{"success":false,"error":{"code":' .. code .. ',"message":' .. message
    .. ',"details":' .. details .. '},"timestamp":"' .. timestamp(handle)
    .. '","request_id":' .. id .. "}")
end

-- What Envoy tells a gRPC client by itself, made what gRPC clients expect of a server.
local function correct_grpc(headers)
  if headers:get("grpc-message") == "upstream request timeout" then
    headers:replace("grpc-status", "4")
  end
  if headers:get(":status") ~= "200" then
    headers:replace(":status", "200")
  end
end

-- The client has the answer already, and the service sent an empty one.
local function not_modified(handle, headers)
  headers:replace(":status", "304")
  headers:remove("content-type")
  headers:remove("x-not-modified")
  handle:body(true):setBytes("")
  handle:headers():remove("content-length")
  -- It ends with its headers (RFC 9110, 15.4.5), so what gRPC puts behind the body goes.
  local trailers, names = handle:trailers(), {}
  for name in pairs(trailers or {}) do names[#names + 1] = name end
  for _, name in ipairs(names) do trailers:remove(name) end
end

function envoy_on_response(handle)
  -- Nothing got from the handle outlives the wait for the body, so it is asked for again then.
  local headers = handle:headers()
  local kind = headers:get("content-type")
  if kind ~= "application/json" then
    if kind and find(kind, "^application/grpc") then
      correct_grpc(headers)
    end
    return
  end
  if headers:get(":status") == "200" then
    if headers:get("x-not-modified") then
      not_modified(handle, headers)
    elseif WRAP_SUCCESS then
      local id = request_id(headers)
      local body = handle:body(true)
      set_body(handle, body, '{"success":true,"data":' .. body:getBytes(0, body:length())
        .. ',"message":"OK","timestamp":"' .. timestamp(handle) .. '","request_id":' .. id .. "}")
    end
    return
  end
  local id = request_id(headers)
  local body = handle:body(true)
  local json = body:getBytes(0, body:length())
  if find(json, '^{"code":') then
    fail(handle, body, id, explain(json))
  elseif find(json, '^{"error":') then
    -- Its own replies get the header of the request's id later; the body has it already.
    local own_id, code, message, details = refine(json)
    if code then
      fail(handle, body, own_id, code, message, details)
    end
  end
end
