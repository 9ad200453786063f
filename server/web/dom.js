// Small helpers over the DOM. Text only ever goes in as text: nothing here takes HTML (markup.js alone does).

import { hasWord, say, t } from "./i18n.js";

const MARKED = { word: "i18n", label: "i18nLabel", placeholder: "i18nPlaceholder" };
const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** h("button", {class, onclick, word, label, ...}, ...children); strings become text nodes. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name in MARKED) {
      const [word, values] = [value].flat();
      say(element, word, values, MARKED[name]);
    } else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  if (tag === "button" && !attributes.type) element.type = "button";
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `icons.svg#${name}`);
  svg.append(use);
  return svg;
}

export const iconButton = (name, label, onclick, attributes = {}) =>
  h("button", { class: "icon-button", label, onclick, ...attributes }, icon(name));

/** Tells a screen reader one finished thing; streaming tokens are never read out one by one. */
export function announce(text) {
  const box = $("announcer");
  box.textContent = "";
  requestAnimationFrame(() => (box.textContent = text));
}

/** What happened and what to do, in the page's language where it knows the error; else as the server says it. */
export function errorText(error) {
  const word = `error_${error.code}`;
  return hasWord(word) ? t(word, { seconds: error.retryAfterSeconds || 1 }) : error.message;
}

/** A gentle line above the conversation; goes by itself, or when dismissed. */
export function notice(key, values = null, { kind = "info", seconds = 12 } = {}) {
  const box = h("div", { class: `notice notice-${kind}` }, h("span", { word: [key, values] }));
  box.append(iconButton("close", "dismiss", () => box.remove()));
  $("notices").append(box);
  if (seconds) setTimeout(() => box.remove(), seconds * 1000);
  return box;
}

export function noticeError(error) {
  const box = h("div", { class: "notice notice-error", role: "alert" }, h("span", {}, errorText(error)));
  box.append(iconButton("close", "dismiss", () => box.remove()));
  $("notices").append(box);
  setTimeout(() => box.remove(), 15_000);
}

/** "v3-1a2b3c4d" is shown as v3; the whole name is in the title. */
export const shortPolicy = (version) => /^v\d+(?=-)/.exec(version ?? "")?.[0] ?? version ?? "";
