// A sequence and what is decided about it, as the server sent them (tokenstats/inspect/tokens/payload.py).
import { Bits, floats, ints, lastAtMost } from "./arrays.js";

/**
 * @typedef {{start: number, body: number, end: number, role: string, targets: number, reply: number|null}} Message
 * @typedef {{text: string, measure: string, symbol: string, scope: string, holds: Bits,
 *   values: Float32Array|null, limits: {starts: Int32Array, values: Float32Array}}} Condition
 * @typedef {{text: string, dropped: Bits, conditions: Condition[]}} Clause
 */

/** One sequence of T tokens, drawn in C pieces: a piece is a whole character or word, of one token or a few. */
export class Row {
  /** @param {any} sent */
  constructor(sent) {
    this.number = sent.number;
    this.datasetRow = sent.datasetRow;
    this.seqId = sent.seqId;
    this.truncated = sent.truncated;
    this.length = sent.length;
    this.caveat = sent.caveat;
    this.labels = sent.labels;
    /** @type {string[]} */
    this.texts = sent.texts;
    /** @type {Message[]} */
    this.messages = sent.messages;
    this.starts = ints(sent.starts);
    this.ids = ints(sent.ids);
    this.isTarget = Bits.decode(sent.targets);
    /** @type {Record<string, Float32Array>} */
    this.statistics = {};
    for (const [name, values] of Object.entries(sent.statistics)) this.statistics[name] = floats(/** @type {string} */ (values));
    this.topk = sent.topk && { k: sent.topk.k, ids: ints(sent.topk.ids), logprobs: floats(sent.topk.logprobs) };
    this.targets = this.#targetPlaces();
  }

  #targetPlaces() {
    const places = [];
    for (let i = 0; i < this.length; i++) if (this.isTarget.has(i)) places.push(i);
    return Int32Array.from(places);
  }

  /** Which piece a token is drawn in. */
  pieceOf(/** @type {number} */ token) {
    return lastAtMost(this.starts, token);
  }

  /** Which message a token is in. */
  messageOf(/** @type {number} */ token) {
    return this.messages.findIndex((message) => token < message.end);
  }

  /** A statistic of a token; NaN where it was not scored. "nll" and the like are worked out. */
  value(/** @type {string} */ name, /** @type {number} */ token) {
    if (name === "nll") return -(this.statistics.logprob?.[token] ?? NaN);
    return this.statistics[name]?.[token] ?? NaN;
  }

  /** The label of an id, or the id itself. */
  label(/** @type {number} */ id) {
    return this.labels[id] ?? `⟨${id}⟩`;
  }
}

/** What a rule or mask says about each token of a row. */
export class Decisions {
  /** @param {any} sent */
  constructor(sent) {
    this.number = sent.number;
    this.name = sent.name;
    this.caveat = sent.caveat;
    this.kept = sent.kept instanceof Bits ? sent.kept : Bits.decode(sent.kept);
    this.isProtected = Bits.decode(sent.protected);
    /** @type {Clause[]} */
    this.clauses = sent.clauses.map((/** @type {any} */ clause) => ({
      text: clause.text,
      dropped: clause.dropped instanceof Bits ? clause.dropped : Bits.decode(clause.dropped),
      conditions: clause.conditions.map(conditionOf),
    }));
    this.weight = sent.weight && floats(sent.weight);
    this.other = sent.other && { name: sent.other.name, kept: Bits.decode(sent.other.kept) };
  }

  /** The clauses that dropped a token, counted from 0. @returns {number[]} */
  reasons(/** @type {number} */ token) {
    const found = [];
    for (let i = 0; i < this.clauses.length; i++) if (this.clauses[i].dropped.has(token)) found.push(i);
    return found;
  }
}

/** @param {any} sent @returns {Condition} */
function conditionOf(sent) {
  return {
    ...sent,
    values: sent.values && floats(sent.values),
    limits: { starts: ints(sent.limits.starts), values: floats(sent.limits.values) },
    holds: Bits.decode(sent.holds),
  };
}
