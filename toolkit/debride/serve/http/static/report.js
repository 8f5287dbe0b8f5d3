// What was found in the served model and cut out of it, from the report beside it.

import { call, modelPath } from "./api.js";
import { byId, capital, className, element, number, percent, picture } from "./dom.js";
import { retrained } from "./retraining.js";
import { cut, figures } from "./tables.js";

const TONES = { clean: "good", sanitized: "good", inconclusive: "unsure" };
const MOST_SUSPECTS = 20;
let turn = 0;

/** Draw the report of `model` into its place, or hide that place where there is none. */
export async function showReport(model) {
  const mine = (turn += 1); // another model may be chosen before this one's report is here
  const place = byId("report");
  place.hidden = true;
  place.replaceChildren();
  byId("unreported").hidden = model.report;
  if (!model.report) return;
  try {
    const report = await (await call(modelPath(model, "/report"))).json();
    if (mine !== turn) return;
    place.append(...draw(report, model));
  } catch (error) {
    if (mine !== turn) return;
    place.append(title("Report"), element("p", { className: "problem" }, error.message));
  }
  place.hidden = false;
}

const title = (text) => element("h2", { id: "report-title" }, text);

function draw(report, model) {
  const names = report.input_spec.class_names;
  const name = (index) => className(names[index], index);
  const tone = TONES[report.verdict] ?? "bad";
  return [
    title(heading(report)),
    element("p", { className: `verdict ${tone}` }, report.verdict),
    element("p", { className: "reason" }, `${capital(report.reason)}.`),
    report.inconclusive ? element("p", {}, `Detection could not tell: ${report.inconclusive}`) : null,
    identity(report, model),
    ...suspects(report, model, name),
    ...figures(report, name),
    again(report, name),
    ...cut(report),
    ...retrained(report),
    ...chart(report, model),
    ...notes(report),
  ].filter(Boolean);
}

function heading({ pruned, retraining }) {
  if (pruned.length) return "What was cut, and why";
  return retraining?.kept ? "What was retrained, and why" : "What was found";
}

function identity(report, model) {
  const served = model.sha256.toLowerCase();
  const files = [report.output, report.model].filter(Boolean);
  const audited = files.find((file) => file.sha256.toLowerCase() === served) ?? files[0];
  const same = audited.sha256.toLowerCase() === served;
  const origin = audited === report.output && report.model.sha256 !== audited.sha256 ? report.model : null;
  const words = same ? "The file served is the one audited." : "This report is of another file than the one served!";
  return element(
    "div",
    { className: "identity" },
    element("p", { className: same ? "good" : "bad" }, words),
    element(
      "dl",
      {},
      hash(same ? "SHA-256 of both" : "SHA-256 of the file audited", audited.sha256),
      origin ? hash(`Made from ${origin.name}`, origin.sha256) : [],
    ),
  );
}

const hash = (name, value) => [
  element("dt", {}, name),
  element("dd", {}, element("code", { className: "hash" }, value)),
];

function suspects(report, model, name) {
  const found = report.triggers.filter((trigger) => trigger.suspect);
  if (!found.length) {
    return [element("p", {}, `None of ${report.triggers.length} classes has an abnormally small trigger.`)];
  }
  return [
    element("h3", {}, found.length > 1 ? "Target classes of a backdoor" : "Target class of a backdoor"),
    ...found.slice(0, MOST_SUSPECTS).map((trigger) =>
      element(
        "article",
        { className: "suspect" },
        element("h4", {}, name(trigger.target)),
        element("p", {}, `${capital(trigger.reason)}.`),
        element(
          "p",
          { className: "note" },
          `L1 norm ${number(trigger.l1)} pixels, anomaly index ${number(trigger.anomaly)} (clean models reach ` +
            `${number(report.threshold)}). Stamped on ${trigger.success_n} held-out images of other classes it ` +
            `sends ${percent(trigger.success)} there.`,
        ),
        shown(trigger.picture, report, model, pictureWords(name(trigger.target))),
      ),
    ),
    found.length > MOST_SUSPECTS ? element("p", {}, `And ${found.length - MOST_SUSPECTS} more.`) : null,
  ];
}

const pictureWords = (name) =>
  `Trigger found for ${name}: its mask and pattern, and images before and after it is stamped on them`;

/** A figure that fills once the picture is here; null where the report lists none of that name. */
function shown(file, report, model, alt) {
  if (!file || !report.files.includes(file)) return null;
  const figure = element("figure", {}, element("p", { className: "note" }, "loading the picture"));
  call(modelPath(model, `/report/${encodeURIComponent(file)}`))
    .then((response) => response.blob())
    .then((blob) => figure.replaceChildren(picture(blob, alt, () => figure.replaceChildren("The picture is broken."))))
    .catch((error) => figure.replaceChildren(element("p", { className: "note" }, `${file}: ${error.message}`)));
  return figure;
}

function chart(report, model) {
  const figure = shown("norms.png", report, model, "Smallest trigger found for each class, as bars of its L1 norm");
  return figure ? [element("h3", {}, "All classes"), figure] : [];
}

function again({ command, recheck, retraining }, name) {
  if (!recheck) return null;
  const both = retraining?.kept ? "the cut and retraining" : "the cut";
  const after = command === "retrain" ? "retraining" : both;
  const { suspects: left } = recheck;
  const words = left.length ? `still stand out: ${left.map(name).join(", ")}` : "no class stands out";
  return element("p", {}, `Triggers were searched for again after ${after}: ${words}.`);
}

function notes({ command, environment, seed, warnings = [] }) {
  const version = environment?.debride ? `, version ${environment.debride}` : "";
  return [
    warnings.length ? list(warnings) : null,
    element("p", { className: "note" }, `debride ${command}${version}, seed ${seed ?? "unknown"}`),
  ];
}

const list = (texts) => element("ul", { className: "warnings" }, texts.map((text) => element("li", {}, text)));
