-- One streamed reply a request, of TOKENS tokens at most, to one of a few questions.

dofile(os.getenv("COMMON"))
local asked = {"hello", "what is 7 plus 5?", "where is my order?", "tell me a fact", "你好", "can I have a refund?"}
local headers = {["content-type"] = "application/json"}
if os.getenv("KEY") then headers["authorization"] = "Bearer " .. os.getenv("KEY") end
local fields = os.getenv("FIELDS") or ""
local number = 0

function request()
   number = number + 1
   if os.getenv("KEY") then headers["x-kudos-user"] = "u" .. number % 64 end
   local body = string.format('{"model":"%s","stream":true,"messages":[{"role":"user","content":"%s"}]%s}',
      os.getenv("MODEL"), asked[number % #asked + 1], fields)
   return wrk.format("POST", "/v1/chat/completions", headers, body)
end

done = function(summary, latency) result(summary, latency) end
