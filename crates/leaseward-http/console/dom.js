// @ts-check
// Elements from words. Text is always text here: nothing of a cluster's names or files becomes markup.

/** @param {string} tag @param {Record<string, any>} [attributes] @param {...any} children */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Puts new children in place of the old ones, unless they look the same: what is selected, focused or typed stays. @param {Element} parent @param {...any} children */
export function show(parent, ...children) {
  const next = h("div", {}, ...children);
  if (next.innerHTML === parent.innerHTML) return;
  const active = parent.contains(document.activeElement) ? document.activeElement : null;
  const key = active?.getAttribute("data-key");
  const again = key ? next.querySelector(`[data-key="${CSS.escape(key)}"]`) : null;
  if (active instanceof HTMLInputElement && again instanceof HTMLInputElement) {
    const [start, end] = [active.selectionStart, active.selectionEnd];
    active.setAttribute("value", again.getAttribute("value") ?? "");
    again.replaceWith(active);
    parent.replaceChildren(...next.childNodes);
    active.focus();
    active.setSelectionRange(start, end);
    return;
  }
  parent.replaceChildren(...next.childNodes);
  if (again instanceof HTMLElement) again.focus();
}

/** A line to type in. What is typed is used at once, or `late`: when it is whole. @param {string} key @param {string} label @param {string | null} value @param {(value: string) => void} use @param {Record<string, any>} [more] */
export function field(key, label, value, use, { late, ...more } = {}) {
  const input = /** @type {HTMLInputElement} */ (h("input", { type: "text", id: `field-${key}`, "data-key": key, autocomplete: "off", spellcheck: "false", value: value ?? "", ...more }));
  input.addEventListener(late ? "change" : "input", () => use(input.value.trim()));
  return h("label", { for: `field-${key}` }, `${label} `, input);
}

/** One of several to choose. @param {string} key @param {boolean} on @param {() => void} choose @param {...any} words */
export function pressed(key, on, choose, ...words) {
  return h("button", { type: "button", "data-key": key, "aria-pressed": String(on), onclick: choose }, words);
}

/** @param {[string, string?][]} heads name and class @param {any[][]} rows @param {string} [label] */
export function table(heads, rows, label) {
  return h("div", { class: "scroll" },
    h("table", { "aria-label": label },
      h("thead", {}, h("tr", {}, heads.map(([name, kind]) => h("th", { class: kind, scope: "col" }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", { class: heads[i][1], "data-head": heads[i][0] }, cell)))))));
}

/** The same in a shell. @param {string} command @param {string} [what] */
export function same(command, what = "the same as") {
  const copy = async (/** @type {Event} */ event) => {
    const button = /** @type {HTMLElement} */ (event.currentTarget);
    try {
      await navigator.clipboard.writeText(command);
      button.textContent = "copied";
    } catch {
      // No clipboard without TLS: the text is selected, so that the keyboard copies it.
      getSelection()?.selectAllChildren(/** @type {Node} */ (button.previousSibling));
    }
  };
  return h("div", { class: "same" }, h("span", { class: "dim" }, what), h("code", {}, command), h("button", { type: "button", onclick: copy }, "copy"));
}
