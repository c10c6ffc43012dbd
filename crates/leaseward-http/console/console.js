// @ts-check
// The console: which page, when it is looked again, and what is said when nobody answers. It only reads.
//
// Must stay true: every page has an address of its own; a page that is not looked at asks nothing; what is shown is what a
// voter said, with its revision, and it is said when none is heard.

import { configs, difference, one } from "./config.js";
import { h, same, show } from "./dom.js";

/** From one look to the next, in milliseconds. */
const EACH = 1000;
const AGAIN_AFTER_FAULT = 2000;

/** @type {[RegExp, (...parts: string[]) => Promise<any>][]} */
const PAGES = [
  [/^#\/config\/([^/]+)\/diff\/(\d+)\/(\d+)$/, difference],
  [/^#\/config\/([^/]+)$/, one],
  [/^#\/config$/, configs],
];

let turn = 0;

/** What was answered at one revision. A cluster at rest is asked for its revision only. @type {{ revision: string | null, bodies: Map<string, any> }} */
const known = { revision: null, bodies: new Map() };

/** Where the access token is while this tab lives, on clusters that ask for one. */
const TOKEN = "leaseward-token";

/** Asks the voter that served this page, with the token if there is one. @param {string} path @param {string} [accept] */
export function fetched(path, accept = "*/*") {
  const token = sessionStorage.getItem(TOKEN);
  return fetch(path, { headers: token ? { accept, authorization: `Bearer ${token}` } : { accept } });
}

/** Asks for a token: nobody is answered without one. */
function whoAsks() {
  const input = /** @type {HTMLInputElement} */ (h("input", { type: "password", id: "token", autocomplete: "off", "data-key": "token" }));
  const use = () => {
    sessionStorage.setItem(TOKEN, input.value.trim());
    known.bodies.clear();
    again();
  };
  input.addEventListener("keydown", (event) => event.key === "Enter" && use());
  return [
    h("h1", {}, "Who asks?"),
    h("p", {}, "This cluster answers only who has an access token. It stays in this tab, and goes with it."),
    h("p", {}, h("label", { for: "token" }, "Token "), input, " ", h("button", { type: "button", onclick: use }, "use it")),
    same("leaseward token create NAME --role viewer", "an administrator makes one with"),
  ];
}

/** Asks the voter that served this page. @param {string} path */
async function answered(path) {
  const answer = await fetched(path, "application/json");
  const revision = answer.headers.get("leaseward-revision") ?? "?";
  heard(`${answer.headers.get("leaseward-served-by") ?? "?"} · revision ${revision}`);
  return { answer, revision };
}

/** It is not known who asks. */
class Unknown extends Error {}

/** Returns an object of the API as it is at the revision of this look. @param {string} path */
export async function ask(path) {
  if (!known.bodies.has(path)) {
    const { answer } = await answered(path);
    const body = await answer.json();
    if (answer.status === 401) throw new Unknown(body.detail ?? "a token is needed");
    if (!answer.ok) throw new Error(`${body.code ?? answer.status}: ${body.detail ?? body.title ?? answer.statusText}`);
    known.bodies.set(path, body);
  }
  return structuredClone(known.bodies.get(path));
}

/** Forgets what was answered before the revision of now. */
async function look() {
  const { revision } = await answered("/livez");
  if (revision !== known.revision) {
    known.revision = revision;
    known.bodies.clear();
  }
}

/** @param {string} words @param {boolean} [lost] */
function heard(words, lost = false) {
  const line = /** @type {HTMLElement} */ (document.getElementById("heard"));
  if (line.textContent !== words) line.textContent = words;
  line.className = lost ? "lost" : "";
}

async function go() {
  const mine = (turn += 1);
  const page = /** @type {HTMLElement} */ (document.getElementById("page"));
  const found = PAGES.map(([pattern, render]) => ({ parts: pattern.exec(location.hash), render })).find(({ parts }) => parts);
  if (!found?.parts) {
    location.replace("#/config");
    return;
  }
  const parts = found.parts.slice(1).map(decodeURIComponent);
  document.title = `${parts[0] ? `config/${parts[0]}` : "Config"} · Leaseward`;
  while (mine === turn) {
    let pause = EACH;
    try {
      await look();
      const made = await found.render(...parts);
      if (mine !== turn) return;
      show(page, made);
    } catch (error) {
      if (mine !== turn) return;
      heard(`✖ ${error instanceof Error ? error.message : error}`, true);
      if (error instanceof Unknown) {
        // Once: what somebody types stays.
        if (!document.getElementById("token")) show(page, whoAsks());
      } else if (page.childElementCount === 0) show(page, h("p", { class: "notice bad" }, "Nothing to show yet: the voter that served this page does not answer."));
      pause = AGAIN_AFTER_FAULT;
    }
    await new Promise((done) => setTimeout(done, pause));
    while (document.hidden && mine === turn) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
  }
}

/** Looks at once, as after a click. */
export function again() {
  void go();
}

addEventListener("hashchange", () => void go());
void go();
