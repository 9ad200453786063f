// Nothing is done from the operator's page before it has said what it will do: the server is asked first, without doing
// it, and what it answers stands above the button.

import { $, errorText, h, notice } from "./dom.js";
import { say, t } from "./i18n.js";

export const SHADOW = "shadow"; // in the place of a share: nobody meets it

/**
 * `say` are the words' keys {title, button, done}; `plan(said)` resolves to what would be done, in words, or fails with
 * why it cannot be; `run(said)` does it. `said` = {reason, share or shadow, force}. `shares` offers shares of users, and
 * `mayForce` to go past the gate. Resolves to whether it was done.
 */
export function ask({ words, plan, run, shares = null, mayForce = false, reasons = true, danger = false }) {
  const dialog = $("act-dialog");
  const share = shares && h("select", { class: "field", id: "act-share" }, ...shares.map((each) => h("option", { value: String(each.value) }, each.words)));
  const force = mayForce ? h("input", { type: "checkbox", id: "act-force" }) : null;
  const reason = reasons ? h("input", { class: "field", id: "act-reason", maxlength: 500, autocomplete: "off" }) : null;
  const confirm = h("button", { type: "submit", class: danger ? "button danger" : "button primary", word: words.button });
  const planned = h("p", { class: "act-plan", role: "status" });
  const problem = h("p", { class: "field-error", role: "alert" });
  const label = (id, word, field) => field && h("label", { class: "act-field", for: id }, h("span", { word }), field);
  let asked = 0;

  const said = () => ({
    ...(reason?.value.trim() && { reason: reason.value.trim() }),
    ...(share && (share.value === SHADOW ? { shadow: true } : { share: Number(share.value) })),
    ...(force?.checked && { force: true }),
  });

  async function look() {
    const mine = (asked += 1);
    confirm.disabled = true;
    try {
      const text = await plan(said());
      if (mine !== asked) return;
      planned.textContent = text;
      problem.textContent = "";
      confirm.disabled = false;
    } catch (error) {
      if (mine !== asked) return;
      planned.textContent = "";
      problem.textContent = errorText(error);
    }
  }

  return new Promise((resolve) => {
    let done = false;
    const form = h(
      "form",
      {
        onsubmit: async (event) => {
          event.preventDefault();
          confirm.disabled = true;
          try {
            await run(said());
            done = true;
            dialog.close();
            $("notices").replaceChildren(); // what was done before this is in the audit log
            notice(words.done);
          } catch (error) {
            problem.textContent = errorText(error);
            confirm.disabled = false;
          }
        },
      },
      h("h2", { id: "act-title", word: words.title }),
      planned,
      label("act-share", "act_share", share),
      label("act-reason", "act_reason", reason),
      force && h("label", { class: "option", for: "act-force" }, force, h("span", { word: "act_force" })),
      problem,
      h("div", { class: "dialog-row" }, h("button", { class: "button", word: "cancel", onclick: () => dialog.close() }), confirm),
    );
    share?.addEventListener("change", look);
    force?.addEventListener("change", look);
    reason?.addEventListener("change", () => force?.checked && look());
    say(planned, "act_asking");
    delete planned.dataset.i18n; // what follows is not one of the page's own words
    dialog.replaceChildren(form);
    dialog.addEventListener("close", () => resolve(done), { once: true });
    dialog.showModal();
    look();
  });
}
