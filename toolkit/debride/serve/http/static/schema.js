// JSON Schema as people read it: one line for a type, a table for an object's properties.

import { element } from "./dom.js";

const nameOf = (reference) => reference.split("/").at(-1);
const link = (name) => element("a", { href: `#schema-${name}` }, element("code", {}, name));
const joined = (parts, between) => parts.flatMap((part, i) => (i ? [between, ...part] : part));

/** A type in one line, as nodes and text. */
export function describe(schema) {
  if (schema.$ref) return [link(nameOf(schema.$ref))];
  if (schema.anyOf) return joined(schema.anyOf.map(describe), " or ");
  if ("const" in schema) return [element("code", {}, JSON.stringify(schema.const))];
  if (schema.enum) return ["one of ", element("code", {}, schema.enum.join(", "))];
  if (schema.type === "array") return ["list of ", ...(schema.items ? describe(schema.items) : ["anything"])];
  const type = [schema.type ?? "anything"].flat().join(" or ");
  if (schema.format === "binary") return ["bytes"];
  return [type + limits(schema)];
}

function limits({ minimum, maximum, default: usual, pattern }) {
  const to = maximum === undefined ? "" : ` to ${maximum}`;
  const range = minimum === undefined ? "" : to ? ` ${minimum}${to}` : ` from ${minimum}`;
  return range + (pattern ? `, ${pattern}` : "") + (usual !== undefined ? ` (${usual} if not said)` : "");
}

/** What an object holds, as a table with a row for each field at any depth; anything else in one line. */
export function properties(schema) {
  const rows = fields(schema, "");
  return rows.length ? element("table", {}, element("tbody", {}, rows)) : describe(schema);
}

function fields(schema, prefix) {
  if (schema.type === "array" && schema.items?.properties) return fields(schema.items, `${prefix.slice(0, -1)}[].`);
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).flatMap(([name, inner]) => {
    const deeper = fields(inner, `${prefix}${name}.`);
    const row = element(
      "tr",
      {},
      element("td", {}, element("code", {}, prefix + name), required.has(name) ? "" : optional()),
      element("td", {}, deeper.length ? (inner.type === "array" ? "list of objects" : "object") : describe(inner)),
      element("td", {}, marked(inner.description ?? "")),
    );
    return [row, ...deeper];
  });
}

const optional = () => element("small", {}, " optional");

/** Text in which what stands between backticks is code. */
export function marked(text) {
  return text.split("`").map((part, i) => (i % 2 ? element("code", {}, part) : part));
}

/** A schema of its own, under its name. */
export function named(name, schema) {
  return element(
    "section",
    { className: "schema", id: `schema-${name}` },
    element("h3", {}, element("code", { className: "name" }, name)),
    schema.description ? element("p", {}, marked(schema.description)) : null,
    properties(schema),
  );
}
