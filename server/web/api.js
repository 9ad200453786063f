// Every call that the page makes. No DOM here.

import { ApiError, Client } from "./client.js";
import { events } from "./sse.js";

export { ApiError };

const RETRY_DELAYS_MS = [300, 800, 1600];
const PAGE_SIZE = 100; // conversations at once
const ENDING_DELAYS_MS = [200, 500, 1000, 2000, 4000, 8000];

export const client = new Client("kudos.key");
const json = (...call) => client.json(...call);

export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16)); // randomUUID would need HTTPS
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function sleep(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

/** Yields each chunk of a streamed answer. Ends at [DONE]; anything else is an error. */
export async function* stream(path, body, signal) {
  const response = await client.call("POST", path, { body: { ...body, stream: true }, signal });
  let done = false;
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") {
        done = true;
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError(chunk.error.message, { code: chunk.error.code ?? null });
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ApiError || signal?.aborted) throw error;
    throw new ApiError("cut", { code: "cut" });
  }
  if (!done && !signal?.aborted) throw new ApiError("cut", { code: "cut" });
}

export const chat = (body, signal) => stream("/v1/chat/completions", body, signal);
export const compare = (body, signal) => stream("/v1/comparisons", body, signal);

/**
 * A vote is sent until the server has it: the same idempotency key each time, so that a lost answer cannot count twice.
 * A reply that was stopped a moment ago may not be durable yet; that refusal (409) passes.
 */
async function vote(method, path, body) {
  const headers = { "idempotency-key": randomId() };
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await json(method, path, { body, headers });
    } catch (error) {
      const passing = error instanceof ApiError && [0, 409, 503].includes(error.status);
      if (!passing || attempt === RETRY_DELAYS_MS.length) throw error;
      await sleep(RETRY_DELAYS_MS[attempt]);
    }
  }
}

const part = encodeURIComponent;
export const putFeedback = (id, ballot) => vote("PUT", `/v1/replies/${part(id)}/feedback`, ballot);
export const deleteFeedback = (id) => vote("DELETE", `/v1/replies/${part(id)}/feedback`);
export const putChoice = (id, ballot) => vote("PUT", `/v1/comparisons/${part(id)}/choice`, ballot);
export const deleteChoice = (id) => vote("DELETE", `/v1/comparisons/${part(id)}/choice`);

/** A reply as it is kept, once it has ended: one that was stopped a moment ago may still be ending there. */
export async function endedReply(id) {
  for (let attempt = 0; ; attempt += 1) {
    const reply = await json("GET", `/v1/replies/${part(id)}`);
    if (reply.state !== "streaming" || attempt === ENDING_DELAYS_MS.length) return reply;
    await sleep(ENDING_DELAYS_MS[attempt]);
  }
}

export const models = () => json("GET", "/v1/models");
export const status = () => json("GET", "/v1/status");
export const conversations = ({ before = null, search = "" } = {}) =>
  json("GET", `/v1/conversations?${new URLSearchParams({ limit: PAGE_SIZE, ...(before && { before }), ...(search && { search }) })}`);
export const conversation = (id) => json("GET", `/v1/conversations/${part(id)}`);
export const renameConversation = (id, title) => json("PATCH", `/v1/conversations/${part(id)}`, { body: { title } });
export const deleteConversation = (id) => json("DELETE", `/v1/conversations/${part(id)}`);

export const me = () => json("GET", "/v1/me");
export const putConsent = (consent) => json("PUT", "/v1/me/consent", { body: { consent } });
export const exportMine = async () => (await client.call("GET", "/v1/me/export")).blob();
export const eraseMe = () => json("DELETE", "/v1/me");
