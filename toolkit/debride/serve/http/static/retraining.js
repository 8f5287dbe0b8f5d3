// How the network was retrained, what that brought, and the initializers that it changed.

import { clipped, element, number, percent } from "./dom.js";
import { column, scrolled } from "./tables.js";

const MOST_CHANGES = 12;

/** The part of the page on retraining; nothing where a report does not tell of it. */
export function retrained({ retraining, pruned }) {
  if (!retraining) return [];
  return [
    element("h3", {}, retraining.kept ? "Retrained" : "Retrained, and not delivered"),
    element("p", {}, [delivery(retraining, pruned), method(retraining), gain(retraining)].join(" ")),
    changes(retraining.changes),
  ];
}

function delivery({ kept, reason }, pruned) {
  if (kept) return "The retrained network is delivered.";
  const stays = pruned.length ? "The pruned network is delivered" : "The network is delivered as it was";
  return `${stays}, not the retrained one: ${reason.replace(/\.$/, "")}.`;
}

function method({ method: name, labels, images, steps, budget, best }) {
  const truth = labels === "given" ? "labelled" : "labelled by the delivered model";
  const on = `${images} clean image${images === 1 ? "" : "s"}, ${truth}`;
  const choice = best ? `best after step ${best}` : "best before any";
  return `Method: ${clipped(name)}, on ${on}; ${steps} of at most ${budget} steps, ${choice}.`;
}

function gain({ before, after }) {
  const attack = before.triggers.length + after.triggers.length;
  const change = (of) => `${percent(of(before))} → ${percent(of(after))}`;
  const success = attack ? `, attack success ${change(worst)}` : "";
  return `On held-out images: ${clipped(after.clean.kind)} ${change((side) => side.clean.rate)}${success}.`;
}

/** The largest attack success rate over the triggers that were tried; null where there was none. */
const worst = ({ triggers }) =>
  triggers.reduce((most, { asr, asr_n: n }) => (n && typeof asr === "number" ? Math.max(most ?? 0, asr) : most), null);

function changes(rows) {
  if (!rows.length) return element("p", { className: "note" }, "No initializer differs in the retrained network.");
  // JSON knows no infinity: null is the share of what was zero before.
  const share = ({ relative }) => relative ?? Infinity;
  const ranked = [...rows].sort((a, b) => (share(a) === share(b) ? 0 : share(b) - share(a)));
  const shown = ranked.slice(0, MOST_CHANGES);
  const most = rows.length > shown.length ? `; the ${shown.length} that changed most` : "";
  const count = `${rows.length} initializer${rows.length === 1 ? " differs" : "s differ"}${most}.`;
  const caption = `${count} Changed counts elements; relative is the norm of the change as a share of the norm before.`;
  const head = ["Initializer", "Changed", "Largest", "Relative"].map(column);
  const table = element(
    "table",
    { className: "cut changes" },
    element("caption", {}, caption),
    element("thead", {}, element("tr", {}, head)),
    element("tbody", {}, shown.map(row)),
  );
  return scrolled(table, "Initializers changed");
}

function row({ name, shape, changed, largest, relative }) {
  const cells = [String(changed), small(largest), relative === null ? "from zero" : small(relative)];
  const size = element("small", {}, clipped(shape.join(" × ") || "scalar"));
  return element(
    "tr",
    {},
    element("th", { scope: "row", title: name }, clipped(name), " ", size),
    cells.map((text) => element("td", {}, text)),
  );
}

/** As `number`, with an exponent where there would be many zeros. */
const small = (value) => (value && Math.abs(value) < 1e-3 ? value.toExponential(1).replaceAll("-", "−") : number(value));
