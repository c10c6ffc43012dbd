// @ts-check
// Config sets: all of them, one with its members as they are now, and what two versions differ in.

import { again, ask, fetched } from "./console.js";
import { h, same, table } from "./dom.js";
import { ago, counts, hidden, howFar, isSealed, lines, phaseOf, quoted, size } from "./words.js";

const STALE = "consistency=stale";

/** Rows of members below the cells, those that need somebody first. */
const MEMBERS_LISTED = 200;

/** Events of a set below its members. */
const EVENTS_LISTED = 12;

/** Bytes of a file whose difference is shown. */
const SHOWN_BYTES_MAX = 256 << 10;

/** Which state is asked for, by set. @type {Map<string, string>} */
const filters = new Map();

/** @param {string} set */
const at = (set) => `#/config/${encodeURIComponent(set)}`;
/** @param {string} set */
const api = (set) => `/v1/configs/${encodeURIComponent(set)}`;

/** Returns all items of a list, page after page. @param {string} path */
async function all(path) {
  const first = await ask(`${path}&limit=1000`);
  let page = first.next_page;
  while (page) {
    const more = await ask(`${path}&limit=1000&page=${encodeURIComponent(page)}`);
    first.items.push(...more.items);
    page = more.next_page;
  }
  return first;
}

/** @param {string} word */
function state(word) {
  const phase = phaseOf(word);
  return h("span", { class: `state ${phase.mood}`, title: phase.means }, `${phase.sign} ${phase.word}`);
}

/** @param {number} done @param {number} total */
function share(done, total) {
  return [h("progress", { max: Math.max(1, total), value: done, "aria-label": `${done} of ${total}` }), ` ${done}/${total}`];
}

export async function configs() {
  const { items } = await all(`/v1/configs?${STALE}`);
  const rows = items.map((/** @type {any} */ set) => [
    h("a", { href: at(set.name), "data-key": `set-${set.name}` }, set.name),
    set.version ? `v${set.version}` : "–",
    set.newest ? String(set.newest.files) : "–",
    set.newest ? size(set.newest.bytes) : "–",
    [share(set.in_sync, set.members), set.rollout && [" ", rolloutState(set.rollout)]],
    set.newest?.author ?? "",
    set.newest ? ago(set.newest.at, Date.now()) : "",
    set.newest?.message ?? "",
  ]);
  return [
    h("h1", {}, "Config sets"),
    rows.length === 0
      ? [h("p", {}, "There is none yet."), same("leaseward config publish app --from ./etc/app -m 'first'", "begin with")]
      : table([["set"], ["version", "number"], ["files", "number"], ["size", "number"], ["members in sync"], ["author"], ["published"], ["message", "text"]], rows, "Config sets"),
    same("leaseward config ls"),
  ];
}

/** @param {any} rollout */
function rolloutState(rollout) {
  const [sign, mood] = rollout.halted ? ["✖ halted", "bad"] : ["◐ rolling out", "moving"];
  return h("span", { class: `state ${mood}` }, sign);
}

/** @param {string} name */
export async function one(name) {
  const [set, members, history, events] = await Promise.all([
    ask(`${api(name)}?${STALE}`),
    all(`${api(name)}/members?${STALE}`),
    ask(`${api(name)}/versions?${STALE}&limit=50`),
    ask(`/v1/events?${STALE}&kinds=config&prefix=${encodeURIComponent(name)}&limit=100`),
  ]);
  return [
    h("h1", {}, `config/${name} `, h("span", { class: "dim" }, set.version ? `v${set.version}` : "no version yet")),
    set.rollout && rolling(name, set.rollout),
    set.pins?.length > 0 && h("p", { class: "notice" }, "Kept at a version: ", set.pins.map((/** @type {any} */ pin) => `${pin.machine ?? "all members"} at v${pin.version}`).join(", ")),
    monitor(name, members),
    programs(members.programs ?? []),
    happened(name, events.items),
    versions(name, set, history.items),
  ];
}

/** @param {string} name @param {any} rollout */
function rolling(name, rollout) {
  return h("div", { class: `notice ${rollout.halted ? "bad" : ""}` },
    rolloutState(rollout), ` v${rollout.version}, from v${rollout.base}: `, share(rollout.released.length, rollout.members),
    rollout.failed.length > 0 && ` · refused by ${rollout.failed.join(", ")}`,
    rollout.halted && [h("div", {}, rollout.halted), same(`leaseward config rollout ${quoted(name)} resume`, "go on with"), same(`leaseward config rollout ${quoted(name)} abort`, "go back with")]);
}

/** @param {string} name @param {any} members */
function monitor(name, members) {
  const filter = filters.get(name);
  const found = counts(members.items);
  const choose = (/** @type {string | undefined} */ phase) => () => {
    if (phase) filters.set(name, phase);
    else filters.delete(name);
    again();
  };
  const some = members.items.filter((/** @type {any} */ member) => !filter || member.phase === filter);
  const first = ["bad", "moving", "idle", "good"];
  const order = (/** @type {any} */ member) => first.indexOf(phaseOf(member.phase).mood);
  const listed = [...some].sort((one, other) => order(one) - order(other)).slice(0, MEMBERS_LISTED);
  return [
    h("h2", {}, "Members ", h("span", { class: "dim" }, String(members.items.length))),
    h("div", { class: "counts", role: "group", "aria-label": "States" },
      h("button", { type: "button", "data-key": "state-all", "aria-pressed": String(!filter), onclick: choose(undefined) }, "all"),
      found.map(([phase, count]) => h("button", { type: "button", "data-key": `state-${phase}`, "data-state": phase, "aria-pressed": String(filter === phase), onclick: choose(phase) }, state(phase), ` ${count}`))),
    members.items.length > 12 && h("div", { class: "grid", "aria-hidden": "true" }, some.map((/** @type {any} */ member) => {
      const phase = phaseOf(member.phase);
      return h("span", { class: `cell ${phase.mood}`, title: `${member.machine}: ${phase.word}. ${howFar(member)}` }, phase.sign);
    })),
    table([["member"], ["state"], ["live", "number"], ["how far", "text"], ["reported"]], listed.map((member) => [
      member.machine,
      state(member.phase),
      member.applied ? `v${member.applied}` : "–",
      [member.phase === "fetching" && member.total > 0 && [h("progress", { max: member.total, value: member.done ?? 0, "aria-label": "fetched" }), " "], howFar(member)],
      member.at ? ago(member.at, Date.now()) : "never",
    ]), "Members"),
    some.length > listed.length && h("p", { class: "dim" }, `and ${some.length - listed.length} more: every one has a cell above, and stands in the table of its state`),
    same(`leaseward config monitor ${quoted(name)}`),
    found.some(([phase]) => phase === "drifted") && same(`leaseward config sync ${quoted(name)}`, "put right by"),
  ];
}

/** @param {any[]} programs */
function programs(programs) {
  if (programs.length === 0) return null;
  return [
    h("h2", {}, "Programs that follow files"),
    table([["program"], ["file"], ["state"], ["works with", "number"], ["why", "text"], ["said"]], programs.map((program) => [
      program.name, h("span", { class: "mono" }, program.file), state(program.phase), program.applied ? `v${program.applied}` : "–",
      program.why ? `v${program.version}: ${program.why}` : "", ago(program.at, Date.now()),
    ]), "Programs"),
  ];
}

/** What happened last, newest first. @param {string} name @param {any[]} items */
function happened(name, items) {
  const own = items.filter((event) => event.subject === name).reverse().slice(0, EVENTS_LISTED);
  if (own.length === 0) return null;
  return [
    h("h2", {}, "What happened"),
    table([["when"], ["what", "text"]], own.map((event) => [h("time", { datetime: event.at, title: event.at }, ago(event.at, Date.now())), event.text]), "What happened"),
    same(`leaseward events --for config/${quoted(name)}`),
  ];
}

/** @param {string} name @param {any} set @param {any[]} items */
function versions(name, set, items) {
  const kept = new Set(items.map((version) => version.version));
  return [
    h("h2", {}, "History ", h("span", { class: "dim" }, `${set.versions_kept} kept`)),
    table([["version", "number"], ["published"], ["author"], ["message", "text"], ["files", "number"], ["size", "number"], ["difference"]], items.map((version) => [
      `v${version.version}`, h("time", { datetime: version.at, title: version.at }, ago(version.at, Date.now())), version.author, version.message, String(version.files), size(version.bytes),
      [
        (version.parent === 0 || kept.has(version.parent)) && h("a", { href: `${at(name)}/diff/${version.parent}/${version.version}`, "data-key": `parent-${version.version}` }, version.parent ? `from v${version.parent}` : "all of it"),
        version.version !== set.version && [" · ", h("a", { href: `${at(name)}/diff/${version.version}/${set.version}`, "data-key": `now-${version.version}` }, "to the newest")],
      ],
    ]), "History"),
    same(`leaseward config history ${quoted(name)}`),
  ];
}

/** Versions never change: what was fetched for one stays. @type {Map<string, Promise<any>>} */
const kept = new Map();

/** @param {string} name @param {string} from @param {string} to */
export async function difference(name, from, to) {
  const key = `${name}/${from}/${to}`;
  if (!kept.has(key)) {
    kept.clear();
    kept.set(key, read(name, from, to));
    // What could not be read is asked for again.
    kept.get(key)?.catch(() => kept.delete(key));
  }
  const found = await kept.get(key);
  return [
    h("h1", {}, h("a", { href: at(name) }, `config/${name}`), from === "0" ? ` v${to}` : ` v${from} → v${to}`),
    h("p", { class: "dim" }, found.length === 0 ? "Nothing differs." : `${found.length} ${found.length === 1 ? "path differs" : "paths differ"}`),
    found.map(file),
    from !== "0" && same(`leaseward config diff ${quoted(name)} ${from} ${to}`),
    from !== "0" && Number(from) < Number(to) && same(`leaseward config rollback ${quoted(name)} --to ${from} -m 'why'`, "go back with"),
  ];
}

/** @param {string} name @param {string} from @param {string} to */
async function read(name, from, to) {
  const [{ policy }, { files }] = await Promise.all([ask(`${api(name)}?${STALE}`), ask(`${api(name)}/diff?from=${from}&to=${to}`)]);
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

/** @param {any} shown */
function file({ changed, why, rows }) {
  const letter = /** @type {Record<string, string>} */ ({ added: "A added", removed: "D removed", changed: "M changed" })[changed.kind];
  const modes = changed.old?.mode !== changed.new?.mode && changed.old && changed.new ? ` · mode ${changed.old.mode ?? "–"} → ${changed.new.mode ?? "–"}` : "";
  return h("section", {},
    h("h2", { class: "mono" }, changed.path, " ", h("span", { class: "dim" }, letter, modes)),
    why ? h("p", { class: "dim" }, why) : h("div", { class: "diff mono" }, h("table", { "aria-label": changed.path }, h("tbody", {}, rows.map((/** @type {any} */ row) =>
      row === null
        ? h("tr", {}, h("td", { class: "at" }, "⋯"), h("td", { class: "at" }), h("td", {}))
        : h("tr", { class: `line-${row.kind}` }, h("td", { class: "at" }, row.old ?? ""), h("td", { class: "at" }, row.new ?? ""), h("td", {}, `${{ same: " ", minus: "-", plus: "+" }[/** @type {"same"} */ (row.kind)]} ${row.text}`)))))));
}
