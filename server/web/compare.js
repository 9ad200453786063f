// Two answers side by side: they stream together, a choice is made, and only then the policies are named.

import * as api from "./api.js";
import { AnswerText, ballotOf, copyButton, policyTag, stateLine } from "./answer.js";
import { detailsPanel } from "./ballot.js";
import { errorText, h, shortPolicy } from "./dom.js";
import { say } from "./i18n.js";
import { NO_VOTE, Voter } from "./votes.js";
import { SIDES } from "./writing.js";

const CHOICES = ["left", "tie", "both_bad", "right"];

function pane(side, answer) {
  const text = new AnswerText(answer);
  const mark = h("span", { class: "preferred", word: "preferred" });
  const policy = h("span", { class: "pane-policy" });
  const foot = h("div", { class: "answer-foot" });
  const name = side === "left" ? "answer_a" : "answer_b";
  const element = h(
    "article",
    { class: "pane", "data-side": side, label: name },
    h("header", { class: "pane-head" }, h("span", { class: "pane-name", word: name, "aria-hidden": "true" }), policy, mark),
    text.element,
    foot,
  );
  return {
    element,
    settle: () => text.settle(answer),
    append(piece) {
      answer.text += piece;
      text.append(piece);
    },
    streaming(yes) {
      element.classList.toggle("streaming", yes);
      if (yes) element.setAttribute("aria-busy", "true");
      else element.removeAttribute("aria-busy");
    },
    finish() {
      text.flush();
      this.streaming(false);
      const line = stateLine(answer);
      foot.replaceChildren(...(line ? [line] : []), ...(answer.text ? [copyButton(() => answer.text)] : []));
    },
    reveal(version, preferred) {
      const tag = policyTag(version);
      policy.replaceChildren(...(tag ? [tag] : []));
      element.classList.toggle("is-preferred", preferred);
    },
  };
}

/** `comparison` = {id, left, right, vote, revealed: {left, right} | null, error, offered: unasked}. */
export function comparisonView(comparison, { retry }) {
  const panes = Object.fromEntries(SIDES.map((side) => [side, pane(side, comparison[side])]));
  const below = h("div", { class: "choosing" });
  const offer = comparison.offered ? h("p", { class: "offer quiet", word: "offered" }) : null;
  const element = h("div", { class: "comparison" }, offer, h("div", { class: "panes" }, panes.left.element, panes.right.element), below);
  const note = h("span", { class: "vote-note" });
  const panel = h("div", { class: "details-slot" });
  const buttons = Object.fromEntries(
    CHOICES.map((choice) => [
      choice,
      h("button", {
        class: "choice",
        "data-choice": choice,
        word: `choice_${choice}`,
        onclick: () => choose(choice),
      }),
    ]),
  );
  const question = h("div", { class: "question", word: "choose" });
  const revealed = h("p", { class: "revealed" });
  const details = h("button", { class: "link-button quiet", word: "details", onclick: () => openPanel({ focus: true }) });

  const voter = new Voter({
    holder: comparison,
    send: (ballot) => api.putChoice(comparison.id, ballot),
    withdraw: () => api.deleteChoice(comparison.id),
    onShow: show,
    onCounted: (answer) => {
      if (answer?.revealed) comparison.revealed = answer.revealed;
      show(null);
    },
  });

  function choose(choice) {
    if (comparison.vote?.choice === choice) return openPanel({ focus: true });
    closePanel({ focus: false });
    voter.cast(ballotOf({ choice, comment: comparison.vote?.comment }));
  }

  function closePanel({ focus = true } = {}) {
    panel.replaceChildren();
    show(null);
    if (focus) (buttons[comparison.vote?.choice] ?? buttons.left).focus({ preventScroll: true });
  }

  function openPanel({ focus }) {
    panel.replaceChildren(
      detailsPanel({
        kind: "choice",
        ballot: { ...NO_VOTE, ...comparison.vote, ...comparison.draft },
        onSave: async (said) => {
          comparison.draft = { reasons: said.reasons, comment: said.comment };
          const taken = voter.cast(ballotOf({ ...comparison.vote, ...comparison.draft }), "vote_saved");
          closePanel();
          if (await taken) comparison.draft = null;
          else if (comparison.vote && !panel.childElementCount) openPanel({ focus: false }); // nobody types it twice
        },
        onWithdraw: () => {
          comparison.draft = null;
          voter.takeBack();
          closePanel();
        },
        onClose: closePanel,
      }),
    );
    show(null);
    if (focus) panel.querySelector("button").focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  }

  function show(word) {
    const choice = comparison.vote?.choice ?? null;
    for (const [name, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(name === choice));
    question.hidden = choice !== null;
    details.hidden = choice === null || panel.childElementCount > 0;
    const names = comparison.revealed; // once seen it stays seen, even when the choice is withdrawn
    for (const side of SIDES) panes[side].reveal(names?.[side], choice === side);
    if (!names) revealed.textContent = "";
    else if (names.left === names.right) say(revealed, "same_policy");
    else say(revealed, "reveal", { left: shortPolicy(names.left), right: shortPolicy(names.right) });
    if (word) say(note, word);
    else if (!comparison.vote) note.textContent = "";
  }

  function finish() {
    for (const side of SIDES) panes[side].finish();
    if (comparison.id) element.dataset.comparison = comparison.id;
    below.replaceChildren();
    if (comparison.error) {
      below.append(
        h(
          "div",
          { class: "problem", role: "alert" },
          h("span", {}, errorText(comparison.error)),
          comparison.error.code === "content_filter" ? null : h("button", { class: "button retry", word: "retry", onclick: retry }),
        ),
      );
      return;
    }
    const votable = SIDES.every((side) => ["complete", "stopped"].includes(comparison[side].state) && comparison[side].text);
    if (!comparison.id || !votable) return;
    below.append(
      question,
      h("div", { class: "choices", role: "group", label: "choose" }, ...Object.values(buttons)),
      h("div", { class: "choice-after" }, revealed, note, details),
      panel,
    );
    show(null);
  }

  if (SIDES.some((side) => comparison[side].state === "streaming")) for (const side of SIDES) panes[side].streaming(true);
  else finish();
  return { element, panes, finish, settle: () => Promise.all(SIDES.map((side) => panes[side].settle())) };
}
