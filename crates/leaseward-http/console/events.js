// @ts-check
// What happened: live, or a window of the past, page by page back to the oldest that is kept.

import { address, choose, now } from "./address.js";
import { field, h, pressed, same, table } from "./dom.js";
import { ask } from "./voter.js";
import { quoted } from "./words.js";

/** Events on a page. */
const SHOWN = 100;

const KINDS = ["config", "server", "machine", "lease", "session", "token", "cluster"];

/** An object's own page, where it has one. @param {any} event */
const subject = (event) => (event.kind === "config" ? h("a", { href: `#/config/${encodeURIComponent(event.subject)}` }, event.subject) : event.subject);

/** @param {any[]} items newest first @param {string} label */
export function story(items, label) {
  const row = (/** @type {any} */ event) => [h("time", { datetime: event.at, title: `revision ${event.revision}` }, event.at.replace("T", " ")), event.kind, subject(event), event.text];
  return table([["when", "when"], ["kind"], ["of", "text"], ["what", "text"]], items.map(row), label);
}

/** @param {string[]} _ @param {URLSearchParams} chosen */
export async function events(_, chosen) {
  const asked = new URLSearchParams({ consistency: "stale", limit: String(SHOWN) });
  for (const name of ["kinds", "prefix", "since", "until", "before"]) {
    const value = chosen.get(name);
    if (value) asked.set(name, value);
  }
  const list = await ask(`/v1/events?${asked}`);
  const kinds = (chosen.get("kinds") ?? "").split(",").filter(Boolean);
  // As the address is by then: who clicks fast is ahead of the page.
  const turn = (/** @type {string} */ kind) => {
    const known = (now().get("kinds") ?? "").split(",").filter(Boolean);
    choose({ kinds: (known.includes(kind) ? known.filter((other) => other !== kind) : [...known, kind]).join(","), before: null });
  };
  const past = chosen.has("before") || chosen.has("until");
  return [
    h("h1", {}, "Events ", h("span", { class: "dim" }, past ? "of the past" : "live")),
    h("div", { class: "counts", role: "group", "aria-label": "Kinds" },
      pressed("kind-all", kinds.length === 0, () => choose({ kinds: null, before: null }), "all"),
      KINDS.map((kind) => pressed(`kind-${kind}`, kinds.includes(kind), () => turn(kind), kind))),
    h("div", { class: "fields" },
      field("prefix", "name begins", chosen.get("prefix"), (value) => choose({ prefix: value, before: null }), { "data-filter": true }),
      field("since", "since", chosen.get("since"), (value) => choose({ since: moment(value), before: null }), { placeholder: "2026-11-21T14:00Z", late: true }),
      field("until", "until", chosen.get("until"), (value) => choose({ until: moment(value), before: null }), { placeholder: "2026-11-21T15:00Z", late: true })),
    list.items.length > 0 ? story([...list.items].reverse(), "Events") : h("p", {}, "Nothing that is kept is so."),
    h("p", { class: "pages" },
      list.items.length >= SHOWN
        ? h("a", { href: address("#/events", chosen, { before: list.items[0].revision }), "data-key": "older" }, "← older")
        : h("span", { class: "dim" }, list.compacted === "0" ? "That is the beginning." : `Older ones are kept no longer than from revision ${list.compacted} on.`),
      past && h("a", { href: address("#/events", chosen, { before: null, until: null }), "data-key": "newest" }, "newest →")),
    same(`leaseward events -f${kinds.length === 1 ? ` --for ${quoted(kinds[0])}` : ""}`),
  ];
}

/** Returns a time as the API reads it; what is none is left to it to refuse. @param {string} text */
function moment(text) {
  const at = new Date(text);
  return text === "" || Number.isNaN(at.getTime()) ? text : at.toISOString();
}
