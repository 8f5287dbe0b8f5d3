// The page at /: which model, which images, and the report of the model that is chosen.

import { call } from "./api.js";
import { classify, clear } from "./classify.js";
import { byId, element } from "./dom.js";
import { showReport } from "./report.js";

let models = [];
const chosen = () => models[byId("chooser").selectedIndex] ?? models[0];

async function start() {
  problem("");
  try {
    ({ models } = await (await call("v2/models")).json());
  } catch (error) {
    problem(error.message, start);
    return;
  }
  if (!models.length) {
    problem("No model is served.", start);
    return;
  }
  const chooser = byId("chooser");
  chooser.replaceChildren(...models.map((model) => element("option", {}, `${model.name}, version ${model.version}`)));
  chooser.hidden = models.length < 2;
  byId("only").textContent = models.length < 2 ? `${models[0].name}, version ${models[0].version}` : "";
  byId("model").hidden = false;
  byId("files").disabled = false;
  choose();
}

function choose() {
  const model = chosen();
  const hash = byId("hash");
  hash.textContent = model.sha256.slice(0, 12);
  hash.title = `SHA-256 of the served file: ${model.sha256}`;
  problem(model.ready ? "" : `${model.name} is not ready yet.`, model.ready ? null : start);
  showReport(model);
}

function problem(text, again = null) {
  const place = byId("problem");
  place.hidden = !text;
  place.replaceChildren(text);
  if (again) place.append(" ", element("button", { type: "button", onclick: again }, "Try again"));
}

function take(files) {
  const list = [...files];
  if (!models.length) return;
  if (list.length) classify(list, chosen());
  else byId("status").textContent = "No file was given.";
}

const drop = byId("drop");
const marked = (event, on) => (event.preventDefault(), drop.classList.toggle("over", on));
// The whole window: a file that misses the frame would otherwise replace the page.
addEventListener("dragover", (event) => marked(event, true));
addEventListener("dragleave", (event) => event.relatedTarget || marked(event, false));
addEventListener("drop", (event) => {
  marked(event, false);
  take(event.dataTransfer?.files ?? []);
});
addEventListener("paste", (event) => {
  if (event.clipboardData?.files.length) take(event.clipboardData.files);
});
byId("files").addEventListener("change", (event) => {
  take(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
byId("clear").addEventListener("click", () => (clear(), byId("files").focus()));
byId("chooser").addEventListener("change", choose);
start();
