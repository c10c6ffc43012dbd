// @ts-check
// States and shares as elements: always a sign and a word, never a colour alone.

import { h } from "./dom.js";

/** @param {import("./words.js").Phase} phase */
export function state(phase) {
  return h("span", { class: `state ${phase.mood}`, title: phase.means }, `${phase.sign} ${phase.word}`);
}

/** @param {number} done @param {number} total */
export function share(done, total) {
  return [h("progress", { max: Math.max(1, total), value: done, "aria-label": `${done} of ${total}` }), ` ${done}/${total}`];
}
