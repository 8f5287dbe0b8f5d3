// Images go in, one after another; each gets a card with its picture and the model's answer.

import { call, modelPath } from "./api.js";
import { bar, byId, className, element, percent, picture } from "./dom.js";

const TOP = 5;
let queue = Promise.resolve();

/** Classify `files` with `model`, in order; their cards come above those of earlier ones. */
export function classify(files, model) {
  const list = byId("results");
  const before = list.firstChild;
  byId("results-head").hidden = false;
  for (const file of files) {
    const card = makeCard(file, model);
    list.insertBefore(card.item, before);
    queue = queue.then(() => answer(card, file, model));
  }
}

/** Forget all cards; what is still in the queue is dropped too. */
export function clear() {
  byId("results").replaceChildren();
  byId("results-head").hidden = true;
  byId("status").textContent = "Answers cleared.";
}

function makeCard(file, model) {
  const frame = element("div", { className: "preview" });
  const body = element("div", { className: "answer" }, element("p", { className: "note" }, "waiting"));
  const words = element(
    "div",
    { className: "words" },
    element("h3", { title: file.name }, file.name),
    element("p", { className: "by" }, `${model.name}, version ${model.version}`),
    body,
  );
  return { item: element("li", { className: "result" }, frame, words), frame, body };
}

async function answer(card, file, model) {
  if (!card.item.isConnected) return; // cleared meanwhile
  // Not before its turn: hundreds of photos decoded at once would fill the memory.
  card.frame.append(picture(file, "", (image) => image.replaceWith(element("span", {}, "no preview"))));
  const say = (text) => card.body.replaceChildren(element("p", { className: "note" }, text));
  say("classifying");
  try {
    const response = await call(modelPath(model, `/classify?top=${TOP}`), {
      body: file,
      type: file.type && !file.type.startsWith("multipart/") ? file.type : "application/octet-stream",
      onWait: (left) => say(left ? `busy, trying again in ${left} s` : "trying again"),
    });
    const { predictions } = await response.json();
    card.body.replaceChildren(bars(predictions));
    const [first] = predictions;
    byId("status").textContent = `${file.name}: ${className(first.label, first.index)}, ${percent(first.probability)}`;
  } catch (error) {
    card.body.replaceChildren(element("p", { className: "problem" }, error.message));
    byId("status").textContent = `${file.name}: ${error.message}`;
  }
}

function bars(predictions) {
  const rows = predictions.map(({ label, index, probability }) => {
    const name = className(label, index);
    return element(
      "li",
      {},
      element("span", { className: "name", title: name }, name),
      bar(probability),
      element("span", { className: "share" }, percent(probability)),
    );
  });
  return element("ol", { className: "classes" }, rows);
}
