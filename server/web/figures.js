// Numbers, shares and times as the page's language writes them.

import { h } from "./dom.js";
import { currentLanguage } from "./i18n.js";

const locale = () => (currentLanguage() === "zh" ? "zh-CN" : "en");

export const number = (value, digits = 3) =>
  Number.isFinite(value)
    ? value.toLocaleString(locale(), { minimumFractionDigits: Number.isInteger(value) ? 0 : Math.min(2, digits), maximumFractionDigits: digits })
    : "–";

export const percent = (share) =>
  Number.isFinite(share) ? share.toLocaleString(locale(), { style: "percent", maximumFractionDigits: 1 }) : "–";

/** "0.54 [0.48, 0.60]"; without bounds the value alone. */
export const bounded = (value, lower, upper) =>
  Number.isFinite(lower) && Number.isFinite(upper) ? `${number(value)} [${number(lower)}, ${number(upper)}]` : number(value);

/** A time of the server's, in the reader's zone; to the second for the pointer and for machines. */
export function when(at) {
  const time = new Date(at);
  const short = time.toLocaleString(locale(), { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  return h("time", { datetime: time.toISOString(), title: time.toLocaleString(locale()) }, short);
}
