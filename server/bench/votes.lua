-- One vote a request, each on a reply that nobody has voted on, by one of USERS people.

dofile(os.getenv("COMMON"))
local key, users = os.getenv("KEY"), tonumber(os.getenv("USERS"))
local number = tonumber(os.getenv("FIRST"))
local bodies = {'{"thumb":"up","reasons":["friendly"]}', '{"thumb":"down","comment":"That is not what I asked."}'}

function request()
   local path = string.format("/v1/replies/chatcmpl-%032x/feedback", number)
   local headers = {
      ["authorization"] = "Bearer " .. key,
      ["content-type"] = "application/json",
      ["x-kudos-user"] = "u" .. number % users,
   }
   local body = bodies[number % 2 + 1]
   number = number + 1
   return wrk.format("PUT", path, headers, body)
end

done = function(summary, latency) result(summary, latency) end
