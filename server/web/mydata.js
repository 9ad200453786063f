// "My data": whether my votes may teach, what they taught, a copy of everything, and its erasure.

import * as api from "./api.js";
import { $, errorText, h, shortPolicy } from "./dom.js";
import { say } from "./i18n.js";

const CONSENTS = { default: null, yes: true, no: false };

export class MyData {
  /** `onErase()` is called before the erasure, to end what is being written; `onErased()` when nothing is left. */
  constructor({ onErase, onErased }) {
    Object.assign(this, { onErase, onErased });
    this.consent = null; // what the server is known to hold
    this.saving = Promise.resolve(); // choices made in a hurry are saved in their order
    this.dialog = $("my-data");
    $("my-data-open").addEventListener("click", () => this.open());
    $("my-data-close").addEventListener("click", () => this.dialog.close());
    $("my-data-done").addEventListener("click", () => this.dialog.close());
    $("consent").addEventListener("change", (event) => this.#choose(CONSENTS[event.target.value]));
    $("export").addEventListener("click", () => this.#export());
    $("erase-ask").addEventListener("click", () => this.#ask(true));
    $("erase-cancel").addEventListener("click", () => this.#ask(false));
    $("erase").addEventListener("click", () => this.#erase());
    // Escape closes the dialog alone, not the side bar below it, to which the focus returns.
    this.dialog.addEventListener("keydown", (event) => event.key === "Escape" && event.stopPropagation());
  }

  async open() {
    $("my-data-parts").hidden = false;
    $("my-data-erased").hidden = true;
    $("consent").disabled = true;
    this.#ask(false, { focus: false });
    this.#note(null);
    this.dialog.showModal();
    await this.#try(async () => {
      const me = await api.me();
      this.consent = me.consent;
      say($("consent-default-text"), me.default ? "consent_default_yes" : "consent_default_no");
      this.#drawConsent();
      this.#drawTaught(me.taught);
      $("consent").disabled = false;
    });
  }

  /** Says what went wrong where it was asked for: a notice would stand behind the dialog. */
  async #try(work) {
    try {
      await work();
    } catch (error) {
      this.#note(null, errorText(error));
    }
  }

  #note(word, text = "") {
    const note = $("my-data-note");
    if (word) say(note, word);
    else {
      delete note.dataset.i18n;
      note.textContent = text;
    }
  }

  #drawConsent() {
    for (const [name, value] of Object.entries(CONSENTS)) $(`consent-${name}`).checked = value === this.consent;
  }

  #drawTaught(taught) {
    $("taught").replaceChildren(
      ...taught.map(({ policy, state, votes }) =>
        h("li", { word: [state === "refused" ? "taught_refused" : "taught", { name: shortPolicy(policy), n: votes }] }),
      ),
    );
    $("taught-none").hidden = taught.length > 0;
  }

  #choose(consent) {
    this.#note(null);
    this.saving = this.saving.then(() =>
      this.#try(async () => {
        try {
          this.consent = (await api.putConsent(consent)).consent;
        } finally {
          this.#drawConsent(); // a choice that was refused is not shown as made
        }
        this.#note("consent_saved");
      }),
    );
  }

  async #export() {
    this.#note(null);
    await this.#try(async () => {
      const address = URL.createObjectURL(await api.exportMine());
      h("a", { href: address, download: "kudos-my-data.json" }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
      this.#note("export_done");
    });
  }

  #ask(asking, { focus = true } = {}) {
    $("erase-ask").hidden = asking;
    $("erase-confirm").hidden = !asking;
    if (focus) $(asking ? "erase-cancel" : "erase-ask").focus();
  }

  async #erase() {
    this.#note(null);
    $("erase").disabled = true;
    this.onErase();
    await this.#try(async () => {
      const { erased, policies } = await api.eraseMe();
      $("my-data-parts").hidden = true;
      $("my-data-erased").hidden = false;
      say($("erased-counts"), "erased_counts", erased);
      const names = policies.map(shortPolicy).join(", ");
      if (names) say($("erased-policies"), "erased_policies", { names });
      else say($("erased-policies"), "erased_no_policies");
      $("my-data-done").focus();
      this.onErased();
    });
    $("erase").disabled = false;
  }
}
