// The operator's page: five views, one shown at a time, drawn again when what the server says has changed.

import * as api from "./ops_api.js";
import { $, errorText, h } from "./dom.js";
import { addWords, currentLanguage, preferredLanguage, setLanguage, t } from "./i18n.js";
import { askForKeys } from "./keys.js";
import * as audit from "./ops_audit.js";
import * as board from "./ops_board.js";
import * as policies from "./ops_policies.js";
import * as rollout from "./ops_rollout.js";
import * as training from "./ops_training.js";
import { setSwitches } from "./switches.js";
import { words } from "./words_ops.js";

const POLL_MS = 5000;
const VIEWS = { rollout, policies, training, leaderboard: board, audit };

let shown = ""; // what the view is drawn from
let last = null; // {place, data} of it
let turn = 0;
let timer = 0;

function place() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  let id = rest.join("/");
  try {
    id = decodeURIComponent(id);
  } catch {
    // Not something that this page wrote; asked for as it is, and not found.
  }
  return VIEWS[name] ? { name, id } : { name: "rollout", id: "" };
}

function draw({ name, id }, data) {
  const view = VIEWS[name];
  const drawn = JSON.stringify([name, id, currentLanguage(), (view.stable ?? ((same) => same))(data)]);
  if (drawn === shown) return;
  shown = drawn;
  last = { place: { name, id }, data };
  const held = focused();
  $("view").replaceChildren(...view.draw(data, { refresh: refreshAfterAction }));
  $("view").removeAttribute("aria-busy");
  if (held) ($("view").querySelector(held) ?? $("main")).focus({ preventScroll: true });
}

/** What finds the button or link that has the focus, after all has been drawn again. */
function focused() {
  const active = document.activeElement;
  if (!$("view").contains(active)) return null;
  if (active.dataset.action) return `[data-action="${CSS.escape(active.dataset.action)}"]`;
  return active.matches("a[href]") ? `a[href="${CSS.escape(active.getAttribute("href"))}"]` : "[tabindex]";
}

async function refreshAfterAction() {
  await refresh();
  if (document.activeElement === document.body) $("main").focus({ preventScroll: true });
}

/** Not below a dialog: what it speaks of stays as it is. */
function poll() {
  if (document.querySelector("dialog[open]")) timer = setTimeout(poll, POLL_MS);
  else refresh();
}

async function refresh() {
  clearTimeout(timer);
  const mine = (turn += 1);
  const { name, id } = place();
  try {
    const data = await VIEWS[name].load(id);
    if (mine === turn) draw({ name, id }, data);
  } catch (error) {
    if (mine === turn) problem(error);
  }
  if (mine === turn && !document.hidden) timer = setTimeout(poll, POLL_MS);
  $("sign-out").hidden = !api.client.hasKey;
}

function problem(error) {
  shown = "";
  $("view").removeAttribute("aria-busy");
  const words = error.status === 401 || error.status === 403 ? t("signed_out") : errorText(error);
  $("view").replaceChildren(
    h("div", { class: "problem", role: "alert" }, h("span", {}, words), h("button", { class: "button retry", word: "retry", onclick: refresh })),
  );
}

/** Another view begins at its top, where a screen reader goes on reading. */
function go() {
  const { name } = place();
  for (const link of $("views").querySelectorAll("a")) {
    if (link.hash !== `#${name}`) link.removeAttribute("aria-current");
    else {
      link.setAttribute("aria-current", "page");
      link.scrollIntoView({ block: "nearest", inline: "nearest" }); // on a phone the views are wider than the screen
    }
  }
  document.title = `${t(`view_${name}`)} · kudos`;
  $("view").setAttribute("aria-busy", "true");
  scrollTo(0, 0);
  return refresh();
}

addWords(words);
setLanguage(preferredLanguage());
setSwitches();
askForKeys(api.client);
addEventListener("hashchange", async () => {
  await go();
  $("main").focus({ preventScroll: true });
});
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : refresh()));
document.addEventListener("kudos:language", () => {
  document.title = `${t(`view_${place().name}`)} · kudos`;
  if (last) draw(last.place, last.data);
});
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address names the view
  $("main").focus();
});
$("sign-out").addEventListener("click", () => {
  api.client.forgetKey();
  location.reload();
});
go();
