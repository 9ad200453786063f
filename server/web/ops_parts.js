// What the views of the operator's page share: chips, facts, tables, links to policies, what a plan says.

import { h, shortPolicy } from "./dom.js";
import { percent } from "./figures.js";
import { hasWord, t } from "./i18n.js";

/** A word of the server's (a state, an action) as the page says it; one that the page does not know, as it is. */
export const worded = (kind, value) => (hasWord(`${kind}_${value}`) ? t(`${kind}_${value}`) : String(value).replaceAll("_", " "));

export const chip = (words, tone = "plain") => h("span", { class: `tag tag-${tone}` }, words);

const STATE_TONES = { accepted: "good", succeeded: "good", promoted: "good", refused: "bad", failed: "bad", rolled_back: "bad", running: "live", canary: "live" };
export const stateChip = (state) => chip(worded("state", state), STATE_TONES[state]);

export const policyLink = (version) => h("a", { href: `#policies/${encodeURIComponent(version)}`, title: version }, shortPolicy(version));

export const runLink = (id) => h("a", { href: `#training/${encodeURIComponent(id)}`, class: "code-name" }, id);

/** Pairs of a word's key and what it is; what is null is left out. */
export const facts = (pairs) =>
  h(
    "dl",
    { class: "facts" },
    ...pairs
      .filter(([, value]) => value !== null && value !== undefined && value !== "")
      .map(([key, value]) => h("div", {}, h("dt", { word: key }), h("dd", { dir: "auto" }, ...[value].flat()))),
  );

/** `heads` are words' keys; `rows` lists of cells. Wider than the screen, it scrolls, by keyboard too. */
export const table = (label, heads, rows) =>
  h(
    "div",
    { class: "table-box", tabindex: 0, role: "region", label },
    h(
      "table",
      { class: "figures" },
      h("thead", {}, h("tr", {}, ...heads.map((key) => h("th", { scope: "col", word: key })))),
      h("tbody", {}, ...rows.map((cells) => h("tr", {}, ...cells.map((cell) => h("td", { dir: "auto" }, ...[cell ?? ""].flat()))))),
    ),
  );

export const card = (title, ...children) => h("section", { class: "card" }, title ? h("h2", { word: title }) : null, ...children);

export const nothing = (word) => h("p", { class: "empty", word });

/** What an action will do, in the page's language; one that the page does not know, in the server's words. */
export function sentenceOf(plan) {
  const by = { promoted: "promote", shadow: "shadow" }[plan.to_state] ?? plan.action; // the last step promotes
  const kind = plan.to_state === "shadow" && plan.action !== "shadow" ? null : by;
  if (!hasWord(`plan_${kind}`)) return plan.sentence;
  const words = t(`plan_${kind}`, {
    candidate: plan.candidate,
    stable: plan.stable,
    from: percent(plan.from_share),
    to: percent(plan.to_share),
  });
  return plan.swaps_base ? `${words} ${t("plan_swap")}` : words;
}
