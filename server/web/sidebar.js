// The list of past conversations: search, open, rename, delete.

import * as api from "./api.js";
import { $, announce, errorText, h, iconButton, noticeError } from "./dom.js";
import { say, t } from "./i18n.js";

const DAY_MS = 24 * 60 * 60 * 1000;
const TYPING_MS = 200;

function group(updated) {
  const today = new Date();
  today.setHours(0, 0, 0, 0);
  if (updated >= today) return "today";
  return updated >= today - 6 * DAY_MS ? "week" : "older";
}

export class Sidebar {
  constructor({ onOpen, onDeleted }) {
    this.onOpen = onOpen;
    this.onDeleted = onDeleted;
    this.list = [];
    this.loaded = false;
    this.current = null;
    this.renaming = null;
    this.searched = ""; // what the list is of; empty: all
    this.more = false; // whether there are older ones
    this.finding = 0;
    this.box = $("history");
    $("find").addEventListener("input", () => this.#find());
    $("find").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !$("find").value) return;
      event.stopPropagation();
      $("find").value = "";
      this.refresh();
    });
    this.narrow = matchMedia("(max-width: 800px)");
    $("sidebar-open").addEventListener("click", () => this.toggle(true));
    $("sidebar-close").addEventListener("click", () => this.toggle(false));
    $("scrim").addEventListener("click", () => this.toggle(false));
    this.narrow.addEventListener("change", () => this.toggle(!this.narrow.matches, { focus: false }));
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.narrow.matches && this.open) this.toggle(false);
    });
    this.toggle(!this.narrow.matches, { focus: false });
  }

  /** On a phone the side bar lies over the page, which then cannot be reached; elsewhere it stands beside it. */
  toggle(open, { focus = true } = {}) {
    this.open = open;
    document.body.classList.toggle("with-sidebar", open);
    $("sidebar").inert = !open;
    $("stage").inert = open && this.narrow.matches;
    $("scrim").hidden = !(open && this.narrow.matches);
    $("sidebar-open").setAttribute("aria-expanded", String(open));
    if (focus) $(open ? "sidebar-close" : "sidebar-open").focus();
  }

  closeIfNarrow() {
    if (this.narrow.matches && this.open) this.toggle(false, { focus: false });
  }

  async refresh() {
    const search = $("find").value.trim();
    try {
      const found = await api.conversations({ search });
      if (search !== $("find").value.trim()) return; // asked again meanwhile
      // What is the same is not drawn again: a click that falls between press and release would be lost.
      const drawn = found.has_more ? this.list.slice(0, found.data.length) : this.list; // older ones may have been asked for
      if (this.loaded && this.searched === search && JSON.stringify(found.data) === JSON.stringify(drawn)) return;
      this.loaded = true;
      if (search && this.searched !== search) announce(t("found", { n: found.data.length }));
      this.searched = search;
      this.list = found.data;
      this.more = found.has_more;
      this.#draw();
    } catch (error) {
      if (this.list.length) return; // the old list is better than none; the status line tells of the loss
      this.loaded = false;
      this.box.replaceChildren(
        h("p", { class: "history-empty" }, h("span", { word: "history_failed" }), " ", errorText(error)),
        h("button", { class: "button", word: "retry", onclick: () => this.refresh() }),
      );
    }
  }

  #find() {
    clearTimeout(this.finding);
    this.finding = setTimeout(() => this.refresh(), TYPING_MS);
  }

  async #older() {
    try {
      const found = await api.conversations({ before: this.list.at(-1).id });
      const first = found.data[0]?.id;
      this.list.push(...found.data);
      this.more = found.has_more;
      this.#draw();
      if (first) this.#focus(first);
    } catch (error) {
      noticeError(error);
    }
  }

  select(id) {
    this.current = id;
    this.#draw();
  }

  #draw() {
    if (this.renaming) return; // drawn when the new title is in
    if (!this.list.length) {
      this.box.replaceChildren(h("p", { class: "history-empty", word: this.searched ? "found_nothing" : "no_history" }));
      return;
    }
    const groups = new Map();
    for (const conversation of this.list) {
      const name = group(new Date(conversation.updated_at));
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(this.#item(conversation));
    }
    const older = h("button", { class: "link-button", word: "show_older", onclick: () => this.#older() });
    this.box.replaceChildren(
      ...Array.from(groups, ([name, items]) => h("section", {}, h("h2", { word: name }), h("ul", {}, ...items))),
      ...(this.more && !this.searched ? [older] : []),
    );
  }

  #item(conversation) {
    const open = h("button", {
      class: "history-open",
      "aria-current": conversation.id === this.current ? "page" : undefined,
      onclick: () => this.onOpen(conversation.id),
    });
    if (conversation.title) open.append(h("span", { dir: "auto" }, conversation.title));
    else say(open, "untitled");
    open.title = conversation.title;
    const item = h(
      "li",
      { class: "history-item", "data-conversation": conversation.id },
      open,
      h(
        "span",
        { class: "history-actions" },
        iconButton("pencil", "rename", () => this.#rename(item, conversation)),
        iconButton("trash", "delete", () => this.#delete(conversation)),
      ),
    );
    return item;
  }

  #rename(item, conversation) {
    const input = h("input", { class: "history-rename", dir: "auto", label: "rename_label", maxlength: 200 });
    input.value = conversation.title;
    this.renaming = conversation.id;
    let done = false;
    const finish = async (keep) => {
      if (done) return;
      done = true;
      this.renaming = null;
      const title = input.value.trim();
      if (keep && title && title !== conversation.title) {
        const before = conversation.title;
        conversation.title = title;
        try {
          await api.renameConversation(conversation.id, title);
        } catch (error) {
          conversation.title = before;
          noticeError(error);
        }
      }
      this.#draw();
      this.#focus(conversation.id);
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    input.addEventListener("blur", () => finish(true));
    item.replaceChildren(input);
    input.select();
  }

  async #delete(conversation) {
    const dialog = $("delete-dialog");
    say($("delete-text"), "delete_text", { title: conversation.title || t("untitled") });
    dialog.returnValue = "";
    dialog.showModal();
    await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
    if (dialog.returnValue !== "delete") return;
    try {
      await api.deleteConversation(conversation.id);
    } catch (error) {
      noticeError(error);
      return;
    }
    const index = this.list.indexOf(conversation);
    this.list.splice(index, 1);
    this.#draw();
    const next = this.list[Math.min(index, this.list.length - 1)];
    if (next) this.#focus(next.id);
    else $("new-conversation").focus();
    announce(t("deleted_spoken"));
    this.onDeleted(conversation.id);
  }

  #focus(id) {
    this.box.querySelector(`[data-conversation="${CSS.escape(id)}"] .history-open`)?.focus();
  }
}
