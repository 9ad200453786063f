// Plots as SVG: an interval on a line, and curves. Each says in words what it shows; none needs colour to be read.

import { h } from "./dom.js";
import { number } from "./figures.js";

const SVG = "http://www.w3.org/2000/svg";

function draw(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const text = (x, y, anchor, words) => draw("text", { x, y, "text-anchor": anchor }, words);

/**
 * An estimate between its bounds, on a line that has `neutral` in its middle and, where there is one, `needed`: what the
 * lower bound has to pass. `tone` is good, bad or open; `label` says it all in words. Several that are to be compared
 * are given one `reach`, the distance from the middle to either end.
 */
export function interval({ estimate, lower, upper, neutral, needed = null, reach = 0.02, tone = "open", label }) {
  const farthest = Math.max(...[lower, upper, needed ?? neutral].map((value) => Math.abs(value - neutral)), reach);
  const at = (value) => `${(50 + (45 * (value - neutral)) / farthest).toFixed(2)}%`;
  const upright = (value, kind) => draw("line", { x1: at(value), x2: at(value), y1: 18, y2: 42, class: `plot-${kind}` });
  return draw(
    "svg",
    { class: `plot plot-interval plot-${tone}`, role: "img", "aria-label": label, height: 62, width: "100%" },
    draw("line", { x1: "0", x2: "100%", y1: 30, y2: 30, class: "plot-axis" }),
    upright(neutral, "neutral"),
    text(at(neutral), 12, "middle", number(neutral)),
    ...(needed === null ? [] : [upright(needed, "needed")]),
    draw("line", { x1: at(lower), x2: at(upper), y1: 30, y2: 30, class: "plot-bar" }),
    draw("circle", { cx: at(estimate), cy: 30, r: 6, class: "plot-dot" }),
    text(at(lower), 57, "end", number(lower)),
    text(at(upper), 57, "start", number(upper)),
  );
}

/**
 * Curves over the same steps. `series` = [{name, values}]; `target` is a level that one of them is steered to. All are
 * drawn to one scale, which the numbers at the side tell.
 */
export function curves({ series, target = null, label }) {
  const values = series.flatMap((one) => one.values).filter(Number.isFinite);
  const low = Math.min(...values, target ?? Infinity);
  const high = Math.max(...values, target ?? -Infinity);
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  const y = (value) => (100 - (100 * (value - low + room)) / (high - low + 2 * room)).toFixed(2);
  const points = (all) => {
    const step = 100 / Math.max(all.length - 1, 1);
    return all.map((value, index) => `${(index * step).toFixed(2)},${y(value)}`).join(" ");
  };
  const line = (one, index) =>
    one.values.length === 1
      ? draw("line", { x1: 0, x2: 100, y1: y(one.values[0]), y2: y(one.values[0]), class: `plot-curve series-${index}` })
      : draw("polyline", { points: points(one.values), class: `plot-curve series-${index}` });
  const svg = draw(
    "svg",
    { class: "plot plot-curves", role: "img", "aria-label": label, viewBox: "0 0 100 100", preserveAspectRatio: "none" },
    ...(target === null ? [] : [draw("line", { x1: 0, x2: 100, y1: y(target), y2: y(target), class: "plot-needed" })]),
    ...series.map(line),
  );
  const key = (one, index) =>
    h("li", {}, draw("svg", { class: "plot", width: 22, height: 8, "aria-hidden": "true" },
      draw("line", { x1: 0, x2: 22, y1: 4, y2: 4, class: `plot-curve series-${index}` })), one.name);
  return h(
    "div",
    { class: "curves" },
    h("div", { class: "curves-scale", "aria-hidden": "true" }, h("span", {}, number(high)), h("span", {}, number(low))),
    svg,
    h("div", { class: "curves-steps", "aria-hidden": "true" }, h("span", {}, "1"), h("span", {}, String(series[0].values.length))),
    series.length > 1 ? h("ul", { class: "curves-key" }, ...series.map(key)) : null,
  );
}
