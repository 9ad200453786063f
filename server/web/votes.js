// A vote as the page holds it: shown at once, sent in order, taken back if the server refuses it.

import { announce, noticeError } from "./dom.js";
import { t } from "./i18n.js";

export const NO_VOTE = Object.freeze({
  thumb: null,
  choice: null,
  reasons: [],
  comment: null,
  correction: null,
  harmful: false,
});

/**
 * `holder.vote` is the vote shown; `send(ballot)` and `withdraw()` are the calls. `onShow` redraws, `onCounted(answer)`
 * learns what the server answered. Votes cast in a hurry reach the server in the order in which they were cast.
 */
export class Voter {
  constructor({ holder, send, withdraw, onShow, onCounted }) {
    Object.assign(this, { holder, send, withdraw, onShow, onCounted });
    this.queue = Promise.resolve();
    this.durable = holder.vote; // what the server is known to hold
  }

  /** Whether the server took it. */
  cast(ballot, word = this.holder.vote ? "vote_changed" : "vote_counted") {
    return this.#submit(ballot, () => this.send(ballot), word);
  }

  takeBack() {
    return this.#submit(null, () => this.withdraw(), "vote_withdrawn");
  }

  #submit(vote, call, word) {
    this.holder.vote = vote;
    this.onShow(null);
    this.queue = this.queue.then(async () => {
      try {
        const answer = await call();
        this.durable = vote;
        this.onCounted(answer);
        if (this.holder.vote === vote) this.onShow(word);
        announce(t(word));
        document.dispatchEvent(new CustomEvent("kudos:vote"));
        return true;
      } catch (error) {
        if (this.holder.vote === vote) {
          this.holder.vote = this.durable;
          this.onShow(null);
        }
        noticeError(error);
        return false;
      }
    });
    return this.queue;
  }
}
