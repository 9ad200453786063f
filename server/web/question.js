// What a person asked: its words, its other wordings, and the form in which it is edited and sent again.

import { h, iconButton } from "./dom.js";

/**
 * `position` = {index, total} among the wordings in this place. `step(by)` shows another one, `edit(text)` sends a new one.
 */
export function questionView(text, { position, step, edit }) {
  const element = h("div", { class: "asked" });

  function read({ focus = false } = {}) {
    const pencil = iconButton("pencil", "edit_question", write, { class: "icon-button edit" });
    element.classList.remove("editing");
    element.replaceChildren(
      h("div", { class: "user", label: "you", role: "group", dir: "auto" }, text),
      h("div", { class: "asked-foot" }, pencil, stepper(position, step, "previous_wording", "next_wording")),
    );
    if (focus) pencil.focus();
  }

  function write() {
    const field = h("textarea", { class: "field", rows: 2, maxlength: 16000, label: "edit_label", dir: "auto" });
    field.value = text;
    const send = () => {
      const said = field.value.trim();
      if (!said || said === text) read({ focus: true });
      else edit(said);
    };
    const form = h(
      "form",
      { class: "edit-form", onsubmit: (event) => (event.preventDefault(), send()) },
      field,
      h(
        "div",
        { class: "details-row" },
        h("span", { class: "edit-note quiet", word: "edit_note" }),
        h("button", { class: "button", word: "cancel", onclick: () => read({ focus: true }) }),
        h("button", { class: "button primary", type: "submit", word: "edit_send" }),
      ),
    );
    form.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Escape") {
        event.stopPropagation();
        read({ focus: true });
      } else if (event.key === "Enter" && !event.shiftKey && event.target === field) {
        event.preventDefault();
        send();
      }
    });
    const fit = () => {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight + 2}px`;
    };
    field.addEventListener("input", fit);
    element.classList.add("editing");
    element.replaceChildren(form);
    fit();
    field.focus();
    field.setSelectionRange(text.length, text.length);
  }

  read();
  return element;
}

/** "‹ 2 / 3 ›", or nothing where there is only one. */
export function stepper({ index, total }, step, previous, next) {
  if (total < 2) return null;
  return h(
    "span",
    { class: "versions" },
    iconButton("left", previous, () => step(-1), { disabled: index === 0 }),
    h("span", { class: "versions-count", label: ["version_of", { n: index + 1, total }], role: "img" }, `${index + 1} / ${total}`),
    iconButton("right", next, () => step(1), { disabled: index === total - 1 }),
  );
}
