// Who is preferred: the leaderboard of the policies, as people chose, and at equal length and form.

import * as api from "./ops_api.js";
import { h } from "./dom.js";
import { number, percent } from "./figures.js";
import { t } from "./i18n.js";
import { card, nothing, policyLink, table } from "./ops_parts.js";
import { interval } from "./plots.js";

export const load = () => api.leaderboard();

export function draw(board) {
  if (!board.data.length || !board.pairs) return [card("leaderboard", nothing("no_choices"))];
  const bounds = board.data.flatMap(({ raw, controlled }) => [raw.win_rate_lower, raw.win_rate_upper, controlled.win_rate_lower, controlled.win_rate_upper]);
  const reach = Math.max(0.02, ...bounds.filter(Number.isFinite).map((bound) => Math.abs(bound - 0.5)));
  return [
    card(
      "leaderboard",
      h("p", { class: "quiet" }, t("board_text", { choices: number(board.choices), users: number(board.users) })),
      h("ol", { class: "board", label: "leaderboard" }, ...board.data.map((row) => standing(row, reach))),
    ),
    card("pairs", table("pairs", ["pair", "pair_wins", "pair_ties", "pair_votes", "pair_users"], board.pairs.map(pair))),
  ];
}

function standing(row, reach) {
  return h(
    "li",
    {},
    h("h3", {}, h("span", { class: "rank", label: "rank", role: "img" }, row.raw.rank === null ? "–" : String(row.raw.rank)), " ", policyLink(row.name), " ",
      h("span", { class: "quiet" }, t("board_row", { choices: number(row.choices), users: number(row.users) }))),
    h("div", { class: "measures" }, strength("as_chosen", row.raw, reach), strength("at_equal_form", row.controlled, reach)),
  );
}

function strength(title, one, reach) {
  const known = [one.win_rate, one.win_rate_lower, one.win_rate_upper].every(Number.isFinite);
  const label = t("win_rate_label", { estimate: number(one.win_rate), lower: number(one.win_rate_lower), upper: number(one.win_rate_upper) });
  const tone = one.win_rate_lower > 0.5 ? "good" : one.win_rate_upper < 0.5 ? "bad" : "open";
  return h("figure", { class: "measure" }, h("figcaption", {}, h("span", { word: title }), ` ${percent(one.win_rate)}`),
    known ? interval({ estimate: one.win_rate, lower: one.win_rate_lower, upper: one.win_rate_upper, neutral: 0.5, reach, tone, label }) : nothing("too_few_users"));
}

const pair = (row) => [
  [policyLink(row.first), " – ", policyLink(row.second)],
  `${number(row.first_wins)} – ${number(row.second_wins)}`,
  number(row.ties + row.both_bad),
  number(row.votes),
  number(row.users),
];
