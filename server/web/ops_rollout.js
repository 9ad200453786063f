// Which policy serves whom, what the evidence says so far, and what can be done about it.

import * as api from "./ops_api.js";
import { h } from "./dom.js";
import { bounded, number, percent, when } from "./figures.js";
import { t } from "./i18n.js";
import { ask } from "./ops_act.js";
import { card, chip, facts, nothing, policyLink, sentenceOf, stateChip, table, worded } from "./ops_parts.js";
import { interval } from "./plots.js";

const TONES = { harm: "bad", no_worse: "good" };

export async function load() {
  const [{ wanted }, rollout] = await Promise.all([api.policies(), api.rollout()]);
  return { wanted, rollout };
}

export function draw({ wanted, rollout }, { refresh }) {
  const parts = [serving(wanted, rollout, refresh)];
  const decision = rollout?.decision;
  if (decision) {
    parts.push(
      card("evidence", h("p", { class: "verdict", dir: "auto" }, h("strong", {}, `${worded("verdict", decision.verdict)}: `), decision.reason),
        h("div", { class: "measures" }, ...decision.measures.map(measure))),
      card("guardrails", table("guardrails", ["guardrail", "users_candidate", "at_share", "p_value", "alarm_below"], decision.alarms.map(alarm))),
    );
  }
  if (decision?.guardrails?.length) {
    parts.push(card("limits", table("limits", ["limit", "candidate_and_stable", "may_be", "users"], decision.guardrails.map(limit))));
  }
  parts.push(replicas(wanted, rollout));
  return parts;
}

function serving(wanted, rollout, refresh) {
  const canary = ["canary", "shadow"].includes(rollout?.state); // a candidate is on its way
  const actions = canary
    ? ["advance", "promote", rollout.held ? "resume" : "hold", "rollback"]
    : rollout?.state === "promoted"
      ? ["rollback"]
      : [];
  const steps = canary && h("ol", { class: "steps", label: "steps" }, ...rollout.plan.steps.map((step) =>
    h("li", { class: step <= rollout.share ? "reached" : "", "aria-current": step === rollout.share ? "step" : null }, percent(step))));
  return card(
    "serving",
    shares(wanted),
    steps || null,
    rollout
      ? facts([
          ["state", [stateChip(rollout.state), rollout.held ? chip(t("held"), "bad") : ""]],
          ["candidate", canary ? policyLink(rollout.candidate_version) : null],
          ["stable", policyLink(canary ? rollout.stable_version : wanted.stable)],
          ["since", when(rollout.step_began)],
          ["started_by", rollout.started_by],
          ["reason", rollout.reason],
        ])
      : nothing("no_rollout"),
    actions.length ? h("div", { class: "actions" }, ...actions.map((action) => actionButton(action, refresh))) : null,
    canary ? null : h("p", { class: "quiet" }, h("a", { href: "#policies", word: "choose_policy" })),
  );
}

function shares(wanted) {
  const parts = [[wanted.stable, 1 - wanted.share, "stable"]];
  if (wanted.candidate) parts.push([wanted.candidate, wanted.share, "candidate"]);
  const shown = parts.filter(([, share]) => share > 0);
  const words = shown.map(([version, share]) => `${version} ${percent(share)}`).join(", ");
  return h(
    "div",
    { class: "shares" },
    h("div", { class: "shares-bar", role: "img", label: ["shares_label", { words }] },
      ...shown.map(([, share, kind]) => {
        const part = h("span", { class: `share-${kind}` });
        part.style.flexGrow = String(share);
        return part;
      })),
    h("ul", {}, ...shown.map(([version, share, kind]) =>
      h("li", {}, h("span", { class: `share-key share-${kind}` }), policyLink(version), ` ${percent(share)} `, h("span", { class: "quiet", word: `share_${kind}` })))),
  );
}

function actionButton(action, refresh) {
  const danger = action === "rollback";
  return h("button", {
    class: danger ? "button danger" : action === "advance" ? "button primary" : "button",
    "data-action": action,
    word: `do_${action}`,
    onclick: async () => {
      const done = await ask({
        words: { title: `title_${action}`, button: `do_it_${action}`, done: `done_${action}` },
        plan: async (said) => sentenceOf(await api.act(action, { ...said, dry_run: true })),
        run: (said) => api.act(action, said),
        danger,
      });
      if (done) refresh();
    },
  });
}

function measure(one) {
  const name = worded("measure", one.name);
  const known = one.estimate !== null;
  const label = known
    ? t("interval_label", { name, estimate: number(one.estimate), lower: number(one.lower), upper: number(one.upper), neutral: number(one.neutral), needed: number(one.needed) })
    : "";
  return h(
    "figure",
    { class: "measure" },
    h("figcaption", {}, h("strong", {}, name), " ", chip(worded("standing", one.standing), TONES[one.standing] ?? "plain")),
    known ? interval({ ...one, tone: TONES[one.standing] ?? "open", label }) : nothing("too_few_users"),
    known ? h("p", { class: "quiet" }, t("measure_text", { estimate: number(one.estimate), users: number(one.users), needed: number(one.needed) })) : null,
  );
}

const alarm = (one) => [
  [worded("alarm", one.name), one.raised ? [" ", chip(t("raised"), "bad")] : []].flat(),
  t("of_users", { n: number(one.candidate), total: number(one.users) }),
  percent(one.share),
  one.p_value.toPrecision(2),
  one.alpha.toPrecision(2),
];

/** Of times, lengths and the like: the candidate's over the stable policy's, or less it. */
const limit = (one) => [
  [worded("limit", one.name), one.raised ? [" ", chip(t("raised"), "bad")] : []].flat(),
  one.estimate === null ? t("too_few_users") : bounded(one.estimate, one.lower, one.upper),
  one.lowest === null ? t("at_most", { most: number(one.highest) }) : t("between", { least: number(one.lowest), most: number(one.highest) }),
  number(one.users),
];

const held = ({ holds, folded }) => [
  ...holds.flatMap((version) => [policyLink(version), " "]),
  folded ? chip(t("folded")) : "",
];

function replicas(wanted, rollout) {
  const rows = (rollout?.replicas ?? []).map((replica) => [
    h("span", { class: "code-name" }, replica.id),
    replica.heard_of ? chip(t(replica.ready ? "ready" : "not_ready"), replica.ready ? "good" : "bad") : chip(t("silent"), "bad"),
    held(replica),
    problems(replica.problems),
  ]);
  if (rows.length) return card("replicas", table("replicas", ["replica", "state", "holds", "problems"], rows));
  return card(
    "this_server",
    facts([
      ["answers_with", policyLink(wanted.serving || wanted.stable)],
      ["holds", held(wanted)],
      ["problems", problems(wanted.problems)],
    ]),
  );
}

const problems = (found) =>
  Object.keys(found).length
    ? Object.entries(found).map(([version, why]) => h("p", { class: "bad-news" }, `${version}: ${why}`))
    : t("no_problems");
