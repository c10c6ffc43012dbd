// @ts-check
// The keyboard: `g` and a letter goes to a page, `/` to the filter, `?` says so.
//
// Must stay true: whoever types somewhere only types.

import { h } from "./dom.js";

/** @type {[string, string, string][]} letter, page, what it is */
const PAGES = [
  ["o", "#/overview", "overview"],
  ["s", "#/config", "config sets"],
  ["e", "#/events", "events"],
];

/** A letter belongs to the `g` before it for so long, in milliseconds. */
const TOGETHER = 1500;

let went = -Infinity;

/** @param {KeyboardEvent} event */
function pressed(event) {
  const at = event.target;
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (at instanceof HTMLInputElement || at instanceof HTMLTextAreaElement) {
    if (event.key === "Escape") at.blur();
    return;
  }
  const page = PAGES.find(([letter]) => letter === event.key);
  if (page && event.timeStamp - went < TOGETHER) location.hash = page[1];
  else if (event.key === "/") focusFilter();
  else if (event.key === "?") help();
  went = event.key === "g" ? event.timeStamp : -Infinity;
  // It would stand in the filter.
  if (event.key === "/") event.preventDefault();
}

function focusFilter() {
  const filter = document.querySelector("[data-filter]");
  if (!(filter instanceof HTMLInputElement)) return;
  filter.focus();
  filter.select();
}

function help() {
  const dialog = /** @type {HTMLDialogElement} */ (document.getElementById("help"));
  if (dialog.open) return dialog.close();
  const key = (/** @type {string[]} */ ...keys) => keys.map((one) => [h("kbd", {}, one), " "]);
  dialog.replaceChildren(
    h("h2", {}, "Keys"),
    h("dl", {}, PAGES.map(([letter, , what]) => [h("dt", {}, key("g", letter)), h("dd", {}, what)]),
      h("dt", {}, key("/")), h("dd", {}, "what to show: type, and it stands in the address"),
      h("dt", {}, key("Esc")), h("dd", {}, "done typing; or this goes away"),
      h("dt", {}, key("?")), h("dd", {}, "this")));
  dialog.showModal();
}

export function listenToKeys() {
  document.getElementById("help-opens")?.addEventListener("click", help);
  addEventListener("keydown", pressed);
}
