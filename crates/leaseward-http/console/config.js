// @ts-check
// Config sets: all of them, and one with its members as they are now.

import { choose } from "./address.js";
import { field, h, pressed, same, table } from "./dom.js";
import { share, state } from "./state.js";
import { all, ask } from "./voter.js";
import { ago, counts, howFar, phaseOf, quoted, size } from "./words.js";

const STALE = "consistency=stale";

/** Rows of members below the cells, those that need somebody first. */
const MEMBERS_LISTED = 200;

/** Events of a set below its members. */
const EVENTS_LISTED = 12;

/** @param {string} set */
const at = (set) => `#/config/${encodeURIComponent(set)}`;
/** @param {string} set @param {string} machine */
const memberAt = (set, machine) => `${at(set)}/${encodeURIComponent(machine)}`;
/** @param {string} set */
const api = (set) => `/v1/configs/${encodeURIComponent(set)}`;

/** Whether something is meant by what somebody typed. @param {URLSearchParams} chosen @param {...(string | undefined)} words */
function meant(chosen, ...words) {
  const typed = (chosen.get("q") ?? "").toLowerCase();
  return words.some((word) => word?.toLowerCase().includes(typed));
}

/** @param {URLSearchParams} chosen */
const filter = (chosen) => h("div", { class: "fields" }, field("filter", "filter", chosen.get("q"), (q) => choose({ q }), { "data-filter": true }));

/** @param {string[]} _ @param {URLSearchParams} chosen */
export async function configs(_, chosen) {
  const { items } = await all(`/v1/configs?${STALE}`);
  const some = items.filter((/** @type {any} */ set) => meant(chosen, set.name, set.newest?.author, set.newest?.message));
  const rows = some.map((/** @type {any} */ set) => [
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
    items.length > 0 && filter(chosen),
    items.length === 0
      ? [h("p", {}, "There is none yet."), same("leaseward config publish app --from ./etc/app -m 'first'", "begin with")]
      : table([["set"], ["version", "number"], ["files", "number"], ["size", "number"], ["members in sync"], ["author"], ["published"], ["message", "text"]], rows, "Config sets"),
    same("leaseward config ls"),
  ];
}

/** @param {any} rollout */
function rolloutState(rollout) {
  return state(rollout.halted ? { sign: "✖", word: "halted", mood: "bad", means: rollout.halted } : { sign: "◐", word: "rolling out", mood: "moving", means: "it goes to its members in steps" });
}

/** @param {string} name @param {URLSearchParams} chosen */
export async function one(name, chosen) {
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
    monitor(name, members, chosen),
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

/** @param {string} name @param {any} members @param {URLSearchParams} chosen */
function monitor(name, members, chosen) {
  const asked = chosen.get("state");
  const found = counts(members.items);
  const some = members.items.filter((/** @type {any} */ member) => (!asked || member.phase === asked) && meant(chosen, member.machine, howFar(member)));
  const first = ["bad", "moving", "idle", "good"];
  const order = (/** @type {any} */ member) => first.indexOf(phaseOf(member.phase).mood);
  const listed = [...some].sort((one, other) => order(one) - order(other)).slice(0, MEMBERS_LISTED);
  return [
    h("h2", {}, "Members ", h("span", { class: "dim" }, String(members.items.length))),
    h("div", { class: "counts", role: "group", "aria-label": "States" },
      pressed("state-all", !asked, () => choose({ state: null }), "all"),
      found.map(([phase, count]) => pressed(`state-${phase}`, asked === phase, () => choose({ state: phase }), state(phaseOf(phase)), ` ${count}`))),
    filter(chosen),
    members.items.length > 12 && h("div", { class: "grid", "aria-hidden": "true" }, some.map((/** @type {any} */ member) => {
      const phase = phaseOf(member.phase);
      return h("a", { href: memberAt(name, member.machine), tabindex: "-1", class: `cell ${phase.mood}`, title: `${member.machine}: ${phase.word}. ${howFar(member)}` }, phase.sign);
    })),
    table([["member"], ["state"], ["live", "number"], ["how far", "text"], ["reported"]], listed.map((member) => [
      h("a", { href: memberAt(name, member.machine), "data-key": `member-${member.machine}` }, member.machine),
      state(phaseOf(member.phase)),
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
      program.name, h("span", { class: "mono" }, program.file), state(phaseOf(program.phase)), program.applied ? `v${program.applied}` : "–",
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
