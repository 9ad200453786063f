// Every call of the operator's page. No DOM here.

import { Client } from "./client.js";

// Not the key of the chat page, and kept apart from it: an operator who chats is a user like any other. Nothing is sent
// without it, for that would make the browser a user. 403 is what a key without the scope gets.
export const client = new Client("kudos.operator_key", { asksAt: [401, 403], always: true });

const part = encodeURIComponent;
const get = (path) => client.json("GET", path);
const post = (path, body = {}) => client.json("POST", path, { body });

export const policies = () => get("/v1/policies");
export const policy = (version) => get(`/v1/policies/${part(version)}`);
export const events = () => get("/v1/rollouts/events");
export const start = (body) => post("/v1/rollouts", body);
export const act = (action, body) => post(`/v1/rollouts/current/${part(action)}`, body);
export const runs = () => get("/v1/training/runs?limit=50");
export const run = (id) => get(`/v1/training/runs/${part(id)}`);
export const train = () => client.json("POST", "/v1/training/runs");
export const leaderboard = () => get("/v1/leaderboard");

/** Null where the base serves everyone. */
export async function rollout() {
  try {
    return await get("/v1/rollouts/current");
  } catch (error) {
    if (error.code === "no_rollout") return null;
    throw error;
  }
}
