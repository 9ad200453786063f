// The dialog that asks for a key, when a call needs one.

import { $ } from "./dom.js";
import { t } from "./i18n.js";

/** Several calls that need a key at once ask one time. Closing the dialog without one lets them fail. */
export function askForKeys(client) {
  let asking = null;
  client.onKeyNeeded((refused) => {
    $("key-error").textContent = refused ? t("key_refused") : "";
    asking ??= new Promise((resolve) => {
      const dialog = $("key-dialog");
      dialog.showModal();
      dialog.addEventListener(
        "close",
        () => {
          const value = $("key-input").value.trim();
          $("key-input").value = "";
          asking = null;
          if (value) client.useKey(value);
          resolve(value !== "");
        },
        { once: true },
      );
    });
    return asking;
  });
}
