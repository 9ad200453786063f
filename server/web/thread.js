// One conversation: its turns, what is being written now, and the messages that the next call sends.

import * as api from "./api.js";
import { answerView } from "./answer.js";
import { comparisonView } from "./compare.js";
import { h } from "./dom.js";
import { addTurn, newRoot, pathOf } from "./history.js";
import { questionView } from "./question.js";
import { newAnswer, OneAnswer, TwoAnswers } from "./writing.js";

/**
 * A turn is {user, answers: [...], shown, comparison, parent, next: [...], open}: a question with its answers, or with
 * two to choose between, and the wordings of what follows it. A thread goes on writing when another one is on the page;
 * its element is simply not attached then.
 */
export class Thread {
  constructor({ id = null, root = newRoot(), hooks }) {
    this.id = id;
    this.root = root;
    this.hooks = hooks; // {model(), onBusy(thread), onStarted(thread), onFinished(thread), onGrew(thread)}
    this.writing = null; // the AbortController of what is being written
    this.element = h("ol", { class: "thread", label: "thread" });
    this.#draw();
  }

  /** Those on the page, from the first to the last. */
  get turns() {
    return pathOf(this.root);
  }

  get busy() {
    return this.writing !== null;
  }

  stop() {
    this.writing?.abort();
  }

  /** `after` is the turn that the question follows; another question there stays, as an earlier wording. */
  send(text, { compare = false, after = this.turns.at(-1) ?? this.root } = {}) {
    const turn = addTurn(after, text);
    this.#draw();
    return compare ? this.#compare(turn) : this.#answer(turn, null, { mayCompare: true });
  }

  #edit(turn, text) {
    if (this.busy) return;
    this.send(text, { compare: turn.comparison !== null && !turn.comparison.offered, after: turn.parent });
    this.turns.at(-1).asked.querySelector(".edit").focus({ preventScroll: true });
  }

  #regenerate(turn) {
    return this.busy ? undefined : this.#answer(turn, turn.answers[turn.shown].id);
  }

  #retry(turn) {
    if (this.busy) return undefined;
    if (turn.comparison) return this.#compare(turn);
    const failed = turn.answers.splice(turn.shown, 1)[0];
    turn.shown = Math.max(0, turn.answers.length - 1);
    return this.#answer(turn, turn.answers.length ? turn.answers[0].id : (failed.regenerateOf ?? null));
  }

  #answer(turn, regenerateOf = null, { mayCompare = false } = {}) {
    const answer = newAnswer({ regenerateOf });
    turn.shown = turn.answers.push(answer) - 1;
    const writer = new OneAnswer(answer, this.#show(turn));
    // What is written again stands where the first answer stands. A field that is undefined is not sent.
    const more = regenerateOf ? { regenerate_of: regenerateOf, parent_id: undefined } : { may_compare: mayCompare || undefined };
    return this.#write(turn, writer, api.chat, more);
  }

  #compare(turn) {
    return this.#write(turn, this.#two(turn), api.compare);
  }

  #two(turn, { offered = false } = {}) {
    turn.answers = [];
    turn.comparison = { id: null, left: newAnswer(), right: newAnswer(), vote: null, revealed: null, error: null, offered };
    return new TwoAnswers(turn.comparison, this.#show(turn));
  }

  async #write(turn, begun, call, more = {}) {
    let writer = begun;
    const { signal } = (this.writing = new AbortController());
    this.element.classList.add("busy");
    this.hooks.onBusy(this);
    this.hooks.onGrew(this, { force: true });
    let error = null;
    try {
      for await (const chunk of call({ ...(await this.#body(turn)), ...more }, signal)) {
        // The server may have made a comparison of it.
        if (chunk.comparison_id && !turn.comparison) writer = this.#two(turn, { offered: true });
        this.#meet(chunk);
        writer.take(chunk);
        this.hooks.onGrew(this);
      }
    } catch (caught) {
      if (!signal.aborted) error = caught;
    }
    this.writing = null;
    this.element.classList.remove("busy");
    writer.end(signal.aborted, error);
    this.hooks.onGrew(this);
    this.hooks.onBusy(this);
    this.hooks.onFinished(this);
    await writer.settle();
    this.hooks.onGrew(this);
  }

  #meet(chunk) {
    if (!this.id && chunk.conversation_id) {
      this.id = chunk.conversation_id;
      this.hooks.onStarted(this);
    }
  }

  /** All that was said before `turn`, as shown: the answer that is open, and of two the one that was preferred. */
  async #body(turn) {
    const body = { model: await this.hooks.model(), messages: [] };
    if (this.id) Object.assign(body, { conversation_id: this.id, parent_id: this.id });
    for (let past = turn.parent; past !== this.root; past = past.parent) {
      const answer = past.comparison ? preferred(past.comparison) : past.answers[past.shown];
      if (!answer?.text) continue; // an answer that never came takes its question with it
      body.messages.unshift({ role: "user", content: past.user }, { role: "assistant", content: answer.text });
      if (body.parent_id === this.id) body.parent_id = answer.id;
    }
    body.messages.push({ role: "user", content: turn.user });
    return body;
  }

  #draw() {
    this.element.replaceChildren(
      ...this.turns.map((turn) => {
        if (!turn.element) this.#show(turn);
        turn.asked.replaceWith((turn.asked = this.#asked(turn)));
        return turn.element;
      }),
    );
  }

  #asked(turn) {
    const { next, open } = turn.parent;
    return questionView(turn.user, {
      position: { index: open, total: next.length },
      step: (by) => {
        turn.parent.open += by;
        this.#draw();
        const shown = turn.parent.next[turn.parent.open].asked;
        (shown.querySelector(by < 0 ? ".versions button:first-child:enabled" : ".versions button:last-child:enabled") ??
          shown.querySelector(".versions button:enabled")).focus({ preventScroll: true });
      },
      edit: (text) => this.#edit(turn, text),
    });
  }

  /** Draws a turn, in the place of its earlier drawing if there is one. */
  #show(turn) {
    let view = null;
    if (turn.comparison) {
      view = comparisonView(turn.comparison, { retry: () => this.#retry(turn) });
    } else if (turn.answers.length) {
      view = answerView(turn.answers[turn.shown], {
        regenerate: () => this.#regenerate(turn),
        retry: () => this.#retry(turn),
        step: (by) => {
          turn.shown += by;
          this.#show(turn);
        },
        position: { index: turn.shown, total: turn.answers.length },
      });
    }
    turn.asked ??= this.#asked(turn);
    const item = h("li", { class: "turn" }, turn.asked, view?.element);
    turn.element?.replaceWith(item);
    turn.element = item;
    return view;
  }
}

function preferred(comparison) {
  return comparison[comparison.vote?.choice === "right" ? "right" : "left"];
}
