// One conversation: its turns, what is being written now, and the messages that the next call sends.

import * as api from "./api.js";
import { answerView } from "./answer.js";
import { comparisonView } from "./compare.js";
import { announce, h } from "./dom.js";
import { t } from "./i18n.js";

const SIDES = ["left", "right"];

const newAnswer = () => ({ id: null, text: "", html: null, state: "streaming", finishReason: null, policy: null, vote: null, error: null });

/**
 * A turn is {user, answers: [...], shown} or {user, comparison}. A thread goes on writing when another one is on the
 * page; its element is simply not attached then.
 */
export class Thread {
  constructor({ id = null, turns = [], hooks }) {
    this.id = id;
    this.turns = turns;
    this.hooks = hooks; // {model(), onBusy(thread), onStarted(thread), onFinished(thread), onGrew(thread)}
    this.writing = null; // the AbortController of what is being written
    this.element = h("ol", { class: "thread", label: "thread" });
    for (const turn of turns) this.#show(turn);
  }

  get busy() {
    return this.writing !== null;
  }

  stop() {
    this.writing?.abort();
  }

  send(text, { compare = false } = {}) {
    const turn = compare ? { user: text, comparison: null } : { user: text, answers: [], shown: 0 };
    const before = this.turns.at(-1);
    this.turns.push(turn);
    // Only the last turn can be answered again. Not redrawn: someone may be writing a comment there.
    for (const button of before?.element.querySelectorAll(".regenerate, .retry") ?? []) button.remove();
    return compare ? this.#compare(turn) : this.#answer(turn);
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

  /** What was said before `turn`, as shown: the answer that is open, and of two the one that was preferred. */
  #messages(turn) {
    const messages = [];
    for (const past of this.turns) {
      messages.push({ role: "user", content: past.user });
      if (past === turn) break;
      const answer = past.comparison ? preferred(past.comparison) : past.answers[past.shown];
      if (answer?.text) messages.push({ role: "assistant", content: answer.text });
      else messages.pop(); // an answer that never came takes its question with it
    }
    return messages;
  }

  async #body(turn) {
    const body = { model: await this.hooks.model(), messages: this.#messages(turn) };
    if (this.id) body.conversation_id = this.id;
    return body;
  }

  #meet(chunk) {
    if (!this.id && chunk.conversation_id) {
      this.id = chunk.conversation_id;
      this.hooks.onStarted(this);
    }
  }

  async #write(work, settle) {
    const controller = new AbortController();
    this.writing = controller;
    this.hooks.onBusy(this);
    let error = null;
    try {
      await work(controller.signal);
    } catch (caught) {
      if (!controller.signal.aborted) error = caught;
    }
    this.writing = null;
    settle(controller.signal.aborted, error);
    this.hooks.onGrew(this);
    this.hooks.onBusy(this);
    this.hooks.onFinished(this);
  }

  async #answer(turn, regenerateOf = null) {
    const answer = { ...newAnswer(), regenerateOf };
    turn.answers.push(answer);
    turn.shown = turn.answers.length - 1;
    const view = this.#show(turn);
    this.hooks.onGrew(this, { force: true });
    announce(t("writing"));
    await this.#write(
      async (signal) => {
        const body = await this.#body(turn);
        if (regenerateOf) body.regenerate_of = regenerateOf;
        for await (const chunk of api.chat(body, signal)) {
          this.#meet(chunk);
          answer.id = chunk.id ?? answer.id;
          answer.policy = chunk.system_fingerprint ?? answer.policy;
          const choice = chunk.choices?.[0];
          if (choice?.delta?.content) view.append(choice.delta.content);
          if (choice?.finish_reason) answer.finishReason = choice.finish_reason;
          this.hooks.onGrew(this);
        }
      },
      (stopped, error) => {
        answer.error = error;
        answer.state = error ? "failed" : stopped ? "stopped" : "complete";
        view.finish();
        if (stopped) announce(t("stopped_spoken"));
      },
    );
    await view.settle();
    this.hooks.onGrew(this);
    if (answer.state === "complete") announce(t("answer_ready", { text: view.words() }));
  }

  async #compare(turn) {
    const comparison = { id: null, left: newAnswer(), right: newAnswer(), vote: null, revealed: null, error: null };
    turn.comparison = comparison;
    const view = this.#show(turn);
    this.hooks.onGrew(this, { force: true });
    announce(t("writing_two"));
    await this.#write(
      async (signal) => {
        for await (const chunk of api.compare(await this.#body(turn), signal)) {
          this.#meet(chunk);
          comparison.id = chunk.comparison_id ?? comparison.id;
          const side = chunk.side;
          const choice = chunk.choices?.[0];
          if (!SIDES.includes(side)) continue;
          comparison[side].id = chunk.id ?? comparison[side].id;
          if (choice?.delta?.content) view.panes[side].append(choice.delta.content);
          if (choice?.finish_reason) {
            comparison[side].finishReason = choice.finish_reason;
            comparison[side].state = "complete";
            view.panes[side].streaming(false);
          }
          this.hooks.onGrew(this);
        }
      },
      (stopped, error) => {
        comparison.error = error;
        for (const side of SIDES) {
          if (comparison[side].state === "streaming") comparison[side].state = error ? "failed" : stopped ? "stopped" : "complete";
        }
        view.finish();
        if (stopped) announce(t("stopped_spoken"));
        else if (!error) announce(t("answers_ready"));
      },
    );
    await view.settle();
    this.hooks.onGrew(this);
  }

  /** Draws a turn, in the place of its earlier drawing if there is one. */
  #show(turn) {
    const last = turn === this.turns.at(-1);
    const item = h("li", { class: "turn" }, h("div", { class: "user", label: "you", role: "group", dir: "auto" }, turn.user));
    let view = null;
    if (turn.comparison) {
      view = comparisonView(turn.comparison, { retry: () => this.#retry(turn) });
    } else if (turn.answers.length) {
      view = answerView(turn.answers[turn.shown], {
        regenerate: last ? () => this.#regenerate(turn) : null,
        retry: last ? () => this.#retry(turn) : null,
        step: (by) => {
          turn.shown += by;
          this.#show(turn);
        },
        position: { index: turn.shown, total: turn.answers.length },
      });
    }
    if (view) item.append(view.element);
    if (turn.element) turn.element.replaceWith(item);
    else this.element.append(item);
    turn.element = item;
    return view;
  }
}

function preferred(comparison) {
  return comparison[comparison.vote?.choice === "right" ? "right" : "left"];
}
