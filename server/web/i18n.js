// Which language is spoken, and the marks that keep the page's own words in it. Model and user text never passes here.

import { words } from "./words.js";

const STORED = "kudos.language";
let language = "en";

function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

export function preferredLanguage() {
  const wanted = stored() ?? navigator.language ?? "en";
  return wanted.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export const currentLanguage = () => language;

export function t(key, values = {}) {
  const entry = words[language][key] ?? words.en[key];
  if (entry === undefined) return key;
  if (typeof entry === "function") return entry(values);
  if (typeof entry !== "string") return entry;
  return entry.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** Words that one page alone has, for each language. */
export function addWords(more) {
  for (const [name, added] of Object.entries(more)) Object.assign(words[name], added);
}

export const hasWord = (key) => words.en[key] !== undefined;

/** Where a translated text goes. `data-i18n` alone is the element's text. */
const PLACES = [
  ["i18n", (element, text) => (element.textContent = text)],
  ["i18nPlaceholder", (element, text) => (element.placeholder = text)],
  [
    "i18nLabel",
    (element, text) => {
      element.setAttribute("aria-label", text);
      if (element.tagName === "BUTTON") element.title = text;
    },
  ],
];

function speak(element) {
  const values = element.dataset.i18nValues ? JSON.parse(element.dataset.i18nValues) : {};
  for (const [name, put] of PLACES) {
    const key = element.dataset[name];
    if (key) put(element, t(key, values));
  }
}

/** Marks an element so that it speaks `key` now and after a change of language. */
export function say(element, key, values = null, place = "i18n") {
  element.dataset[place] = key;
  if (values) element.dataset.i18nValues = JSON.stringify(values);
  else delete element.dataset.i18nValues;
  speak(element);
  return element;
}

export function translate(root = document) {
  for (const element of root.querySelectorAll("[data-i18n],[data-i18n-label],[data-i18n-placeholder]")) speak(element);
}

export function setLanguage(choice, { remember = false } = {}) {
  language = choice;
  document.documentElement.lang = choice === "zh" ? "zh-CN" : "en";
  if (remember) {
    try {
      localStorage.setItem(STORED, choice);
    } catch {
      // Not remembered, then.
    }
  }
  translate();
  document.dispatchEvent(new CustomEvent("kudos:language"));
}
