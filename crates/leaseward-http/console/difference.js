// @ts-check
// What two versions of a config set differ in.
//
// Must stay true: what is encrypted, or for its owner alone, is not shown.

import { choose } from "./address.js";
import { h, pressed, same } from "./dom.js";
import { lines, pairs } from "./lines.js";
import { ask, fetched } from "./voter.js";
import { hidden, isSealed, quoted, size } from "./words.js";

/** Bytes of a file whose difference is shown. */
const SHOWN_BYTES_MAX = 256 << 10;

/** @param {string} set */
const api = (set) => `/v1/configs/${encodeURIComponent(set)}`;

/** Versions never change: what was fetched for one stays. @type {Map<string, Promise<any>>} */
const kept = new Map();

/** @param {string} name @param {string} from @param {string} to @param {URLSearchParams} chosen */
export async function difference(name, from, to, chosen) {
  const key = `${name}/${from}/${to}`;
  if (!kept.has(key)) {
    kept.clear();
    kept.set(key, read(name, from, to));
    // What could not be read is asked for again.
    kept.get(key)?.catch(() => kept.delete(key));
  }
  const found = await kept.get(key);
  const split = chosen.get("view") === "split";
  return [
    h("h1", {}, h("a", { href: `#/config/${encodeURIComponent(name)}` }, `config/${name}`), from === "0" ? ` v${to}` : ` v${from} → v${to}`),
    h("p", { class: "dim" }, found.length === 0 ? "Nothing differs." : `${found.length} ${found.length === 1 ? "path differs" : "paths differ"}`),
    h("div", { class: "counts", role: "group", "aria-label": "View" },
      pressed("view-one", !split, () => choose({ view: null }), "one below the other"),
      pressed("view-split", split, () => choose({ view: "split" }), "side by side")),
    found.map((/** @type {any} */ shown) => file(shown, split)),
    from !== "0" && same(`leaseward config diff ${quoted(name)} ${from} ${to}`),
    from !== "0" && Number(from) < Number(to) && same(`leaseward config rollback ${quoted(name)} --to ${from} -m 'why'`, "go back with"),
  ];
}

/** @param {string} name @param {string} from @param {string} to */
async function read(name, from, to) {
  const [{ policy }, { files }] = await Promise.all([ask(`${api(name)}?consistency=stale`), ask(`${api(name)}/diff?from=${from}&to=${to}`)]);
  const shown = [];
  for (const changed of files) {
    const why = hidden(changed.old, policy) ?? hidden(changed.new, policy) ?? unreadable(changed);
    if (why) shown.push({ changed, why });
    else {
      const [old, next] = await Promise.all([text(name, from, changed.old), text(name, to, changed.new)]);
      const bad = old.why ?? next.why;
      shown.push(bad ? { changed, why: bad } : { changed, rows: lines(old.text ?? "", next.text ?? "") });
    }
  }
  return shown;
}

/** @param {any} changed */
function unreadable(changed) {
  const both = [changed.old, changed.new].filter(Boolean);
  if (both.every((entry) => entry.kind !== "file")) return both.map((entry) => (entry.target ? `link to ${entry.target}` : entry.kind)).join(" → ");
  if (both.some((entry) => (entry.size ?? 0) > SHOWN_BYTES_MAX)) return both.map((entry) => size(entry.size ?? 0)).join(" → ");
  if (both.length === 2 && both[0].digest === both[1].digest) return "the content is the same";
  return null;
}

/** @param {string} name @param {string} version @param {any} entry @returns {Promise<{ text?: string, why?: string }>} */
async function text(name, version, entry) {
  if (entry?.kind !== "file") return { text: "" };
  const path = entry.path.split("/").map(encodeURIComponent).join("/");
  const answer = await fetched(`${api(name)}/versions/${version}/files/${path}`);
  if (!answer.ok) throw new Error(`v${version} ${entry.path}: ${answer.status}`);
  const bytes = new Uint8Array(await answer.arrayBuffer());
  if (isSealed(bytes)) return { why: "encrypted: it is not shown" };
  try {
    const found = new TextDecoder("utf-8", { fatal: true }).decode(bytes);
    return found.includes("\0") ? { why: "it is not text" } : { text: found };
  } catch {
    return { why: "it is not text" };
  }
}

/** @param {any} shown @param {boolean} split */
function file({ changed, why, rows }, split) {
  const letter = /** @type {Record<string, string>} */ ({ added: "A added", removed: "D removed", changed: "M changed" })[changed.kind];
  const modes = changed.old?.mode !== changed.new?.mode && changed.old && changed.new ? ` · mode ${changed.old.mode ?? "–"} → ${changed.new.mode ?? "–"}` : "";
  const body = () => (split ? pairs(rows).map(beside) : rows.map(below));
  return h("section", {},
    h("h2", { class: "mono" }, changed.path, " ", h("span", { class: "dim" }, letter, modes)),
    why ? h("p", { class: "dim" }, why) : h("div", { class: `diff mono ${split ? "split" : ""}` }, h("table", { "aria-label": changed.path }, h("tbody", {}, body()))));
}

/** A line is never known by its colour alone. @param {import("./lines.js").Row} row */
const signed = (row) => `${{ same: " ", minus: "-", plus: "+" }[row.kind]} ${row.text}`;

/** @param {import("./lines.js").Row | null} row */
function below(row) {
  if (row === null) return h("tr", {}, h("td", { class: "at" }, "⋯"), h("td", { class: "at" }), h("td", {}));
  return h("tr", { class: `line-${row.kind}` }, h("td", { class: "at" }, row.old ?? ""), h("td", { class: "at" }, row.new ?? ""), h("td", {}, signed(row)));
}

/** @param {[import("./lines.js").Row | null, import("./lines.js").Row | null] | null} pair */
function beside(pair) {
  if (pair === null) return h("tr", {}, h("td", { class: "at" }, "⋯"), h("td", {}), h("td", { class: "at" }, "⋯"), h("td", {}));
  const half = (/** @type {import("./lines.js").Row | null} */ row, /** @type {"old" | "new"} */ side) => [h("td", { class: "at" }, row?.[side] ?? ""), h("td", { class: row ? `line-${row.kind}` : "none" }, row ? signed(row) : "")];
  return h("tr", {}, half(pair[0], "old"), half(pair[1], "new"));
}
