// Elements are made here and nowhere else. Text is only ever set as text: nothing that a dataset holds is read as HTML.

/**
 * @param {string} tag
 * @param {{class?: string, text?: string, [attribute: string]: any}} [options] "class", "text", "on…" and attributes
 * @param {(Node|string)[]} [children]
 * @returns {HTMLElement}
 */
export function element(tag, options = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

/** @param {number} count "12,345" */
export function grouped(count) {
  return count.toLocaleString("en-US");
}

/** A share of a whole; "" of nothing. */
export function percent(/** @type {number} */ part, /** @type {number} */ whole) {
  return whole ? `${((100 * part) / whole).toFixed(1)} %` : "";
}

/** A number to four digits: 1.234, 0.01234, 1.2e-7. */
export function short(/** @type {number} */ x) {
  if (!Number.isFinite(x)) return "";
  if (x === 0) return "0";
  return Math.abs(x) >= 1e-4 && Math.abs(x) < 1e6 ? String(Number(x.toPrecision(4))) : x.toExponential(1);
}

/** A probability from its logarithm: never "0 %" of something possible. */
export function probability(/** @type {number} */ logprob) {
  const p = Math.exp(logprob);
  return p >= 0.0001 ? `${(100 * p).toFixed(2)} %` : p.toExponential(1);
}
