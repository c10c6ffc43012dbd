// @ts-check
// What things are called and how they are written. Pure: no page, no network.

/** @typedef {{ sign: string, word: string, mood: "good" | "moving" | "bad" | "idle", means: string }} Phase */

/** A state is always a sign and a word, never a colour alone. @type {Record<string, Phase>} */
export const PHASES = {
  applied: { sign: "●", word: "applied", mood: "good", means: "the version it should have is live" },
  behind: { sign: "○", word: "behind", mood: "idle", means: "it has an older version, or never reported" },
  fetching: { sign: "◐", word: "fetching", mood: "moving", means: "it fetches what it lacks" },
  on_disk: { sign: "◑", word: "on disk", mood: "moving", means: "the version is on its disk and not yet live" },
  draining: { sign: "◇", word: "draining", mood: "moving", means: "it leaves the load balancer before it applies" },
  rejected: { sign: "✖", word: "rejected", mood: "bad", means: "it refused the version and keeps the old one" },
  drifted: { sign: "≠", word: "drifted", mood: "bad", means: "somebody changed its files by hand" },
  disabled: { sign: "–", word: "disabled", mood: "idle", means: "an operator took it out" },
};

/** @param {string} phase @returns {Phase} */
export function phaseOf(phase) {
  return PHASES[phase] ?? { sign: "?", word: phase, mood: "idle", means: "this console does not know the word" };
}

/** @param {number} bytes */
export function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 || bytes >= 100 ? Math.round(bytes) : bytes.toFixed(1)} ${units[unit]}`;
}

/** How long ago, in one unit. @param {string} at @param {number} now */
export function ago(at, now) {
  const seconds = Math.max(0, Math.round((now - Date.parse(at)) / 1000));
  if (Number.isNaN(seconds)) return at;
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 48 * 3600) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** How far a member is, in words: version, bytes, time left, reason, files. @param {any} member */
export function howFar(member) {
  const said = [];
  if (member.phase === "fetching" && member.version) {
    const of = member.total ? ` of ${size(member.total)}` : "";
    said.push(`v${member.version}: ${size(member.done ?? 0)}${of}${member.eta ? `, ${member.eta} left` : ""}`);
  } else if (member.version && member.version !== member.applied) {
    said.push(`v${member.version}`);
  }
  if (member.running) said.push(`${member.running.what}ing for ${member.running.lasting} (${member.running.timeout} at most): ${member.running.command}`);
  if (member.pin) said.push(`kept ${member.pin.version ? `at v${member.pin.version}` : "as it is"}${member.pin.by ? ` by ${member.pin.by}` : ""}${member.pin.why ? `: ${member.pin.why}` : ""}`);
  else if (member.pinned) said.push(`kept at v${member.wanted ?? member.applied}`);
  else if (member.wanted && member.wanted !== member.applied) said.push(`should have v${member.wanted}`);
  if (member.why) said.push(member.why);
  else if (member.paths?.length) said.push(member.paths.join(", "));
  if (!member.connected) said.push("its agent is not connected");
  return said.join(" · ");
}

/** Since when a member is so: from the first event of those that say the same up to now. @param {any[]} events its own, oldest first @param {string} phase */
export function since(events, phase) {
  const said = events.filter((event) => event.data.event === "synced");
  let at = null;
  for (const event of said.reverse()) {
    if (event.data.phase !== phase) break;
    at = event.at;
  }
  return at;
}

/** What the agent of a member answers a load balancer for this set, as far as its reports tell. @param {any} member @param {any} policy */
export function balancer(member, policy) {
  if (!member.connected) return { word: "?", why: "its agent is not connected: what it answers is not known here" };
  if (member.phase === "draining") return { word: "drain", why: "it leaves before it applies, and comes back when that is done" };
  if (policy.drain !== "never" && member.applied === 0) return { word: "drain", why: "it has no version yet" };
  if (policy.drain === "always" && member.running?.what === "reload") return { word: "drain", why: "until its reload is done" };
  return { word: "ready", why: policy.drain === "never" ? "this set takes nobody out (drain = never)" : `drain = ${policy.drain}` };
}

/** @param {any[]} members @returns {[string, number][]} */
export function counts(members) {
  const found = new Map(Object.keys(PHASES).map((phase) => [phase, 0]));
  for (const member of members) found.set(member.phase, (found.get(member.phase) ?? 0) + 1);
  return [...found].filter(([, count]) => count > 0);
}

/** A word of a shell command. @param {string} word */
export function quoted(word) {
  return /^[A-Za-z0-9_./:=@%+-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** What begins so was encrypted by `leaseward config publish --key`. @param {Uint8Array} bytes */
export function isSealed(bytes) {
  return SEALED.every((byte, i) => bytes[i] === byte);
}

/** "LWSEC", and the version of the form. */
const SEALED = [0x4c, 0x57, 0x53, 0x45, 0x43, 0, 0];

/** Why the content of a file is not shown, if it is not. @param {any} entry @param {any} policy */
export function hidden(entry, policy) {
  if (policy?.key) return "encrypted: it is not shown";
  if (entry?.mode && (parseInt(entry.mode, 8) & 0o077) === 0) return `mode ${entry.mode}: only its owner may read it, so it is not shown`;
  return null;
}
