// @ts-check
// Where somebody is in the console: a page's path and what was chosen on it. All of it stands in the address, so that it can be
// sent to somebody else.

/** Returns the address of a page with what is chosen on it; what is empty stands nowhere. @param {string} path @param {URLSearchParams} chosen @param {Record<string, string | null>} [changes] */
export function address(path, chosen, changes = {}) {
  const next = new URLSearchParams(chosen);
  for (const [name, value] of Object.entries(changes)) {
    if (value) next.set(name, value);
    else next.delete(name);
  }
  return next.size > 0 ? `${path}?${next}` : path;
}

/** Returns what is chosen now. */
export const now = () => new URLSearchParams(location.hash.split("?", 2)[1]);

/** Chooses something on this page, which is no new place to come back to. @param {Record<string, string | null>} changes */
export function choose(changes) {
  history.replaceState(null, "", address(location.hash.split("?", 2)[0], now(), changes));
  dispatchEvent(new Event("hashchange"));
}
