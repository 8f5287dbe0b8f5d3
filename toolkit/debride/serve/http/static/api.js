// Calls to this server: the token, waiting where it is busy, and its errors in its own words.

import { byId } from "./dom.js";

const MOST_WAIT = 60;
// In memory only: it goes with the page.
let token = "";
let asking = null;

/** An answer that is no success; `message` is fit to be shown. */
export class Refusal extends Error {}

/** Where the resources of a model lie, relative to the page. */
export const modelPath = (model, rest = "") =>
  `v2/models/${encodeURIComponent(model.name)}/versions/${encodeURIComponent(model.version)}${rest}`;

/**
 * The response to a request for `path`, relative to the page so that a proxy's prefix is kept.
 * A full queue is waited for once (`onWait` is told the seconds left); a missing token is asked for.
 */
export async function call(path, { body, type, onWait = () => {} } = {}) {
  let waited = false;
  for (;;) {
    const used = token;
    const response = await send(path, body, type, used);
    if (response.ok) return response;
    if (response.status === 401) {
      await askToken(used);
    } else if (response.status === 429 && !waited) {
      waited = true;
      await wait(response.headers.get("Retry-After"), onWait);
    } else {
      throw new Refusal(await words(response));
    }
  }
}

async function send(path, body, type, used) {
  const headers = {};
  if (type) headers["Content-Type"] = type;
  if (used) headers.Authorization = `Bearer ${used}`;
  try {
    return await fetch(path, { method: body ? "POST" : "GET", body, headers, cache: "no-store" });
  } catch {
    const also = body ? ", or the file cannot be read or is larger than it takes" : "";
    throw new Refusal(`The server does not answer${also}.`);
  }
}

async function words(response) {
  const text = await response.text().catch(() => "");
  try {
    const { error } = JSON.parse(text);
    if (typeof error === "string" && error) return response.status === 429 ? `Still busy: ${error}` : error;
  } catch {
    // Not from this server, but from something in between: its page is of no use here.
  }
  return `The server answered ${response.status} ${response.statusText}`.trim() + ".";
}

async function wait(header, onWait) {
  const seconds = Number.parseInt(header ?? "", 10);
  const ends = Math.min(Number.isFinite(seconds) && seconds > 0 ? seconds : 1, MOST_WAIT);
  for (let left = ends; left > 0; left -= 1) {
    onWait(left);
    await new Promise((done) => setTimeout(done, 1000));
  }
  onWait(0);
}

/** Ask for the token, once for all calls that wait for it; `refused` is the one that the server did not take. */
async function askToken(refused) {
  if (token !== refused) return; // another call has asked meanwhile
  asking ??= dialog(refused).finally(() => (asking = null));
  token = await asking;
}

function dialog(refused) {
  const box = byId("token-dialog");
  const input = byId("token");
  byId("token-why").textContent = refused
    ? "That token was not accepted. Give another."
    : "Give the token that the server was started with.";
  input.value = "";
  box.showModal();
  input.focus();
  return new Promise((good, bad) => {
    const controller = new AbortController();
    const { signal } = controller;
    const end = (settle) => (controller.abort(), box.close(), settle());
    const given = (event) => {
      event.preventDefault();
      // Header values are bytes: anything else would fail before it is sent.
      const value = input.value.trim();
      if (/^[\x21-\x7e]+$/.test(value)) end(() => good(value));
      else byId("token-why").textContent = "A token is made of printable ASCII characters, without spaces.";
    };
    const refuse = (event) => {
      event.preventDefault();
      end(() => bad(new Refusal("The server asks for a token, and none was given.")));
    };
    byId("token-form").addEventListener("submit", given, { signal });
    byId("token-cancel").addEventListener("click", refuse, { signal });
    box.addEventListener("cancel", refuse, { signal });
  });
}
