// The head above the text: what row this is, how to colour it, and what the looks mean.
import { COLOURINGS } from "./colours.js";
import { element, grouped, percent } from "./dom.js";
import { SEVERAL } from "./marks.js";

const NARROW = `, ${SEVERAL} where it is narrow`;

/** @typedef {import("./row.js").Row} Row @typedef {import("./colours.js").Colouring} Colouring */

/** @param {Row} row @param {Colouring} colouring @returns {HTMLElement[]} */
export function headOf(row, colouring) {
  let dropped = 0;
  for (const token of row.targets) if (!colouring.decisions.kept.has(token)) dropped++;
  const facts = [
    `row ${grouped(row.number)}`,
    row.datasetRow === row.number ? "" : `dataset row ${grouped(row.datasetRow)}`,
    row.truncated ? "truncated" : "",
    `${grouped(row.length)} tokens`,
    `${grouped(row.targets.length)} targets`,
    `${grouped(row.targets.length - dropped)} learned`,
    `${grouped(dropped)} dropped ${row.targets.length ? `(${percent(dropped, row.targets.length)})` : ""}`,
    colouring.decisions.name,
  ];
  const shown = facts.filter(Boolean).map((text, i) => element(i ? "span" : "b", { text }));
  const caveats = [row.caveat, colouring.decisions.caveat].filter(Boolean).map((text) => element("p", { class: "caveat", role: "status", text }));
  return [element("div", { class: "facts" }, shown), ...caveats];
}

/** @param {Row} row @param {Colouring} colouring @param {(key: string) => void} choose @returns {HTMLElement} */
export function choicesOf(row, colouring, choose) {
  const keys = /** @type {typeof import("./colours.js").Colouring} */ (colouring.constructor).possible(row, colouring.decisions);
  const buttons = keys.map((key) =>
    element("button", { type: "button", "aria-pressed": String(key === colouring.key), text: COLOURINGS[key].label, onclick: () => choose(key) }),
  );
  return element("div", { class: "choices-of-colour", role: "group", "aria-label": "colour by" }, buttons);
}

/** @param {Row} row @param {Colouring} colouring @returns {HTMLElement} */
export function legendOf(row, colouring) {
  const sample = (/** @type {string} */ look, /** @type {string} */ text, /** @type {string} */ mark = "") =>
    element("span", {}, [element("span", { class: `t ${look}`, text: mark || "abc" }), ` ${text}`]);
  const entries = [sample("x", "context"), sample("", "learned")];
  const { decisions } = colouring;
  if (colouring.key === "ab") {
    const names = [decisions.name, decisions.other?.name ?? "plain SFT"];
    entries.push(sample("only-a", `A drops: ${names[0]}`, "A"), sample("only-b", `B drops: ${names[1]}`, "B"), sample("both", `both drop${NARROW}`, "AB"));
    return element("div", { class: "legend" }, entries);
  }
  if (row.targets.some((token) => decisions.isProtected.has(token))) entries.push(sample("p", "never dropped"));
  decisions.clauses.forEach((clause, i) => {
    let count = 0;
    for (const token of row.targets) if (clause.dropped.has(token)) count++;
    entries.push(element("span", {}, [element("span", { class: `t d c${i % 8}`, text: String(i + 1) }), " ", element("code", { text: clause.text }), ` ${grouped(count)}`]));
  });
  if (row.targets.some((token) => decisions.reasons(token).length > 1)) entries.push(sample("d several", `several clauses${NARROW}`, "1+2"));
  if (colouring.isHeat) {
    entries.push(element("span", {}, [`${COLOURINGS[colouring.key].label} 0 `, element("span", { class: "ramp" }), ` ${colouring.scale}`]));
  }
  return element("div", { class: "legend" }, entries);
}
