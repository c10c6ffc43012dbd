// @ts-check
// What goes on now: a strip below every page, and an operation with its steps.

import { h, same, show, table } from "./dom.js";
import { state } from "./state.js";
import { ask } from "./voter.js";
import { quoted } from "./words.js";

/** More are counted. */
const SHOWN = 6;

/** @type {Record<string, import("./words.js").Phase>} */
const PHASES = {
  running: { sign: "◐", word: "goes on", mood: "moving", means: "what was asked for is not so yet" },
  done: { sign: "●", word: "done", mood: "good", means: "what was asked for is so" },
  failed: { sign: "✖", word: "failed", mood: "bad", means: "it will not become so by itself" },
  superseded: { sign: "–", word: "superseded", mood: "idle", means: "somebody asked for something else" },
};

/** Rewrites the strip: rollouts on their way, and what somebody asked for and is not so yet. */
export async function strip() {
  const [operations, sets] = await Promise.all([
    ask("/v1/operations?consistency=stale&running=true&limit=100"),
    ask("/v1/configs?consistency=stale&rolling=true&limit=100"),
  ]);
  const going = [...sets.items.map(rollout), ...operations.items.map(asked)];
  const more = going.length - SHOWN;
  const strip = /** @type {HTMLElement} */ (document.getElementById("running"));
  strip.hidden = going.length === 0;
  show(strip, h("strong", {}, "Going on"), going.slice(0, SHOWN), more > 0 && h("span", { class: "dim" }, `and ${more}${operations.next_page || sets.next_page ? " or more" : ""} more`));
}

/** @param {any} set */
function rollout(set) {
  const { version, released, members, halted } = set.rollout;
  const word = halted ? "✖ halted" : "◐";
  return h("a", { href: `#/config/${encodeURIComponent(set.name)}`, "data-key": `rollout-${set.name}`, title: halted ?? "it goes to its members in steps" }, `${word} config/${set.name} v${version}: ${released.length} of ${members}`);
}

/** @param {any} one */
const asked = (one) => h("a", { href: `#/operation/${one.id}`, "data-key": `operation-${one.id}`, title: one.sentence }, `◐ ${one.verb} ${one.subject}${one.to ? ` to ${one.to}` : ""}`);

/** @param {string} id */
export async function operation(id) {
  const found = await ask(`/v1/operations/${encodeURIComponent(id)}?consistency=stale`);
  const steps = found.steps.map((/** @type {any} */ step) => [h("time", { datetime: step.at, title: `revision ${step.revision}` }, step.at.replace("T", " ")), step.text]);
  return [
    h("h1", {}, `${found.verb} ${found.subject}${found.to ? ` to ${found.to}` : ""}`),
    h("p", {}, state(PHASES[found.phase]), ` ${found.sentence}`),
    h("p", { class: "dim" }, `asked ${found.asked}${found.ended ? ` · ended ${found.ended}` : ""}${found.out_of_service ? ` · out of service for ${found.out_of_service}` : ""}`),
    table([["when", "when"], ["what", "text"]], steps, "Steps"),
    same(`leaseward events --for ${quoted(found.subject)}`),
  ];
}
