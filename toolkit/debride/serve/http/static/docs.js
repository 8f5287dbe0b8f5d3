// The page at /docs: this server's own openapi.json, drawn. Text goes in as text only: names come from model files.

import { byId, element } from "./dom.js";
import { describe, marked, named, properties } from "./schema.js";

const METHODS = ["get", "post"];
const VERSION = "/versions/{version}";
// Where the commands point to; a path with anything else in it stays a variable, since it will be pasted into a shell.
const here = new URL(".", location.href).href.replace(/\/$/, "");
const base = /^[A-Za-z0-9:/._~%[\]-]+$/.test(here) ? here : null;

async function start() {
  try {
    const response = await fetch("openapi.json", { cache: "no-cache" });
    if (!response.ok) throw new Error(`openapi.json: the server answered ${response.status}`);
    draw(await response.json());
  } catch (error) {
    byId("problem").hidden = false;
    byId("problem").textContent = error.message;
  }
}

function draw(document_) {
  byId("version").textContent = `${document_.info.title}, version ${document_.info.version}`;
  const place = byId("operations");
  const about = document_.info.description.split("\n\n");
  if (document_.security) about.push("This server asks for a token: `Authorization: Bearer TOKEN`.");
  place.append(...about.map((text) => element("p", { className: "about" }, marked(text))));
  const all = operations(document_);
  for (const tag of document_.tags) {
    const mine = all.filter(({ operation }) => operation.tags.includes(tag.name));
    if (!mine.length) continue;
    place.append(element("h2", {}, tag.name), element("p", {}, tag.description), ...mine.map(card));
    index(tag.name, mine.map(({ operation }) => [operation.operationId, operation.summary]));
  }
  const schemas = Object.entries(document_.components.schemas);
  place.append(element("h2", {}, "Schemas"), ...schemas.map(([name, schema]) => named(name, schema)));
  index("Schemas", schemas.map(([name]) => [`schema-${name}`, name]));
  // The place that the address names exists only now.
  if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}

/** All operations. What is there with and without a version is one, with two addresses. */
function operations({ paths }) {
  const shorter = (path) => path.replace(VERSION, "");
  return Object.entries(paths)
    .filter(([path]) => !(path.includes(VERSION) && shorter(path) in paths))
    .flatMap(([path, item]) => {
      const longer = Object.keys(paths).find((other) => other !== path && shorter(other) === path);
      const shared = (longer ? paths[longer] : item).parameters ?? [];
      return METHODS.filter((method) => item[method]).map((method) => ({
        addresses: longer ? [path, longer] : [path],
        method,
        operation: item[method],
        parameters: [...shared, ...(item[method].parameters ?? [])],
      }));
    });
}

function index(title, links) {
  byId("index").append(
    element("h2", {}, title),
    element("ul", {}, links.map(([id, text]) => element("li", {}, element("a", { href: `#${id}` }, text)))),
  );
}

function card({ addresses, method, operation, parameters }) {
  const answers = Object.entries(operation.responses);
  const good = answers.filter(([status]) => status < 400);
  const bad = answers.filter(([status]) => status >= 400);
  return element(
    "section",
    { className: "operation", id: operation.operationId },
    element("h3", {}, operation.summary),
    addresses.map((path) => address(method, path)),
    operation.description ? element("p", {}, marked(operation.description)) : null,
    parameters.length ? [element("h4", {}, "Parameters"), table(parameters.map(parameterRow))] : null,
    operation.requestBody ? [element("h4", {}, "Body"), table(bodyRows(operation.requestBody.content), "wide")] : null,
    element("h4", {}, "Answers"),
    table(good.map(answerRow), "answers"),
    bad.length ? errors(bad) : null,
    (operation["x-codeSamples"] ?? []).map(sample),
  );
}

const address = (method, path) =>
  element(
    "p",
    { className: "address" },
    element("span", { className: `method ${method}` }, method.toUpperCase()),
    code(path),
  );

function errors(answers) {
  const list = answers.map(([status]) => status).join(", ");
  return element("details", {}, element("summary", {}, `Errors: ${list}`), table(answers.map(answerRow), "answers"));
}

const table = (rows, kind = "") => element("table", { className: kind }, element("tbody", {}, rows));
const row = (...cells) => element("tr", {}, cells.map((cell) => element("td", {}, cell)));
const code = (text) => element("code", {}, text);

function parameterRow({ name, in: where, required, description, schema }) {
  const what = [describe(schema), description ? [". ", description] : ""];
  return row(code(name), [where, required ? ", required" : ""], what);
}

/** Media types of the same schema share a row. */
function bodyRows(content) {
  const rows = new Map();
  for (const [type, { schema }] of Object.entries(content)) {
    const key = JSON.stringify(schema);
    rows.set(key, { schema, types: [...(rows.get(key)?.types ?? []), type] });
  }
  return [...rows.values()].map(({ schema, types }) => row(code(types.join(", ")), properties(schema)));
}

function answerRow([status, { description, content = {}, headers = {} }]) {
  const bodies = Object.entries(content).map(([type, { schema }]) => [code(type), " ", describe(schema)]);
  const extra = Object.keys(headers).map((name) => ["header ", code(name)]);
  const parts = [...bodies, ...extra].flatMap((part, i) => (i ? [", ", ...part] : part));
  return row(code(status), description, parts);
}

function sample({ label, source }) {
  const text = base ? source.replaceAll("$URL", base) : source;
  const button = element("button", { type: "button", onclick: () => copy(text, button, pre) }, "Copy");
  const pre = element("pre", {}, element("code", {}, text));
  return element("div", { className: "sample" }, element("header", {}, label, button), pre);
}

async function copy(text, button, pre) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Browsers give the clipboard to secure origins only: select the text, so that one key copies it.
    getSelection().selectAllChildren(pre);
    button.textContent = "Selected";
  }
  byId("status").textContent = `${button.textContent}.`;
  setTimeout(() => (button.textContent = "Copy"), 2000);
}

start();
