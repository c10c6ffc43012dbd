// @ts-check
// The cluster at a glance: the words of `leaseward status`, who votes, and what the loss of one would do.

import { share, state } from "./state.js";
import { h, same, table } from "./dom.js";
import { story } from "./events.js";
import { loss } from "./quorum.js";
import { ask } from "./voter.js";

/** Whether voters answer is in no revision: they are asked so often, in milliseconds. */
const VOTERS_EACH = 2000;

const EVENTS_LISTED = 10;

/** @type {Record<string, import("./words.js").Phase>} */
const HEALTH = {
  ok: { sign: "●", word: "ok", mood: "good", means: "all is well" },
  degraded: { sign: "◐", word: "degraded", mood: "moving", means: "it works, and somebody should look" },
  down: { sign: "✖", word: "down", mood: "bad", means: "nothing can be committed" },
};

/** @param {Record<string, number>} counts */
const sum = (counts) => Object.values(counts).reduce((all, count) => all + count, 0);
/** @param {Record<string, number>} counts */
const words = (counts) => Object.entries(counts).map(([word, count]) => `${count} ${word.replaceAll("_", " ")}`).join(", ");

/** @param {string} name @param {number} good @param {number} all @param {string} said */
const bar = (name, good, all, said) => h("div", { class: "bar" }, h("strong", {}, name), all > 0 ? share(good, all) : h("span", { class: "dim" }, "none"), h("span", {}, said));

export async function overview() {
  const [cluster, events] = await Promise.all([ask("/v1/cluster?consistency=stale", VOTERS_EACH), ask(`/v1/events?consistency=stale&limit=${EVENTS_LISTED}`)]);
  return [
    h("h1", {}, "Overview"),
    h("p", { class: `notice ${HEALTH[cluster.health].mood}` }, state(HEALTH[cluster.health]), " ", cluster.sentence),
    h("p", { class: "dim" }, `leader ${cluster.leader ?? "nobody"} · term ${cluster.term} · machines: ${words(cluster.machines) || "none"} · cluster ${cluster.cluster}`),
    bar("Leases", cluster.leases.held ?? 0, sum(cluster.leases), words(cluster.leases)),
    bar("Servers", cluster.servers.running ?? 0, sum(cluster.servers), words(cluster.servers)),
    bar("Sync", cluster.in_sync.of, cluster.in_sync.all, `${cluster.sets} config ${cluster.sets === 1 ? "set" : "sets"}: members with the newest version, of all that ever reported`),
    cluster.warnings.length > 0 && [h("h2", {}, "To look at"), h("ul", { "data-warnings": true }, cluster.warnings.map((/** @type {string} */ warning) => h("li", {}, warning)))],
    h("h2", {}, "Voters"),
    table([["voter"], ["role"], ["answers"], ["lag", "number"], ["if it is lost", "text"]], cluster.voters.map((/** @type {any} */ voter) => row(voter, loss(cluster.voters, voter))), "Voters"),
    cluster.learners.length > 0 && [
      h("h2", {}, "Nodes that do not vote"),
      table([["node"], ["role"], ["answers"], ["lag", "number"], ["if it is lost", "text"]], cluster.learners.map((/** @type {any} */ node) => row(node, null)), "Nodes that do not vote"),
    ],
    h("p", { class: "dim" }, "Lag is entries of the leader's log. How far clocks are apart and how long a disk takes to sync is not told here; each voter's /metrics has its wall clock and counts its syncs."),
    same("leaseward status"),
    h("h2", {}, "What happened last ", h("a", { href: "#/events", "data-key": "all-events" }, "all")),
    story(events.items.slice(-EVENTS_LISTED).reverse(), "What happened last"),
  ];
}

/** @param {any} node @param {import("./words.js").Phase | null} lost */
function row(node, lost) {
  const up = node.up ? { sign: "●", word: "up", mood: /** @type {const} */ ("good"), means: "it answered just now" } : { sign: "✖", word: node.quarantined ? "takes no part" : "silent", mood: /** @type {const} */ ("bad"), means: node.quarantined ?? "it did not answer" };
  return [
    node.name,
    node.witness ? `${node.role}, witness` : node.role,
    [state(up), node.answered_in && ` in ${node.answered_in}`],
    node.lag === null || node.lag === undefined ? "unknown" : String(node.lag),
    lost ? [state(lost), ` ${lost.means}`] : "no vote is lost with it",
  ];
}
