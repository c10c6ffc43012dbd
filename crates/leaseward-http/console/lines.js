// @ts-check
// Which lines of two texts differ. Pure: no page, no network.

/** @typedef {{ kind: "same" | "minus" | "plus", old?: number, new?: number, text: string }} Row */

const CELLS_MAX = 4_000_000;

/** Lines of two texts side by side, with `around` equal ones about each difference. @param {string} before @param {string} after @returns {(Row | null)[]} */
export function lines(before, after, around = 3) {
  const [a, b] = [split(before), split(after)];
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end += 1;
  /** @type {Row[]} */
  const rows = [];
  for (let i = 0; i < start; i += 1) rows.push({ kind: "same", old: i + 1, new: i + 1, text: a[i] });
  middle(a.slice(start, a.length - end), b.slice(start, b.length - end), start, rows);
  for (let i = end; i > 0; i -= 1) rows.push({ kind: "same", old: a.length - i + 1, new: b.length - i + 1, text: a[a.length - i] });
  return near(rows, around);
}

/** @param {string} text */
function split(text) {
  const found = text.split("\n");
  if (found.at(-1) === "") found.pop();
  return found;
}

/** The longest common part of what is left. @param {string[]} a @param {string[]} b @param {number} start @param {Row[]} rows */
function middle(a, b, start, rows) {
  const wide = b.length + 1;
  const plain = a.length * b.length > CELLS_MAX;
  const length = new Uint32Array(plain ? 0 : (a.length + 1) * wide);
  if (!plain) {
    for (let i = a.length - 1; i >= 0; i -= 1) {
      for (let j = b.length - 1; j >= 0; j -= 1) {
        const at = i * wide + j;
        length[at] = a[i] === b[j] ? length[at + wide + 1] + 1 : Math.max(length[at + wide], length[at + 1]);
      }
    }
  }
  let [i, j] = [0, 0];
  while (i < a.length || j < b.length) {
    if (!plain && i < a.length && j < b.length && a[i] === b[j]) {
      rows.push({ kind: "same", old: start + i + 1, new: start + j + 1, text: a[i] });
      i += 1;
      j += 1;
    } else if (i < a.length && (plain || j >= b.length || length[(i + 1) * wide + j] >= length[i * wide + j + 1])) {
      rows.push({ kind: "minus", old: start + i + 1, text: a[i] });
      i += 1;
    } else {
      rows.push({ kind: "plus", new: start + j + 1, text: b[j] });
      j += 1;
    }
  }
}

/** Leaves out what is far from any difference; `null` stands where something is left out. @param {Row[]} rows @param {number} around */
function near(rows, around) {
  const shown = new Set();
  rows.forEach((row, i) => {
    if (row.kind !== "same") for (let k = i - around; k <= i + around; k += 1) shown.add(k);
  });
  /** @type {(Row | null)[]} */
  const found = [];
  rows.forEach((row, i) => {
    if (shown.has(i)) found.push(row);
    else if (found.at(-1) !== null) found.push(null);
  });
  return found;
}

/** What stands side by side: each line that went next to one that came in its place. @param {(Row | null)[]} rows @returns {([Row | null, Row | null] | null)[]} */
export function pairs(rows) {
  /** @type {([Row | null, Row | null] | null)[]} */
  const found = [];
  /** @type {{ minus: Row[], plus: Row[] }} */
  let changed = { minus: [], plus: [] };
  const flush = () => {
    for (let i = 0; i < Math.max(changed.minus.length, changed.plus.length); i += 1) found.push([changed.minus[i] ?? null, changed.plus[i] ?? null]);
    changed = { minus: [], plus: [] };
  };
  for (const row of rows) {
    if (row?.kind === "minus" || row?.kind === "plus") changed[row.kind].push(row);
    else {
      flush();
      found.push(row && [row, row]);
    }
  }
  flush();
  return found;
}
