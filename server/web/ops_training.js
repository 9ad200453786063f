// Training runs: how far the one that runs is, what came of the others, and the curves of each.

import * as api from "./ops_api.js";
import { h } from "./dom.js";
import { bounded, number, percent, when } from "./figures.js";
import { hasWord, t } from "./i18n.js";
import { ask } from "./ops_act.js";
import { card, facts, nothing, policyLink, runLink, stateChip } from "./ops_parts.js";
import { curves } from "./plots.js";

const CURVES = [
  ["curve_reward", { votes: "votes_reward", composed: "reward", judge: "judge_reward" }],
  ["curve_kl", { kl: "kl_nats" }],
  ["curve_length", { tokens: "reply_tokens" }],
  ["curve_entropy", { entropy: "entropy_nats_per_token" }],
  ["curve_clip", { clip: "clip_fraction" }],
  ["curve_doubt", { doubt: "uncertainty" }],
];

export const load = (id) => (id ? api.run(id) : api.runs());

export const stable = (data) => ({ ...data, report_url: null });

export function draw(data, { refresh }) {
  if (data.object === "training.run") return whole(data);
  const train = h("button", { class: "button", word: "do_train", "data-action": "train", onclick: () => wish(refresh) });
  const rows = data.data.map((run) => h("li", {}, summary(run)));
  return [card("runs", h("div", { class: "actions" }, train), rows.length ? h("ul", { class: "cards" }, ...rows) : nothing("no_runs"))];
}

const stage = (run) => (hasWord(`stage_${run.stage}`) ? t(`stage_${run.stage}`) : run.stage);

function progress(run) {
  if (run.state !== "running") return null;
  const bar = h("progress", { max: 1, label: ["run_progress", { share: percent(run.progress), stage: stage(run) }] });
  bar.value = run.progress;
  return h("p", { class: "run-progress" }, bar, ` ${percent(run.progress)} · ${stage(run)}`);
}

function summary(run) {
  return h(
    "article",
    { class: "run" },
    h("h3", {}, runLink(run.id), " ", stateChip(run.state)),
    progress(run),
    facts([
      ["votes", number(run.votes)],
      ["started", when(run.started_at)],
      ["ended", run.finished_at && when(run.finished_at)],
      ["policy", run.policy_version && policyLink(run.policy_version)],
    ]),
    run.error ? h("p", { class: "bad-news", dir: "auto" }, run.error) : h("p", { class: "quiet", dir: "auto" }, run.message),
  );
}

function whole(run) {
  const judged = run.metrics.reward_model;
  const history = run.metrics.ppo ?? [];
  return [
    h("p", {}, h("a", { href: "#training", word: "all_runs" })),
    h(
      "section",
      { class: "card" },
      h("h2", { class: "code-name" }, run.id, " ", stateChip(run.state)),
      progress(run),
      run.error ? h("p", { class: "bad-news", dir: "auto" }, run.error) : h("p", { dir: "auto" }, run.message),
      facts([
        ["votes", number(run.votes)],
        ["started", when(run.started_at)],
        ["ended", run.finished_at && when(run.finished_at)],
        ["policy", run.policy_version && policyLink(run.policy_version)],
        ["held_out_accuracy", judged && bounded(judged.accuracy, judged.lower, judged.upper)],
        ["method", run.config.ppo?.method],
      ]),
      run.report_url ? h("div", { class: "actions" }, h("a", { class: "button", href: run.report_url, target: "_blank", rel: "noopener", word: "open_report" })) : null,
    ),
    card("curves", history.length ? h("div", { class: "plots" }, ...CURVES.map((curve) => plot(curve, history, run.config)).filter(Boolean)) : nothing("no_curves")),
  ];
}

function plot([title, names], history, config) {
  const series = Object.entries(names)
    .map(([name, column]) => ({ name: t(`series_${name}`), values: history.map((row) => row[column]).filter(Number.isFinite) }))
    .filter((one) => one.values.length);
  if (!series.length) return null;
  const ends = series.map((one) => `${one.name} ${number(one.values[0])} → ${number(one.values.at(-1))}`).join("; ");
  const target = title === "curve_kl" ? (config.ppo?.kl_target_nats ?? null) : null;
  return h("figure", {}, h("figcaption", {}, h("strong", { word: title }), h("span", { class: "quiet" }, ` ${ends}`)),
    curves({ series, target, label: t("curves_label", { name: t(title), ends, n: number(history.length) }) }));
}

async function wish(refresh) {
  const done = await ask({
    words: { title: "title_train", button: "do_it_train", done: "done_train" },
    plan: async () => t("plan_train"),
    run: () => api.train(),
    reasons: false,
  });
  if (done) refresh();
}
