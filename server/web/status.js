// Always in view: which policy answers, how many votes count, what the trainer does. Asks the server while one looks.

import * as api from "./api.js";
import { $, notice, shortPolicy } from "./dom.js";
import { hasWord, say, t } from "./i18n.js";

const POLL_MS = 4000;
const POLL_LONGEST_MS = 30_000;
const SOON_MS = 250;

export class Status {
  constructor() {
    this.policy = null;
    this.last = null;
    this.wait = POLL_MS;
    this.timer = 0;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) clearTimeout(this.timer);
      else this.refresh();
    });
    document.addEventListener("kudos:vote", () => this.#later(SOON_MS));
    document.addEventListener("kudos:language", () => this.last && this.#draw(this.last));
  }

  #later(milliseconds) {
    clearTimeout(this.timer);
    if (!document.hidden) this.timer = setTimeout(() => this.refresh(), milliseconds);
  }

  async refresh() {
    clearTimeout(this.timer);
    try {
      const status = await api.status();
      this.wait = POLL_MS;
      document.body.classList.remove("offline");
      this.#draw(status);
      this.last = status;
    } catch {
      this.wait = Math.min(this.wait * 2, POLL_LONGEST_MS);
      document.body.classList.add("offline");
      say($("policy-name"), "offline");
    }
    this.#later(this.wait);
  }

  #draw({ policy, votes, trainer }) {
    this.#drawPolicy(policy);
    say($("votes-total"), "votes_total", { n: votes.total });
    say($("votes-mine"), "votes_mine", { n: votes.mine });
    this.#drawTrainer(trainer);
  }

  #drawPolicy(policy) {
    const name = $("policy-name");
    delete name.dataset.i18n;
    name.textContent = shortPolicy(policy.version);
    name.title = policy.version;
    const before = this.policy;
    this.policy = policy;
    if (!before || before.version === policy.version) return;
    const kind = policy.number > before.number ? "newer_policy" : "earlier_policy";
    notice(kind, { name: shortPolicy(policy.version) }, { kind: "policy" });
  }

  #drawTrainer(trainer) {
    const text = $("trainer-text");
    const bar = $("trainer-progress");
    const working = trainer?.state === "running";
    $("status-trainer").classList.toggle("working", working);
    $("status-trainer").title = trainer?.message ?? "";
    bar.hidden = !working;
    if (working) {
      const stage = hasWord(`stage_${trainer.stage}`) ? t(`stage_${trainer.stage}`) : trainer.stage;
      say(text, "trainer_working", { stage });
      bar.value = trainer.progress;
    } else {
      say(text, "trainer_idle");
    }
  }
}
