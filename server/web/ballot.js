// How a person says why: reasons as chips, a comment, a better answer. Used under a reply and under a comparison.

import { h } from "./dom.js";

/** What the chips stand for is sent as the plain word (`too_long`), whatever the page's language. */
export const REASONS = {
  up: ["correct", "helpful", "friendly", "clear", "right_length"],
  down: ["wrong", "off_topic", "unclear", "too_long", "too_short", "cold", "repetitive"],
  choice: ["correct", "helpful", "friendly", "clear", "right_length"],
};

const chip = (word, pressed) => {
  const button = h("button", { class: "chip", "aria-pressed": String(pressed), word });
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  });
  return button;
};

const isPressed = (button) => button.getAttribute("aria-pressed") === "true";

/**
 * `kind` is up, down or choice; `ballot` what was said before. `onSave(details)`, `onWithdraw()` and `onClose()` are
 * the caller's; Escape closes without saving, and the vote itself stays.
 */
export function detailsPanel({ kind, ballot, onSave, onWithdraw, onClose }) {
  const chips = REASONS[kind].map((reason) => {
    const button = chip(`reason_${reason}`, ballot.reasons.includes(reason));
    button.dataset.reason = reason;
    return button;
  });
  const unknown = ballot.reasons.filter((reason) => !REASONS[kind].includes(reason)); // given elsewhere: kept
  const harmful = kind === "down" ? chip("harmful", ballot.harmful) : null;
  harmful?.classList.add("chip-harmful");

  const comment = h("textarea", { class: "field", dir: "auto", rows: 2, maxlength: 4000, label: "comment", placeholder: "comment_placeholder" });
  comment.value = ballot.comment ?? "";

  const correction = h("textarea", {
    class: "field",
    dir: "auto",
    rows: 3,
    maxlength: 8000,
    label: "correction",
    placeholder: "correction_placeholder",
  });
  correction.value = ballot.correction ?? "";
  correction.hidden = !ballot.correction;
  const openCorrection = h("button", {
    class: "link-button",
    word: "correction_open",
    onclick: () => {
      correction.hidden = false;
      openCorrection.hidden = true;
      correction.focus();
    },
  });
  openCorrection.hidden = !correction.hidden;

  const save = () =>
    onSave({
      reasons: [...chips.filter(isPressed).map((button) => button.dataset.reason), ...unknown],
      comment: comment.value.trim() || null,
      correction: correction.value.trim() || null,
      harmful: harmful !== null && isPressed(harmful),
    });

  const panel = h(
    "div",
    { class: "details", role: "group", label: `why_${kind}` },
    h("div", { class: "details-title", word: `why_${kind}`, "aria-hidden": "true" }),
    h("div", { class: "chips" }, ...chips, harmful),
    comment,
    ...(kind === "choice" ? [] : [openCorrection, correction]),
    h(
      "div",
      { class: "details-row" },
      h("button", { class: "link-button quiet", word: "withdraw", onclick: onWithdraw }),
      h("span", { class: "grow" }),
      h("button", { class: "button", word: "close", onclick: onClose }),
      h("button", { class: "button primary", word: "save", onclick: save }),
    ),
  );
  panel.addEventListener("keydown", (event) => {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      onClose();
    } else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      save();
    }
  });
  return panel;
}
