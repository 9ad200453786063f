// The switches for theme and language, which both pages have.

import { $ } from "./dom.js";
import { currentLanguage, setLanguage } from "./i18n.js";

const STORED_THEME = "kudos.theme"; // early.js reads it before the first paint

function draw() {
  const theme = document.documentElement.dataset.theme ?? "system";
  for (const button of $("theme-switch").children) button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
  for (const button of $("language-switch").children) {
    button.setAttribute("aria-pressed", String(button.dataset.languageChoice === currentLanguage()));
  }
}

function setTheme(choice) {
  if (choice === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = choice;
  try {
    localStorage.setItem(STORED_THEME, choice);
  } catch {
    // Not remembered, then.
  }
  draw();
}

export function setSwitches() {
  $("theme-switch").addEventListener("click", (event) => {
    const choice = event.target.closest("button")?.dataset.themeChoice;
    if (choice) setTheme(choice);
  });
  $("language-switch").addEventListener("click", (event) => {
    const choice = event.target.closest("button")?.dataset.languageChoice;
    if (choice) setLanguage(choice, { remember: true });
  });
  document.addEventListener("kudos:language", draw);
  draw();
}
