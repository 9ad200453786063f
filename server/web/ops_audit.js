// The audit log: who did what to which rollout, when and why, and whether the log is as it was written.

import * as api from "./ops_api.js";
import { h } from "./dom.js";
import { percent, when } from "./figures.js";
import { t } from "./i18n.js";
import { card, chip, nothing, policyLink, stateChip, table, worded } from "./ops_parts.js";

export const load = () => api.events();

export function draw({ data, chain }) {
  if (!data.length) return [card("audit_log", nothing("no_events"))];
  return [card("audit_log", whole(chain), table("audit_log", ["when", "candidate", "action", "state", "share", "by", "reason", "hash"], data.map((event) => row(event, chain))))];
}

function whole({ events, head, broken }) {
  return broken === null
    ? h("p", {}, chip(t("chain_whole"), "good"), ` ${t("chain_text", { n: events })} `, h("span", { class: "code-name" }, head))
    : h("p", { role: "alert" }, chip(t("chain_broken"), "bad"), ` ${t("chain_broken_text", { id: broken })}`);
}

const row = (event, { broken }) => [
  [when(event.created_at), event.id === broken ? [" ", chip(t("chain_broken"), "bad")] : []].flat(),
  policyLink(event.candidate_version),
  worded("action", event.action),
  stateChip(event.to_state),
  percent(event.share),
  event.actor,
  event.reason,
  h("span", { class: "code-name", title: event.hash }, event.hash.slice(0, 10)),
];
