// What is being written in a turn: one answer, or two side by side. Takes the chunks of a stream; knows no network.

import { announce } from "./dom.js";
import { t } from "./i18n.js";

export const SIDES = ["left", "right"];

export const newAnswer = (more = {}) => ({
  id: null,
  text: "",
  html: null,
  state: "streaming",
  finishReason: null,
  policy: null,
  vote: null,
  error: null,
  ...more,
});

const endOf = (stopped, error) => (error ? "failed" : stopped ? "stopped" : "complete");

export class OneAnswer {
  /** `view` is of answer.js. */
  constructor(answer, view) {
    Object.assign(this, { answer, view });
    announce(t("writing"));
  }

  take(chunk) {
    const { answer, view } = this;
    answer.id = chunk.id ?? answer.id;
    answer.policy = chunk.system_fingerprint ?? answer.policy;
    const choice = chunk.choices?.[0];
    if (choice?.delta?.content) view.append(choice.delta.content);
    if (choice?.finish_reason) answer.finishReason = choice.finish_reason;
  }

  end(stopped, error) {
    this.answer.error = error;
    this.answer.state = endOf(stopped, error);
    this.view.finish();
    if (stopped) announce(t("stopped_spoken"));
  }

  async settle() {
    await this.view.settle();
    if (this.answer.state === "complete") announce(t("answer_ready", { text: this.view.words() }));
  }
}

export class TwoAnswers {
  /** `view` is of compare.js. */
  constructor(comparison, view) {
    Object.assign(this, { comparison, view });
    announce(t("writing_two"));
  }

  take(chunk) {
    const { comparison, view } = this;
    comparison.id = chunk.comparison_id ?? comparison.id;
    const side = chunk.side;
    const choice = chunk.choices?.[0];
    if (!SIDES.includes(side)) return;
    comparison[side].id = chunk.id ?? comparison[side].id;
    if (choice?.delta?.content) view.panes[side].append(choice.delta.content);
    if (choice?.finish_reason) {
      comparison[side].finishReason = choice.finish_reason;
      comparison[side].state = "complete";
      view.panes[side].streaming(false);
    }
  }

  end(stopped, error) {
    this.comparison.error = error;
    for (const side of SIDES) {
      if (this.comparison[side].state === "streaming") this.comparison[side].state = endOf(stopped, error);
    }
    this.view.finish();
    if (stopped) announce(t("stopped_spoken"));
    else if (!error) announce(t("answers_ready"));
  }

  settle() {
    return this.view.settle();
  }
}
