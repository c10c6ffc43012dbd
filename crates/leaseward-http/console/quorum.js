// @ts-check
// What the loss of a voter would do. Pure: no page, no network.

/** @typedef {import("./words.js").Phase} Phase */

/** Counts on those only that answer now. @param {any[]} voters @param {any} lost @returns {Phase} */
export function loss(voters, lost) {
  const needed = Math.floor(voters.length / 2) + 1;
  const up = voters.filter((voter) => voter.up);
  const left = up.filter((voter) => voter !== lost).length;
  const means = `${left} of ${voters.length} would answer, ${needed} are needed`;
  if (!lost.up) return { sign: "–", word: "does not answer now", mood: "idle", means: `${up.length} of ${voters.length} answer, ${needed} are needed` };
  if (up.length < needed) return { sign: "✖", word: "no quorum already", mood: "bad", means };
  return left >= needed ? { sign: "●", word: "safe", mood: "good", means } : { sign: "✖", word: "breaks quorum", mood: "bad", means };
}
