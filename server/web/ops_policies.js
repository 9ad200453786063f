// The policies: what came of each, what it came from, and the gate's report.

import * as api from "./ops_api.js";
import { h } from "./dom.js";
import { bounded, number, percent, when } from "./figures.js";
import { t } from "./i18n.js";
import { ask, SHADOW } from "./ops_act.js";
import { card, chip, facts, nothing, policyLink, runLink, sentenceOf, stateChip, table } from "./ops_parts.js";
import { interval } from "./plots.js";

const NOT_MEASURES = new Set(["flags", "extra"]);

export async function load(version) {
  if (!version) return api.policies();
  const [one, { wanted, steps }] = await Promise.all([api.policy(version), api.policies()]);
  const run = one.lineage.run_id ? await api.run(one.lineage.run_id) : null;
  return { one, wanted, steps, reportUrl: run?.report_url ?? null };
}

/** A link to the report is signed anew each time; all else says whether something has changed. */
export const stable = (data) => (data.one ? { ...data, reportUrl: null } : data);

export function draw(data, { refresh }) {
  if (data.one) return whole(data, refresh);
  const newest = [...data.data].reverse();
  return [card("policies", h("ul", { class: "cards" }, ...newest.map((row) => h("li", {}, summary(row, data.wanted)))))];
}

function serves(version, wanted) {
  if (version === wanted.candidate) return chip(t("serves_candidate", { share: percent(wanted.share) }), "live");
  return version === wanted.stable ? chip(t("serves_stable", { share: percent(1 - wanted.share) }), "live") : "";
}

function summary(row, wanted) {
  const { report } = row;
  return h(
    "article",
    { class: "policy" },
    h("h3", {}, h("a", { href: `#policies/${encodeURIComponent(row.version)}` }, row.version), " ", stateChip(row.kind === "base" ? "base" : row.state), " ", serves(row.version, wanted)),
    facts([
      ["parent", row.parent_version && policyLink(row.parent_version)],
      ["kl", Number.isFinite(report.kl_nats) ? number(report.kl_nats) : null],
      ["made", when(row.created_at)],
    ]),
    winRate(report),
    row.refusals.length ? h("p", { class: "bad-news", dir: "auto" }, row.refusals[0]) : null,
  );
}

function winRate(report) {
  const { win_rate: estimate, win_rate_lower: lower, win_rate_upper: upper } = report;
  if (![estimate, lower, upper].every(Number.isFinite)) return null;
  const label = t("win_rate_label", { estimate: number(estimate), lower: number(lower), upper: number(upper) });
  const tone = lower > 0.5 ? "good" : upper < 0.5 ? "bad" : "open";
  return h("figure", { class: "measure" }, h("figcaption", { word: "win_rate_over_serving" }), interval({ estimate, lower, upper, neutral: 0.5, tone, label }));
}

function whole({ one, wanted, steps, reportUrl }, refresh) {
  const { lineage, report } = one;
  const learned = lineage.vote_ids.length
    ? t("learned_from", { votes: number(lineage.vote_ids.length), users: number(lineage.voters) })
    : null;
  const replies = Object.entries(lineage.replies).map(([state, n]) => `${number(n)} ${t(`reply_${state}`)}`).join(", ");
  const mayStart = one.version !== wanted.stable && one.version !== wanted.candidate;
  return [
    h("p", {}, h("a", { href: "#policies", word: "all_policies" })),
    h(
      "section",
      { class: "card" },
      h("h2", {}, one.version, " ", stateChip(one.kind === "base" ? "base" : one.state), " ", serves(one.version, wanted)),
      line(one),
      facts([
        ["kind", t(`kind_${one.kind}`)],
        ["made", when(one.created_at)],
        ["learned", learned],
        ["samples", lineage.samples.map((each) => `${number(each.samples)} ${each.kind} (${each.split.replace("_", " ")})`).join(", ")],
        ["run", lineage.run_id && runLink(lineage.run_id)],
        ["reward_model", lineage.reward_model_id && h("span", { class: "code-name" }, lineage.reward_model_id)],
        ["replies", replies || t("none_yet")],
        ["digest", h("span", { class: "code-name" }, one.digest)],
      ]),
      h(
        "div",
        { class: "actions" },
        mayStart ? h("button", { class: "button primary", word: "do_start", "data-action": "start", onclick: () => start(one, steps, refresh) }) : null,
        reportUrl ? h("a", { class: "button", href: reportUrl, target: "_blank", rel: "noopener", word: "open_report" }) : null,
      ),
    ),
    one.refusals.length ? card("refused_because", h("ul", {}, ...one.refusals.map((each) => h("li", { class: "bad-news", dir: "auto" }, each)))) : null,
    report.flags?.length ? card("flags", h("ul", {}, ...report.flags.map((each) => h("li", { dir: "auto" }, each)))) : null,
    evidence(report),
  ].filter(Boolean);
}

/** Where it comes from and what has come of it, in a row. */
function line({ version, lineage }) {
  const arrow = () => h("span", { class: "arrow", "aria-hidden": "true" }, "→");
  const before = [...lineage.ancestors].reverse().flatMap((each) => [policyLink(each), arrow()]);
  const after = lineage.children.flatMap((each, index) => [index ? " " : arrow(), policyLink(each)]);
  return h("p", { class: "line", role: "group", label: "lineage" }, ...before, h("strong", {}, version), ...after);
}

function evidence(report) {
  const names = Object.keys(report).filter((name) => !NOT_MEASURES.has(name) && !/_(lower|upper|serving)$/.test(name));
  const rows = names
    .filter((name) => report[name] !== null)
    .map((name) => {
      const plain = name.replace(/_candidate$/, "");
      return [plain.replaceAll("_", " "), bounded(report[name], report[`${name}_lower`], report[`${name}_upper`]), name === plain ? "" : number(report[`${plain}_serving`])];
    });
  return rows.length ? card("gate_report", winRate(report), table("gate_report", ["measure", "this_policy", "serving_policy"], rows)) : card("gate_report", nothing("no_report"));
}

async function start({ version, state }, steps, refresh) {
  const done = await ask({
    words: { title: "title_start", button: "do_it_start", done: "done_start" },
    plan: async (said) => sentenceOf(await api.start({ ...said, version, dry_run: true })),
    run: (said) => api.start({ ...said, version }),
    shares: [...steps.map((value) => ({ value, words: percent(value) })), { value: SHADOW, words: t("share_shadow") }],
    mayForce: state !== "accepted",
  });
  if (done) refresh();
}
