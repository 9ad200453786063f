// The page, put together: composer, current conversation, side bar, status, theme and language.

import * as api from "./api.js";
import { $, announce, h, noticeError } from "./dom.js";
import { treeOf } from "./history.js";
import { preferredLanguage, setLanguage, t } from "./i18n.js";
import { askForKeys } from "./keys.js";
import { MyData } from "./mydata.js";
import { Sidebar } from "./sidebar.js";
import { Status } from "./status.js";
import { setSwitches } from "./switches.js";
import { Thread } from "./thread.js";

const NEAR_BOTTOM_PX = 90;

const prompt = $("prompt");
const scroller = $("scroller");
let model = null;
let thread = null;
let sticking = true;
let comparing = false;
const writing = new Map(); // conversation id -> a thread that is still being written, on the page or not

// ---- the current conversation ------------------------------------------------------------------

const hooks = {
  async model() {
    await introduced;
    model ??= (await api.models()).data[0].id;
    return model;
  },
  onBusy(which) {
    if (which.id && which.busy) writing.set(which.id, which);
    else writing.delete(which.id);
    if (which === thread) drawComposer();
  },
  onStarted(which) {
    writing.set(which.id, which);
    if (which === thread) {
      history.replaceState(null, "", `#${which.id}`);
      sidebar.select(which.id);
    }
    sidebar.refresh();
  },
  onFinished() {
    sidebar.refresh();
    status.refresh();
  },
  onGrew(which, { force = false } = {}) {
    if (which !== thread) return;
    drawWelcome();
    if (force) {
      sticking = true;
      $("to-latest").hidden = true;
    }
    if (sticking) requestAnimationFrame(toBottom);
  },
};

function show(next) {
  thread = next;
  $("thread").replaceWith(thread.element);
  thread.element.id = "thread";
  sticking = true;
  drawWelcome();
  drawComposer();
  requestAnimationFrame(toBottom);
}

function startNew({ focus = true, leaveSidebar = true } = {}) {
  history.replaceState(null, "", location.pathname + location.search);
  show(new Thread({ hooks }));
  sidebar.select(null);
  if (leaveSidebar) sidebar.closeIfNarrow();
  if (focus) focusPrompt();
}

async function open(id, { focus = true } = {}) {
  if (thread?.id !== id) {
    let next = writing.get(id);
    if (!next) {
      try {
        next = new Thread({ id, root: treeOf(await api.conversation(id)), hooks });
      } catch (error) {
        if (error.status === 404) error.message = t("error_not_found");
        noticeError(error);
        if (!thread.id) startNew();
        return;
      }
    }
    if (location.hash !== `#${id}`) history.pushState(null, "", `#${id}`);
    show(next);
  }
  sidebar.select(id);
  sidebar.closeIfNarrow();
  if (focus) focusPrompt();
}

function openFromAddress() {
  let id = location.hash.slice(1);
  try {
    id = decodeURIComponent(id);
  } catch {
    // Not something that this page wrote; asked for as it is, and not found.
  }
  if (id && document.getElementById(id) === null) open(id); // an element's id is the skip link's
  else if (!id && thread.id) startNew();
}

// ---- composer ----------------------------------------------------------------------------------

function drawWelcome() {
  $("welcome").hidden = thread.turns.length > 0;
  $("thread-heading").hidden = !$("welcome").hidden;
}

function drawComposer() {
  $("send").hidden = thread.busy;
  $("stop").hidden = !thread.busy;
  $("send").disabled = prompt.value.trim() === "";
  $("compare-toggle").setAttribute("aria-pressed", String(comparing));
  document.body.classList.toggle("comparing", comparing);
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
}

/** Where fingers type, a focus would throw the keyboard over the answer. */
function focusPrompt() {
  if (!matchMedia("(hover: none)").matches) prompt.focus();
}

function submit(text = prompt.value) {
  const said = text.trim();
  if (!said || thread.busy) return;
  prompt.value = "";
  fitPrompt();
  thread.send(said, { compare: comparing });
  drawWelcome();
  drawComposer();
}

function toBottom() {
  scroller.scrollTop = thread.turns.length ? scroller.scrollHeight : 0;
}

function drawSuggestions() {
  $("suggestions").replaceChildren(
    ...t("suggestions").map(([about, text]) =>
      h(
        "li",
        {},
        h("button", { class: "suggestion", onclick: () => submit(text) }, h("span", { class: "suggestion-about" }, about), h("span", {}, text)),
      ),
    ),
  );
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
prompt.addEventListener("input", () => {
  fitPrompt();
  drawComposer();
});
prompt.addEventListener("keydown", (event) => {
  const composing = event.isComposing || event.keyCode === 229; // an input method is choosing characters
  if (event.key !== "Enter" || event.shiftKey || composing) return;
  event.preventDefault();
  submit();
});
$("stop").addEventListener("click", () => {
  thread.stop();
  focusPrompt();
});
$("compare-toggle").addEventListener("click", () => {
  comparing = !comparing;
  drawComposer();
  focusPrompt();
});
scroller.addEventListener(
  "scroll",
  () => {
    sticking = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_BOTTOM_PX;
    $("to-latest").hidden = sticking;
  },
  { passive: true },
);
$("to-latest").addEventListener("click", () => {
  sticking = true;
  toBottom();
  focusPrompt();
});

document.addEventListener("kudos:language", drawSuggestions);
askForKeys(api.client);

// ---- start -------------------------------------------------------------------------------------

setLanguage(preferredLanguage());
const status = new Status();
const sidebar = new Sidebar({
  onOpen: open,
  onDeleted(id) {
    writing.get(id)?.stop();
    if (thread.id === id) startNew({ focus: false });
  },
});
new MyData({
  onErase() {
    for (const each of [thread, ...writing.values()]) each.stop();
  },
  async onErased() {
    prompt.value = "";
    startNew({ focus: false, leaveSidebar: false });
    await status.refresh(); // makes the browser known again, as someone new, before anything else is asked
    sidebar.refresh();
  },
});
setSwitches();
drawSuggestions();
$("new-conversation").addEventListener("click", () => startNew());
$("new-conversation-top").addEventListener("click", () => startNew());
$("brand").addEventListener("click", (event) => {
  event.preventDefault();
  startNew();
});
addEventListener("popstate", openFromAddress);
document.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    startNew();
    announce(t("new_conversation"));
  }
});
show(new Thread({ hooks }));
focusPrompt();
// The first answer makes a new browser known by a cookie. Calls beside it would each be a new person.
const introduced = status.refresh();
introduced.then(() => {
  sidebar.refresh();
  if (location.hash.length > 1) openFromAddress();
});
