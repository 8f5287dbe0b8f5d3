// The two tables of a report: rates before and after, and the channels that were cut.

import { bar, capital, clipped, element, number, percent } from "./dom.js";

const MOST_ROWS = 40;
const SHAPLEY = "Shapley values: each channel's share in the attack and in the model's use, when it was chosen.";

export const column = (text) => element("th", { scope: "col" }, text);

/** Rates before and after the cut, or as measured where nothing was cut. */
export function figures(report, name) {
  const { before, after } = report;
  if (!before) return [];
  const targets = [...new Set(before.triggers.map((trigger) => trigger.target))];
  const columns = after ? ["Before", "After"] : ["Measured"];
  const sides = after ? [before, after] : [before];
  const clean = sides.map((side) => rate(side.clean.rate, side.clean.interval, side.clean.n));
  const rows = [[capital(before.clean.kind), clean]];
  for (const target of targets) {
    const mine = sides.map((side) => side.triggers.filter((trigger) => trigger.target === target));
    const many = mine[0].length > 1 ? `, worst of ${mine[0].length} triggers` : "";
    rows.push([`Attack success to ${name(target)}${many}`, mine.map((of) => worst(of, "asr", (a, b) => a > b))]);
    rows.push([`Still right with the trigger${many}`, mine.map((of) => worst(of, "robust", (a, b) => a < b))]);
  }
  const body = rows.map(([label, cells]) => element("tr", {}, element("th", { scope: "row" }, label), cells));
  return [
    element("h3", {}, after ? "Before and after" : "Measured"),
    element(
      "table",
      { className: "rates" },
      element("caption", {}, "On images held back from the search; 95 % intervals."),
      element("thead", {}, element("tr", {}, element("td", {}), columns.map(column))),
      element("tbody", {}, body),
    ),
  ];
}

function rate(value, interval, n) {
  if (!n || typeof value !== "number") return element("td", {}, "not measured");
  const [low, high] = interval.map((end) => (100 * end).toFixed(1));
  const range = element("small", {}, element("span", {}, `${low} to ${high}, `), element("span", {}, `n = ${n}`));
  return element("td", {}, element("span", { className: "value" }, percent(value)), " ", range);
}

/** The cell of the worst trigger: the one that no other beats by `worse`. */
function worst(triggers, key, worse) {
  const tried = triggers.filter((trigger) => trigger[`${key}_n`] && typeof trigger[key] === "number");
  if (!tried.length) return element("td", {}, "not measured");
  const found = tried.reduce((a, b) => (worse(b[key], a[key]) ? b : a));
  return rate(found[key], found[`${key}_interval`], found[`${key}_n`]);
}

/** The channels that were cut, by layer, each with its Shapley values. */
export function cut(report) {
  if (!report.pruned.length) return [];
  const layers = new Map();
  for (const p of report.pruned) {
    if (!layers.has(p.layer)) layers.set(p.layer, []);
    layers.get(p.layer).push(p);
  }
  const largest = (most, { attack, utility }) => Math.max(most, Math.abs(attack ?? 0), Math.abs(utility ?? 0));
  const top = report.pruned.reduce(largest, 1e-12);
  const groups = [...layers].map(([layer, channels]) =>
    element(
      "tbody",
      {},
      channels.map((p, row) =>
        element(
          "tr",
          {},
          row ? [] : element("th", { scope: "rowgroup", rowSpan: channels.length, title: layer }, clipped(layer)),
          element("td", { className: "channel" }, String(p.channel)),
          value(p.attack, top, "attack"),
          value(p.utility, top, "utility"),
        ),
      ),
    ),
  );
  const of = report.players ? ` of ${report.players}` : "";
  return [
    element("h3", {}, `Channels cut: ${report.pruned.length}${of}`),
    folded(
      element(
        "table",
        { className: "cut" },
        element("caption", {}, SHAPLEY),
        element("thead", {}, element("tr", {}, ["Layer", "Channel", "Attack", "Utility"].map(column))),
        groups,
      ),
      report.pruned.length,
    ),
  ];
}

const value = (of, top, kind) =>
  element(
    "td",
    { className: "shapley" },
    element("div", {}, element("span", {}, number(of)), bar(Math.abs(of ?? 0) / top, of < 0 ? `${kind} minus` : kind)),
  );

/** `table` in a frame that scrolls where the page is too narrow, by keys too; `label` says what is in it. */
export function scrolled(table, label) {
  const frame = element("div", { className: "scroll", tabIndex: 0 }, table);
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", label);
  return frame;
}

function folded(table, rows) {
  const frame = scrolled(table, "Channels cut");
  return rows > MOST_ROWS ? element("details", {}, element("summary", {}, `Show all ${rows}`), frame) : frame;
}
