// How a token looks: what is learned, what is dropped and by which clause, or how large a statistic is.
import { short } from "./dom.js";

/** Ways to colour tokens: name on the page, statistic, unit. "clause" and "ab" colour decisions. */
export const COLOURINGS = {
  clause: { label: "clause" },
  entropy: { label: "entropy", statistic: "entropy", unit: "nats" },
  kl: { label: "KL", statistic: "kl", unit: "nats" },
  nll: { label: "−log p", statistic: "nll", unit: "nats" },
  rank: { label: "rank", statistic: "rank", unit: "" },
  weight: { label: "weight", unit: "" },
  ab: { label: "A/B" },
};
const SHADES = 9;
/** Looks of clauses that differ without colour: each a line of its own under, through or over the text. */
const LOOKS = 8;

/** @typedef {import("./row.js").Row} Row @typedef {import("./row.js").Decisions} Decisions */

export class Colouring {
  /**
   * @param {Row} row
   * @param {Decisions} decisions
   * @param {string} key of COLOURINGS
   * @param {number} [darkest] the value of the darkest shade; by default the row's largest
   */
  constructor(row, decisions, key, darkest) {
    this.row = row;
    this.decisions = decisions;
    this.key = key;
    this.darkest = darkest || this.#largest();
  }

  get isHeat() {
    return this.key !== "clause" && this.key !== "ab";
  }

  /** What a token is shaded by; NaN where there is nothing. */
  value(/** @type {number} */ token) {
    if (this.key === "weight") return this.row.isTarget.has(token) ? (this.decisions.weight?.[token] ?? NaN) : NaN;
    return this.row.value(COLOURINGS[this.key].statistic, token);
  }

  #largest() {
    let largest = 0;
    if (this.isHeat) for (const token of this.row.targets) largest = Math.max(largest, this.value(token) || 0);
    return largest || 1;
  }

  /** Classes of one token. */
  classes(/** @type {number} */ token) {
    if (!this.row.isTarget.has(token)) return "t x";
    const isKept = this.decisions.kept.has(token);
    if (this.key === "ab") return `t ${this.#sides(token, isKept)}`;
    const decided = isKept ? (this.decisions.isProtected.has(token) ? "t p" : "t") : `t d ${this.#clauseLook(token)}`;
    return this.isHeat ? `${decided} h${this.#shade(token)}` : decided;
  }

  #sides(/** @type {number} */ token, /** @type {boolean} */ isKept) {
    const isKeptByOther = this.decisions.other ? this.decisions.other.kept.has(token) : true;
    if (isKept) return isKeptByOther ? "" : "only-b";
    return isKeptByOther ? "only-a" : "both";
  }

  #clauseLook(/** @type {number} */ token) {
    const reasons = this.decisions.reasons(token);
    return reasons.length > 1 ? "several" : `c${(reasons[0] ?? 0) % LOOKS}`;
  }

  #shade(/** @type {number} */ token) {
    const value = this.value(token);
    if (!(value > 0)) return 0;
    // most values are small: half the shades go to the lowest quarter; ranks to their logarithm
    const share = this.key === "rank" ? Math.log1p(value) / Math.log1p(this.darkest) : Math.sqrt(value / this.darkest);
    return Math.max(1, Math.min(SHADES, Math.ceil(share * SHADES)));
  }

  /** "1", "2" or "1+3": which clauses dropped a token; "" where none did. */
  mark(/** @type {number} */ token) {
    if (!this.row.isTarget.has(token)) return "";
    if (this.key === "ab") return { "only-a": "A", "only-b": "B", both: "AB" }[this.#sides(token, this.decisions.kept.has(token))] ?? "";
    if (this.decisions.kept.has(token)) return "";
    return this.decisions.reasons(token).map((i) => i + 1).join("+");
  }

  /** What the darkest shade means. */
  get scale() {
    const { unit } = COLOURINGS[this.key];
    return `${short(this.darkest)}${unit ? ` ${unit}` : ""} or more`;
  }

  /** Which colourings a row and its decisions allow. */
  static possible(/** @type {Row} */ row, /** @type {Decisions} */ decisions) {
    return Object.keys(COLOURINGS).filter((key) => {
      if (key === "clause") return true;
      if (key === "ab") return Boolean(decisions.other);
      if (key === "weight") return Boolean(decisions.weight);
      return (COLOURINGS[key].statistic === "nll" ? "logprob" : COLOURINGS[key].statistic) in row.statistics;
    });
  }
}
