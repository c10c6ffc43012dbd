// @ts-check
// The console: which page, when it is made again, and what is said when nobody answers. It only reads.
//
// Must stay true: every page has an address of its own; a page that is not looked at asks nothing; what is shown is what a
// voter said, with its revision, and it is said when none is heard.

import { configs, one } from "./config.js";
import { difference } from "./difference.js";
import { h, same, show } from "./dom.js";
import { events } from "./events.js";
import { listenToKeys } from "./keys.js";
import { member } from "./member.js";
import { overview } from "./overview.js";
import { operation, strip } from "./running.js";
import { Unknown, listen, moved, note, useToken } from "./voter.js";

/** Times are written anew so often, in milliseconds. Nobody is asked for that. */
const EACH = 1000;
const AGAIN_AFTER_FAULT = 2000;

/** @typedef {(parts: string[], chosen: URLSearchParams) => Promise<any>} Page */

/** @type {[RegExp, Page][]} */
const PAGES = [
  [/^#\/config\/([^/]+)\/diff\/(\d+)\/(\d+)$/, ([set, from, to], chosen) => difference(set, from, to, chosen)],
  [/^#\/config\/([^/]+)\/([^/]+)$/, ([set, machine]) => member(set, machine)],
  [/^#\/config\/([^/]+)$/, ([set], chosen) => one(set, chosen)],
  [/^#\/config$/, configs],
  [/^#\/events$/, events],
  [/^#\/operation\/(\d+)$/, ([id]) => operation(id)],
  [/^#\/overview$/, overview],
];

let turn = 0;

/** Asks for a token: nobody is answered without one. */
function whoAsks() {
  const input = /** @type {HTMLInputElement} */ (h("input", { type: "password", id: "token", autocomplete: "off", "data-key": "token" }));
  const use = () => {
    useToken(input.value.trim());
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

async function go() {
  const mine = (turn += 1);
  const page = /** @type {HTMLElement} */ (document.getElementById("page"));
  const [path, query] = location.hash.split("?", 2);
  const found = PAGES.map(([pattern, render]) => ({ parts: pattern.exec(path), render })).find(({ parts }) => parts);
  if (!found?.parts) {
    location.replace("#/overview");
    return;
  }
  const parts = found.parts.slice(1).map(decodeURIComponent);
  for (let first = true; mine === turn; first = false) {
    let pause = EACH;
    try {
      const [made] = await Promise.all([found.render(parts, new URLSearchParams(query)), strip()]);
      if (mine !== turn) return;
      show(page, made);
      document.title = `${page.querySelector("h1")?.textContent ?? ""} · Leaseward`;
    } catch (error) {
      if (mine !== turn) return;
      const why = error instanceof Error ? error.message : String(error);
      pause = AGAIN_AFTER_FAULT;
      note(`✖ ${why}`, true);
      if (error instanceof Unknown) {
        show(page, whoAsks());
        return;
      }
      // What a page shows stays while its voter does not answer.
      if (first) show(page, h("p", { class: "notice bad" }, `Nothing to show: ${why}`));
    }
    await moved(pause);
    while (document.hidden && mine === turn) await moved();
  }
}

/** Looks at once, as after a click. */
function again() {
  void go();
}

listenToKeys();
addEventListener("hashchange", () => void go());
void listen();
void go();
