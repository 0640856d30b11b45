-- Refuses a JSON body with a field that its message does not have: the transcoder would pass over
-- it. It comes behind envelope.lua, and uses its way to read JSON; BODIES and SCHEMAS come before.

-- The path of the first field of a value that its schema does not have, nil when there is none.
local function unknown_field(json, schema, path)
  local first = byte(json, find(json, "%S") or 1)
  if first == 123 then
    for name, value in pairs(members(match(json, "{.*"))) do
      local inner = schema[name]
      if not inner then
        return path .. name, schema
      elseif inner ~= true then
        local field, where = unknown_field(value, SCHEMAS[inner], path .. name .. ".")
        if field then return field, where end
      end
    end
  elseif first == 91 then
    for _, value in ipairs(elements(match(json, "%[.*"))) do
      local field, where = unknown_field(value, schema, path)
      if field then return field, where end
    end
  end
end

local function known_fields(schema)
  local names = {}
  for name in pairs(schema) do
    -- Once each, as the contract writes them.
    if not find(name, "%u") then names[#names + 1] = name end
  end
  table.sort(names)
  return table.concat(names, ", ")
end

function envoy_on_request(handle)
  local headers = handle:headers()
  local verb, path = headers:get(":method"), match(headers:get(":path"), "^[^?]*")
  for _, each in ipairs(BODIES) do
    if each[1] == verb and find(path, each[2]) then
      local body = handle:body()
      if not body then return end
      local schema = SCHEMAS[each[3]]
      local field, where = unknown_field(body:getBytes(0, body:length()), schema, "")
      if field then
        -- In the words of the transcoder about a query, which are explained on the way back.
        handle:respond({[":status"] = "400"}, 'Could not find field "' .. field
          .. '" in the type "' .. each[3] .. '"; there is ' .. known_fields(where))
      end
      return
    end
  end
end
