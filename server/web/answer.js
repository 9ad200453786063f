// One answer on the page: its text as it streams, its vote, and what can be done with it.

import * as api from "./api.js";
import { detailsPanel } from "./ballot.js";
import { errorText, h, icon, iconButton, shortPolicy } from "./dom.js";
import { say } from "./i18n.js";
import { nodesOf } from "./markup.js";
import { stepper } from "./question.js";
import { NO_VOTE, Voter } from "./votes.js";

/** A reply's words: text that grows, a frame at a time; at its end the HTML that the server makes of the whole. */
export class AnswerText {
  constructor({ text, html }) {
    this.node = document.createTextNode(text);
    this.element = h("div", { class: "answer-text", dir: "auto" }, this.node);
    this.waiting = "";
    this.frame = 0;
    this.render(html);
  }

  append(text) {
    this.waiting += text;
    if (!this.frame) this.frame = requestAnimationFrame(() => this.flush());
  }

  flush() {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (this.waiting) this.node.appendData(this.waiting);
    this.waiting = "";
  }

  /** Without HTML (it was too long, or could not be had) the plain text stays. */
  render(html) {
    if (html === null) return;
    this.element.replaceChildren(nodesOf(html));
    this.element.classList.add("markdown");
    for (const block of this.element.querySelectorAll("pre")) {
      const box = h("div", { class: "code" });
      block.replaceWith(box);
      box.append(block, copyButton(() => block.textContent, "copy_code"));
    }
  }

  /** What the server keeps of a reply takes the place of what was streamed. */
  async settle(answer) {
    if (!answer.id || !answer.text || !["complete", "stopped"].includes(answer.state)) return;
    try {
      const { text, html } = await api.endedReply(answer.id);
      if (html === null) return;
      Object.assign(answer, { text, html });
    } catch {
      return; // the words are all there, only plain; the conversation, when it is opened again, asks again
    }
    this.render(answer.html);
  }
}

export function stateLine(answer) {
  if (answer.finishReason === "content_filter") return h("span", { class: "state filtered", word: answer.text ? "filtered" : "filtered_whole" });
  const word = { stopped: "stopped", incomplete: "incomplete", failed: "incomplete" }[answer.state];
  if (word) return h("span", { class: "state", word });
  return answer.finishReason === "length" ? h("span", { class: "state", word: "length" }) : null;
}

export function policyTag(version) {
  if (!version) return null;
  const tag = h("span", { class: "policy-tag", label: ["answered_by", { name: version }], role: "img" }, shortPolicy(version));
  tag.title = version;
  return tag;
}

export function copyButton(read, label = "copy") {
  const button = iconButton("copy", label, async () => {
    try {
      await navigator.clipboard.writeText(read());
    } catch {
      return; // not allowed here (plain HTTP on another host): the text can still be selected
    }
    button.replaceChildren(icon("check"));
    say(button, "copied", null, "i18nLabel");
    setTimeout(() => {
      button.replaceChildren(icon("copy"));
      say(button, label, null, "i18nLabel");
    }, 1600);
  });
  return button;
}

/** The thumbs of one reply, with reasons below them. `row` goes among the actions, `panel` under them. */
export function thumbs(answer) {
  const note = h("span", { class: "vote-note" });
  const panel = h("div", { class: "details-slot" });
  const buttons = {};
  let open = false;

  const voter = new Voter({
    holder: answer,
    send: (ballot) => api.putFeedback(answer.id, ballot),
    withdraw: () => api.deleteFeedback(answer.id),
    onShow: show,
    onCounted: () => {},
  });

  function show(word) {
    const kind = answer.vote?.thumb ?? null;
    for (const [name, button] of Object.entries(buttons)) button.setAttribute("aria-pressed", String(name === kind));
    details.hidden = !kind || open;
    if (word) say(note, word);
    else if (!answer.vote) note.textContent = "";
  }

  function close({ focus = true } = {}) {
    open = false;
    panel.replaceChildren();
    show(null);
    if (focus) (buttons[answer.vote?.thumb] ?? buttons.up).focus({ preventScroll: true });
  }

  function openPanel({ focus }) {
    const kind = answer.vote.thumb;
    open = true;
    panel.replaceChildren(
      detailsPanel({
        kind,
        ballot: { ...NO_VOTE, ...answer.vote, ...answer.draft },
        onSave: async (said) => {
          answer.draft = said;
          const taken = voter.cast(ballotOf({ ...answer.vote, ...said }), "vote_saved");
          close();
          if (await taken) answer.draft = null;
          else if (answer.vote && !open) openPanel({ focus: false }); // nobody types it a second time
        },
        onWithdraw: () => {
          answer.draft = null;
          voter.takeBack();
          close();
        },
        onClose: close,
      }),
    );
    show(null);
    if (focus) panel.querySelector("button").focus({ preventScroll: true });
    panel.scrollIntoView({ block: "nearest" });
  }

  function press(kind, event) {
    const byKeyboard = event.detail === 0;
    if (answer.vote?.thumb === kind) {
      if (open) close();
      else openPanel({ focus: byKeyboard });
      return;
    }
    const before = answer.vote;
    voter.cast(ballotOf({ thumb: kind, comment: before?.comment, correction: before?.correction }));
    openPanel({ focus: byKeyboard });
  }

  for (const kind of ["up", "down"]) {
    buttons[kind] = iconButton(kind === "up" ? "up" : "thumb-down", kind, (event) => press(kind, event), {
      class: "icon-button thumb",
      "data-thumb": kind,
    });
  }
  const details = h("button", { class: "link-button quiet", word: "details", onclick: () => openPanel({ focus: true }) });
  show(null);
  return { row: h("span", { class: "thumbs" }, buttons.up, buttons.down, details, note), panel };
}

/** Only what was said is sent: an absent field and a null mean the same to the server, and the log stays readable. */
export function ballotOf({ thumb, choice, reasons, comment, correction, harmful }) {
  const ballot = { reasons: reasons ?? [] };
  if (thumb) ballot.thumb = thumb;
  if (choice) ballot.choice = choice;
  if (comment) ballot.comment = comment;
  if (correction) ballot.correction = correction;
  if (harmful) ballot.harmful = true;
  return ballot;
}

/** `step(-1 | +1)` goes among the versions of this answer; of `regenerate` and `retry` only the last turn's are shown. */
export function answerView(answer, { regenerate, retry, step, position }) {
  const text = new AnswerText(answer);
  const foot = h("div", { class: "answer-foot" });
  const below = h("div");
  const element = h("article", { class: "answer", label: "kudos" }, text.element, foot, below);

  function finish() {
    text.flush();
    element.classList.remove("streaming");
    element.removeAttribute("aria-busy");
    if (answer.id) element.dataset.reply = answer.id;
    foot.replaceChildren();
    below.replaceChildren();
    if (answer.error) {
      below.append(
        h(
          "div",
          { class: "problem", role: "alert" },
          h("span", {}, errorText(answer.error)),
          answer.error.code === "content_filter" ? null : h("button", { class: "button retry", word: "retry", onclick: retry }),
        ),
      );
    }
    const line = answer.error ? null : stateLine(answer);
    text.element.hidden = !answer.text;
    if (line) foot.append(line);
    foot.append(stepper(position, step, "previous_version", "next_version") ?? "");
    const withheld = answer.finishReason === "content_filter" && !answer.text; // there is nothing to vote on
    if (answer.id && !withheld && (answer.state === "complete" || answer.state === "stopped")) {
      const { row, panel } = thumbs(answer);
      foot.append(row);
      below.append(panel);
    }
    if (answer.text) foot.append(copyButton(() => answer.text));
    if (!answer.error) foot.append(iconButton("again", "regenerate", regenerate, { class: "icon-button regenerate" }));
    const tag = policyTag(answer.policy);
    if (tag) foot.append(tag);
  }

  if (answer.state === "streaming") {
    element.classList.add("streaming");
    element.setAttribute("aria-busy", "true");
  } else {
    finish();
  }
  return {
    element,
    finish,
    settle: () => text.settle(answer),
    words: () => text.element.textContent,
    append(piece) {
      answer.text += piece;
      text.append(piece);
    },
  };
}
