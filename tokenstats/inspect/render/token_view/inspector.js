// All that is known of one token, beside the text: numbers, alternatives, and why it is dropped or learned.
import { lastAtMost } from "./arrays.js";
import { element, grouped, probability, short } from "./dom.js";

/** @typedef {import("./row.js").Row} Row @typedef {import("./row.js").Decisions} Decisions @typedef {import("./row.js").Condition} Condition */

const OWNER = { dataset: "the dataset's", sequence: "this row's", turn: "this turn's", role: "this role's", "": "the" };

/** What is known, as titled lines: the panel shows them and the clipboard takes them. */
export function facts(/** @type {Row} */ row, /** @type {Decisions} */ decisions, /** @type {number} */ token) {
  const message = row.messages[row.messageOf(token)];
  const reply = message.reply === null ? "" : `, reply ${message.reply + 1}`;
  /** @type {[string, string][]} */
  const lines = [
    ["token", `${row.label(row.ids[token])}`],
    ["place", `${grouped(token)} of ${grouped(row.length)}, ${message.role}${reply}`],
    ["id", String(row.ids[token])],
  ];
  const value = (/** @type {string} */ name) => row.value(name, token);
  const add = (/** @type {string} */ title, /** @type {string} */ text) => text && lines.push([title, text]);
  for (const [name, column] of [["p", "logprob"], ["q", "ref_logprob"]]) {
    if (Number.isFinite(value(column))) add(name, `${probability(value(column))}   log ${short(value(column))}`);
  }
  add("rank", [value("rank"), value("ref_rank")].filter(Number.isFinite).map(grouped).join(", reference "));
  add("entropy", [value("entropy"), value("ref_entropy")].filter(Number.isFinite).map(short).join(", reference "));
  add("KL(p‖q)", short(value("kl")));
  add("KL(q‖p)", short(value("reverse_kl")));
  return lines;
}

/** One sentence on what becomes of a token. */
export function verdict(/** @type {Row} */ row, /** @type {Decisions} */ decisions, /** @type {number} */ token) {
  if (!row.isTarget.has(token)) return "context: not learned";
  const reasons = decisions.reasons(token).map((i) => i + 1);
  if (!decisions.kept.has(token)) return reasons.length ? `dropped by clause ${reasons.join(" and ")}` : "dropped";
  const weight = decisions.weight ? `, weight ${short(decisions.weight[token])}` : "";
  return (decisions.isProtected.has(token) ? "learned: the rule never drops it" : "learned") + weight;
}

/** "entropy 1.62, this row's limit 1.41: +0.21" */
export function explain(/** @type {Condition} */ condition, /** @type {Row} */ row, /** @type {number} */ token) {
  const nth = lastAtMost(row.targets, token);
  if (!condition.symbol) return `${condition.text}: ${condition.holds.has(nth) ? "yes" : "no"}`;
  const value = condition.values ? condition.values[nth] : row.value(condition.measure, token);
  const limit = condition.limits.values[lastAtMost(condition.limits.starts, nth)];
  const owner = OWNER[/** @type {keyof OWNER} */ (condition.scope)];
  if (!Number.isFinite(value)) return `${condition.text}: its value is not known`;
  if (!Number.isFinite(limit)) return `${condition.measure} ${short(value)}, ${owner} group takes none`;
  const distance = value - limit;
  return `${condition.measure} ${short(value)}, ${owner} limit ${condition.symbol} ${short(limit)}: ${distance < 0 ? "−" : "+"}${short(Math.abs(distance))}`;
}

export class Inspector {
  /** @param {HTMLElement} box */
  constructor(box) {
    this.box = box;
    this.text = "";
  }

  /** @param {Row} row @param {Decisions} decisions @param {number} token -1 for none @param {boolean} isPinned */
  show(row, decisions, token, isPinned) {
    this.box.classList.toggle("pinned", isPinned);
    if (token < 0) {
      this.box.replaceChildren(element("p", { class: "quiet", text: "Point at a token, or press an arrow key. Enter or a click pins it here." }));
      return;
    }
    const lines = facts(row, decisions, token);
    const why = row.isTarget.has(token) ? this.#reasons(row, decisions, token) : [];
    const copy = element("button", { type: "button", class: "copy", text: "copy", onclick: () => navigator.clipboard?.writeText(this.text) });
    this.text = [...lines.map(([name, text]) => `${name}\t${text}`), verdict(row, decisions, token), ...why.map((one) => one.textContent)].join("\n");
    this.box.replaceChildren(
      element("div", { class: "token-head" }, [element("b", { class: "token", text: row.label(row.ids[token]) }), isPinned ? copy : ""]),
      element("dl", {}, lines.slice(1).flatMap(([name, text]) => [element("dt", { text: name }), element("dd", { text })])),
      element("p", { class: "verdict", text: verdict(row, decisions, token) }),
      element("ul", { class: "reasons" }, why),
      ...this.#alternatives(row, token),
    );
  }

  /** @param {Row} row @param {Decisions} decisions @param {number} token */
  #reasons(row, decisions, token) {
    return decisions.clauses.map((clause, i) => {
      const isDropped = clause.dropped.has(token);
      const head = `${isDropped ? "✓" : "–"} ${i + 1}  ${clause.text}`;
      const conditions = clause.conditions.map((condition) => element("div", { class: "condition", text: explain(condition, row, token) }));
      return element("li", { class: isDropped ? "holds" : "" }, [element("code", { text: head }), ...conditions]);
    });
  }

  /** Bars of the likeliest tokens: what the model would have said. @param {Row} row @param {number} token */
  #alternatives(row, token) {
    const own = row.ids[token];
    /** @type {[number, number][]} */
    const choices = [];
    if (row.topk) {
      const { k, ids, logprobs } = row.topk;
      for (let i = token * k; i < (token + 1) * k; i++) if (ids[i] >= 0) choices.push([ids[i], logprobs[i]]);
    } else if (Number.isFinite(row.value("top1_id", token))) choices.push([row.value("top1_id", token), row.value("top1_logprob", token)]);
    if (!choices.length) return [];
    if (!choices.some(([id]) => id === own)) choices.push([own, row.value("logprob", token)]);
    const bars = choices.map(([id, logprob]) => {
      const bar = element("span", { class: "bar" });
      bar.style.width = `${100 * Math.exp(logprob)}%`;
      const name = element("span", { class: id === own ? "own" : "", text: row.label(id) });
      return element("li", {}, [name, element("span", { text: probability(logprob) }), bar]);
    });
    return [element("p", { class: "quiet", text: "the model's choices by p" }), element("ol", { class: "choices" }, bars)];
  }
}
