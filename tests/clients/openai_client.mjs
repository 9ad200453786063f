// OpenAI's JavaScript package against a running kudos: `node --test openai_client.mjs`.
// KUDOS_URL, KUDOS_KEY: a server with the real engine. TOOLS_URL, TOOLS_KEY: one whose model calls `weather`.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const { KUDOS_URL, KUDOS_KEY, TOOLS_URL, TOOLS_KEY } = process.env;
const client = new OpenAI({ baseURL: `${KUDOS_URL}/v1`, apiKey: KUDOS_KEY, maxRetries: 0 });
const caller = new OpenAI({ baseURL: `${TOOLS_URL}/v1`, apiKey: TOOLS_KEY, maxRetries: 0 });

const model = "kudos-tiny";
const messages = [{ role: "user", content: "Hello!" }];
const weather = {
  type: "function",
  function: {
    name: "weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

test("models are listed and found by name", async () => {
  const found = [];
  for await (const each of client.models.list()) found.push(each.id);
  assert.deepEqual(found, [model]);
  assert.equal((await client.models.retrieve(model)).id, model);
  await assert.rejects(client.models.retrieve("gpt-9"), (error) => error instanceof OpenAI.NotFoundError);
});

test("a completion", async () => {
  const { data, response, request_id } = await client.chat.completions.create({ model, messages }).withResponse();
  assert.equal(data.choices[0].message.role, "assistant");
  assert.ok(data.choices[0].message.content);
  assert.equal(data.choices[0].finish_reason, "stop");
  assert.ok(data.usage.completion_tokens > 0);
  assert.equal(request_id, response.headers.get("x-request-id"));
});

test("choices and logprobs", async () => {
  const reply = await client.chat.completions.create({ model, messages, n: 2, logprobs: true, top_logprobs: 2 });
  assert.deepEqual(reply.choices.map((choice) => choice.index), [0, 1]);
  for (const choice of reply.choices) {
    const bytes = choice.logprobs.content.flatMap((token) => token.bytes);
    assert.equal(Buffer.from(bytes).toString(), choice.message.content);
  }
});

test("a stream, with usage where it is asked for", async () => {
  let text = "";
  const reasons = [];
  let usage = null;
  const stream = await client.chat.completions.create({
    model,
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    if (chunk.choices[0]?.finish_reason) reasons.push(chunk.choices[0].finish_reason);
    usage = chunk.usage ?? usage;
  }
  assert.ok(text);
  assert.deepEqual(reasons, ["stop"]);
  assert.ok(usage.completion_tokens > 0);
});

test("the stream helper puts together what was streamed", async () => {
  const stream = client.chat.completions.stream({ model, messages });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const whole = await stream.finalChatCompletion();
  assert.equal(whole.choices[0].message.content, text);
  const kept = await client.get(`/replies/${whole.id}`);
  assert.equal(kept.text, text);
  assert.equal(kept.state, "complete");
});

test("a stream that is aborted is stopped, and keeps what was shown", async () => {
  // So hot that the model seldom finds its end. Even so it may: then once more.
  for (let attempt = 0; attempt < 20; attempt += 1) {
    const hot = { model, messages, temperature: 2, max_tokens: 900, stream: true };
    const stream = await client.chat.completions.create(hot);
    let text = "";
    let id = null;
    let chunks = 0;
    for await (const chunk of stream) {
      id = chunk.id;
      text += chunk.choices[0].delta.content ?? "";
      if ((chunks += 1) === 5) stream.controller.abort();
    }
    let kept = null;
    do {
      await new Promise((resolve) => setTimeout(resolve, 50));
      kept = await client.get(`/replies/${id}`);
    } while (kept.state === "streaming");
    if (kept.state === "complete") continue;
    assert.equal(kept.state, "stopped");
    assert.ok(kept.text.startsWith(text));
    return;
  }
  assert.fail("no reply was long enough to be stopped");
});

test("a stop string ends a reply before it", async () => {
  const whole = await client.chat.completions.create({ model, messages, temperature: 0 });
  const stop = whole.choices[0].message.content.slice(4, 7);
  const cut = await client.chat.completions.create({ model, messages, temperature: 0, stop: [stop] });
  assert.equal(cut.choices[0].message.content, whole.choices[0].message.content.split(stop)[0]);
});

test("structured output", async () => {
  const schema = {
    type: "object",
    properties: { mood: { type: "string", enum: ["good", "bad"] } },
    required: ["mood"],
    additionalProperties: false,
  };
  const format = { type: "json_schema", json_schema: { name: "mood", schema, strict: true } };
  const reply = await client.chat.completions.parse({ model, messages, response_format: format });
  assert.ok(["good", "bad"].includes(reply.choices[0].message.parsed.mood));
});

test("a vote, through the client's own calls", async () => {
  const reply = await client.chat.completions.create({ model, messages });
  const vote = await client.put(`/replies/${reply.id}/feedback`, { body: { thumb: "up", reasons: ["friendly"] } });
  assert.equal(vote.outcome, "accepted");
});

test("errors are the classes that OpenAI's API gives", async () => {
  const ask = (fields) => client.chat.completions.create({ model, messages, ...fields });
  const is = (kind, status, param, code) => (error) => {
    assert.ok(error instanceof kind, String(error));
    assert.deepEqual([error.status, error.param, error.code], [status, param, code]);
    assert.ok(error.requestID);
    return true;
  };
  await assert.rejects(ask({ model: "gpt-9" }), is(OpenAI.NotFoundError, 404, "model", "model_not_found"));
  await assert.rejects(ask({ temperature: 9 }), is(OpenAI.UnprocessableEntityError, 422, "temperature", "invalid_value"));
  await assert.rejects(ask({ logit_bias: { 1: 1 } }), is(OpenAI.BadRequestError, 400, "logit_bias", "unsupported"));
  const stranger = new OpenAI({ baseURL: `${KUDOS_URL}/v1`, apiKey: "sk-kudos-guess", maxRetries: 0 });
  await assert.rejects(stranger.models.list(), is(OpenAI.AuthenticationError, 401, null, "invalid_api_key"));
  await assert.rejects(client.embeddings.create({ model, input: "x" }), is(OpenAI.NotFoundError, 404, null, "not_found"));
});

test("calls of tools, whole and streamed", async () => {
  const asked = { model, messages: [{ role: "user", content: "Will it rain in Ulm?" }], tools: [weather] };
  const whole = await caller.chat.completions.create(asked);
  const streamed = await caller.chat.completions.stream(asked).finalChatCompletion();
  for (const reply of [whole, streamed]) {
    assert.equal(reply.choices[0].finish_reason, "tool_calls");
    const [call] = reply.choices[0].message.tool_calls;
    assert.equal(call.function.name, "weather");
    assert.deepEqual(JSON.parse(call.function.arguments), { city: "Ulm" });
  }
});

test("the tool runner runs them", async () => {
  const asked = [];
  const runner = caller.chat.completions.runTools(
    {
      model,
      messages: [{ role: "user", content: "Will it rain in Ulm?" }],
      tools: [
        {
          type: "function",
          function: {
            ...weather.function,
            parse: JSON.parse,
            function: ({ city }) => {
              asked.push(city);
              return "rain";
            },
          },
        },
      ],
    },
    { maxChatCompletions: 2 }, // this model always calls
  );
  await runner.done();
  assert.deepEqual(asked, ["Ulm", "Ulm"]);
});
