// @ts-check
// One member of a config set, with all that its cluster knows of it, and what that does not.

import { h, same, table } from "./dom.js";
import { story } from "./events.js";
import { state } from "./state.js";
import { all, ask } from "./voter.js";
import { ago, balancer, howFar, phaseOf, quoted, since } from "./words.js";

const STALE = "consistency=stale";

/** Events of a member. */
const EVENTS_LISTED = 20;

/** @param {string} set @param {string} machine */
export async function member(set, machine) {
  const api = `/v1/configs/${encodeURIComponent(set)}`;
  const [{ policy }, members, events] = await Promise.all([
    ask(`${api}?${STALE}`),
    all(`${api}/members?${STALE}&prefix=${encodeURIComponent(machine)}`),
    ask(`/v1/events?${STALE}&kinds=config&prefix=${encodeURIComponent(set)}&limit=1000`),
  ]);
  const found = members.items.find((/** @type {any} */ one) => one.machine === machine);
  const head = h("h1", {}, h("a", { href: `#/config/${encodeURIComponent(set)}`, "data-key": "set" }, `config/${set}`), ` on ${machine}`);
  if (!found) return [head, h("p", { class: "notice bad" }, `${machine} is no member of this set: it has not the labels that the set asks for, or there is no such machine.`), same("leaseward machine ls")];
  const own = events.items.filter((/** @type {any} */ event) => event.subject === set && event.data.machine === machine);
  return [head, facts(set, found, own, policy), pane(found, policy), commands(set, found), happened(set, own)];
}

/** @param {string} set @param {any} found @param {any[]} own @param {any} policy */
function facts(set, found, own, policy) {
  const now = Date.now();
  const begun = since(own, found.phase);
  const told = balancer(found, policy);
  const rows = [
    ["state", [state(phaseOf(found.phase)), ` ${phaseOf(found.phase).means}`]],
    ["since", begun ? `${begun} (${ago(begun, now)})` : "not known: the events that tell of it are kept no longer, or it never reported"],
    ["live on its disk", found.applied ? `v${found.applied}` : "nothing"],
    ["should have", found.wanted ? `v${found.wanted}` : "what it has"],
    ["how far", howFar({ phase: found.phase, version: found.version, applied: found.applied, done: found.done, total: found.total, eta: found.eta, connected: true }) || "there"],
    ["agent", found.connected ? "connected" : "not connected: what follows is what it said last"],
    ["reported", found.at ? `${found.at} (${ago(found.at, now)})` : "never"],
    ["kept at a version", found.pin ? `${found.pin.version ? `v${found.pin.version}` : "as it is"}, ${found.pin.machine ? "this member" : "all members"}${found.pin.by ? `, by ${found.pin.by}` : ""}${found.pin.why ? `: ${found.pin.why}` : ""}` : "no"],
    ["load balancer is told", [h("code", {}, told.word), ` ${told.why}`]],
  ];
  return [
    table([["what"], ["is", "text"]], rows, `${set} on ${found.machine}`),
    h("p", { class: "dim" }, "The cluster is told neither how often a member tried again nor whether a load balancer asks it; there is no weight, and nobody is told maint. Another set may take the machine out meanwhile: ", h("code", {}, "GET /readyz"), " at its ", h("code", {}, "machine.readiness"), " has the last word."),
  ];
}

/** What it said, in full. @param {any} found @param {any} policy */
function pane(found, policy) {
  const programs = ["check", "reload"].filter((what) => policy[what]).map((what) => `${what}: ${policy[what].command.join(" ")}`);
  return [
    found.running && [h("h2", {}, "Runs now"), h("p", {}, `${found.running.what} since ${found.running.since} (${ago(found.running.since, Date.now())}), killed after ${found.running.timeout}`), h("pre", {}, found.running.command)],
    found.why && [h("h2", {}, found.version ? `What it says of v${found.version}` : "What it says"), h("pre", { "data-why": true }, found.why)],
    found.paths?.length > 0 && [h("h2", {}, "Changed by hand"), h("ul", { class: "mono" }, found.paths.map((/** @type {string} */ path) => h("li", {}, path)))],
    programs.length > 0 && h("p", { class: "dim" }, `It runs ${programs.join(" · ")}. What a program printed is told when it fails${policy.key ? ", but never of a set with a key" : ""}.`),
  ];
}

/** @param {string} set @param {any} found */
function commands(set, found) {
  const [name, machine] = [quoted(set), quoted(found.machine)];
  return [
    h("h2", {}, "What can be done"),
    same(`leaseward config sync ${name} --machine ${machine}`, "look again now"),
    found.pin?.machine ? same(`leaseward config unpin ${name} --machine ${machine}`, "let it follow again") : same(`leaseward config pin ${name} --machine ${machine} --as-is -m 'why'`, "keep it as it is"),
  ];
}

/** @param {string} set @param {any[]} own */
function happened(set, own) {
  if (own.length === 0) return null;
  return [h("h2", {}, "What happened"), story(own.slice(-EVENTS_LISTED).reverse(), "What happened"), same(`leaseward events --for config/${quoted(set)}`)];
}
