// @ts-check
// The voter that served this page: what it is asked, what it answered, and the one connection on which it says what moved.
//
// Must stay true: an answer is kept for the revision at which it was asked, or for less; a page that is not looked at asks
// and hears nothing; the token stays in this tab and goes out in a header only.

/** Where the access token is while this tab lives, on clusters that ask for one. */
const TOKEN = "leaseward-token";

/** Which revision it is, as it moves: members' reports too, which are no events. */
const STREAM = "/v1/events?revisions=1s&consistency=stale";

/** The stream says at least every ten seconds that it lives: after two and a half times that nobody is at its other end. */
const SILENT_MAX = 25_000;
const AGAIN_AFTER_FAULT = 2000;

/** It is not known who asks. */
export class Unknown extends Error {}

/** What was answered since the last move. A cluster at rest is asked nothing. @type {Map<string, { at: number, body: any }>} */
let answers = new Map();

/** Who waits for the next move. @type {(() => void)[]} */
let waiting = [];

/** Why it is not heard, if it is not. @type {string | null} */
let silent = null;

/** The stream that is read now. @type {AbortController | null} */
let stream = null;

/** @param {string} token */
export function useToken(token) {
  sessionStorage.setItem(TOKEN, token);
  answers = new Map();
  stream?.abort();
  void listen();
}

/** Asks the voter, with the token if there is one. @param {string} path @param {string} [accept] @param {AbortSignal} [signal] */
export function fetched(path, accept = "*/*", signal) {
  const token = sessionStorage.getItem(TOKEN);
  return fetch(path, { signal, headers: token ? { accept, authorization: `Bearer ${token}` } : { accept } });
}

/** Returns an object of the API as it is now; what no revision tells of lasts so long, in milliseconds. @param {string} path @param {number} [lasts] */
export async function ask(path, lasts = Infinity) {
  // What is asked before a move and answered after it is not kept for longer.
  const kept = answers;
  const found = kept.get(path);
  if (found && Date.now() - found.at < lasts) return structuredClone(found.body);
  const at = Date.now();
  const answer = await fetched(path, "application/json");
  heard(answer.headers);
  const body = await answer.json();
  if (answer.status === 401) throw new Unknown(body.detail ?? "a token is needed");
  if (!answer.ok) throw new Error(`${body.code ?? answer.status}: ${body.detail ?? body.title ?? answer.statusText}`);
  kept.set(path, { at, body });
  return structuredClone(body);
}

/** Returns all items of a list, page after page. @param {string} path */
export async function all(path) {
  const first = await ask(`${path}&limit=1000`);
  let page = first.next_page;
  while (page) {
    const more = await ask(`${path}&limit=1000&page=${encodeURIComponent(page)}`);
    first.items.push(...more.items);
    page = more.next_page;
  }
  return first;
}

/** Waits until something moved, or so long, in milliseconds. @param {number} [most] @returns {Promise<void>} */
export function moved(most = Infinity) {
  return new Promise((done) => {
    waiting.push(done);
    if (most < Infinity) {
      setTimeout(() => {
        waiting = waiting.filter((other) => other !== done);
        done();
      }, most);
    }
  });
}

function wake() {
  const all = waiting;
  waiting = [];
  for (const done of all) done();
}

/** Says what stands at the top of every page. @param {string} words @param {boolean} [lost] */
export function note(words, lost = false) {
  const line = /** @type {HTMLElement} */ (document.getElementById("heard"));
  if (line.textContent !== words) line.textContent = words;
  line.className = lost ? "lost" : "";
}

/** @param {Headers} headers @param {string | null} revision */
function heard(headers, revision = headers.get("leaseward-revision")) {
  if (silent) note(`✖ ${silent}`, true);
  else note(`${headers.get("leaseward-served-by") ?? "?"} · revision ${revision ?? "?"}`);
}

/** Hears what moves for as long as somebody looks at the page. */
export async function listen() {
  const mine = new AbortController();
  stream = mine;
  while (stream === mine && !document.hidden) {
    try {
      await hear(mine);
    } catch (error) {
      if (stream !== mine || document.hidden) return;
      silent = error instanceof Error && error.name !== "AbortError" ? error.message : "the voter that served this page says nothing more";
      note(`✖ ${silent}`, true);
      // Whoever must say who he is begins anew when he has.
      if (error instanceof Unknown) answers = new Map();
      wake();
      if (error instanceof Unknown) return;
    }
    await new Promise((done) => setTimeout(done, AGAIN_AFTER_FAULT));
  }
}

/** Reads one stream to its end. @param {AbortController} mine */
async function hear(mine) {
  const once = new AbortController();
  const end = () => once.abort();
  mine.signal.addEventListener("abort", end);
  let watch = setTimeout(end, SILENT_MAX);
  try {
    const answer = await fetched(STREAM, "text/event-stream", once.signal);
    if (answer.status === 401) throw new Unknown("this cluster answers only who has a token");
    if (!answer.ok || !answer.body) throw new Error(`the voter that served this page answers ${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let read = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the voter that served this page went away");
      clearTimeout(watch);
      watch = setTimeout(end, SILENT_MAX);
      const lines = (read + value).split("\n");
      read = lines.pop() ?? "";
      // A stream of revisions has nothing else with an id.
      const id = lines.filter((line) => line.startsWith("id:")).at(-1);
      if (id) {
        answers = new Map();
        silent = null;
        heard(answer.headers, id.slice(3).trim());
        wake();
      }
    }
  } finally {
    clearTimeout(watch);
    mine.signal.removeEventListener("abort", end);
    once.abort();
  }
}

document.addEventListener("visibilitychange", () => {
  stream?.abort();
  stream = null;
  if (!document.hidden) void listen();
});
