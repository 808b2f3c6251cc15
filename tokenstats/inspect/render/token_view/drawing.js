// The text of a row: messages with their heads, long context folded, and only what is near the window in the page.
import { chunksOf } from "./chunks.js";
import { element, grouped, percent } from "./dom.js";
import { marksOf } from "./marks.js";

const MOST_NODES = 2600;
/** What the window does not show yet is drawn as long as this lasts in a frame, milliseconds. */
const AHEAD_MS = 6;
/** Context of more pieces is folded to its beginning and its end. */
const FOLD_ABOVE = 160;
const FOLDED_HEAD = 60;
const FOLDED_TAIL = 40;

/** @typedef {import("./row.js").Row} Row @typedef {import("./colours.js").Colouring} Colouring @typedef {import("./chunks.js").Chunk} Chunk */

export class Drawing {
  /** @param {HTMLElement} scroller @param {Row} row */
  constructor(scroller, row) {
    this.scroller = scroller;
    this.row = row;
    /** @type {Chunk[]} */
    this.chunks = [];
    /** @type {HTMLElement[]} one a message: where its counts stand */
    this.counts = [];
    /** @type {Colouring|undefined} */
    this.colouring = undefined;
    this.current = -1;
    this.isMeasured = false;
    scroller.replaceChildren(...row.messages.map((message, i) => this.#message(message, i)));
    this.#collect();
  }

  /** @param {import("./row.js").Message} message @param {number} index */
  #message(message, index) {
    const counts = element("span", { class: "counts" });
    this.counts.push(counts);
    const reply = message.reply === null ? "" : `reply ${message.reply + 1}`;
    const head = element("header", {}, [element("b", { text: message.role }), element("span", { text: reply }), counts]);
    const text = element("div", { class: "text", dir: "auto" }, this.#boxes(message));
    return element("section", { class: `message ${message.targets ? "learned" : "context"}`, "data-message": index }, [head, text]);
  }

  /** @param {import("./row.js").Message} message */
  #boxes(message) {
    const [start, body, end] = [message.start, message.body, message.end].map((token) => this.row.pieceOf(token - 1) + 1);
    const template = start < body ? this.#chunkBoxes(start, body, "template") : [];
    if (message.targets || end - body <= FOLD_ABOVE) return [...template, ...this.#chunkBoxes(body, end)];
    const [from, to] = [body + FOLDED_HEAD, end - FOLDED_TAIL];
    const hidden = this.row.starts[to] - this.row.starts[from];
    const unfold = () => this.#unfold(button, from, to);
    const button = element("button", { class: "fold", type: "button", text: `show ${grouped(hidden)} more tokens of context`, onclick: unfold });
    button.dataset.from = String(from);
    button.dataset.to = String(to);
    return [...template, ...this.#chunkBoxes(body, from), button, ...this.#chunkBoxes(to, end)];
  }

  /** @param {number} first @param {number} end @param {string} [className] */
  #chunkBoxes(first, end, className) {
    return chunksOf(this.row, first, end).map((chunk) => {
      chunkOfBox.set(chunk.box, chunk);
      if (className) chunk.box.classList.add(className);
      return chunk.box;
    });
  }

  /** @param {HTMLElement} button @param {number} from @param {number} to */
  #unfold(button, from, to) {
    button.replaceWith(...this.#chunkBoxes(from, to));
    this.#collect();
    this.update();
  }

  #collect() {
    const boxes = /** @type {NodeListOf<HTMLElement>} */ (this.scroller.querySelectorAll(".chunk"));
    this.chunks = [...boxes].map((box) => /** @type {Chunk} */ (chunkOfBox.get(box)));
    this.guessHeights();
  }

  /** After a change of width: what is not drawn is guessed anew. */
  guessHeights() {
    const width = Math.max(200, this.scroller.clientWidth - 40);
    for (const chunk of this.chunks) chunk.guessHeight(width / 8.4, 32);
    this.isMeasured = false;
  }

  /** One look at the layout serves a frame: each that followed a change would lay out the page again. */
  #measure() {
    if (!this.isMeasured) for (const chunk of this.chunks) chunk.measure();
    this.isMeasured = true;
  }

  /** @param {Chunk} chunk */
  #draw(chunk) {
    chunk.draw();
    this.#paintChunk(chunk);
    this.isMeasured = false;
  }

  /** Draw what the window shows, then what is near it while there is time, and clear what is far. Returns whether all is drawn. */
  update() {
    const { scrollTop, clientHeight } = this.scroller;
    const middle = scrollTop + clientHeight / 2;
    this.#measure();
    const byDistance = this.chunks.map((chunk) => ({ chunk, far: chunk.distance(middle) })).sort((a, b) => a.far - b.far);
    const end = performance.now() + AHEAD_MS;
    let nodes = 0;
    let isWhole = true;
    for (const { chunk, far } of byDistance) {
      const isNear = far < 1.5 * clientHeight && nodes + (chunk.end - chunk.first) < MOST_NODES;
      if (!isNear) this.#clear(chunk);
      else if (!chunk.isDrawn && (far < clientHeight / 2 || performance.now() < end)) this.#draw(chunk);
      else isWhole &&= chunk.isDrawn;
      nodes += chunk.nodes;
    }
    return isWhole;
  }

  /** @param {Chunk} chunk */
  #clear(chunk) {
    this.isMeasured &&= !chunk.isDrawn;
    chunk.clear();
  }

  /** The first and the last piece of the chunks that the window shows, as of the last update. @returns {[number, number]|undefined} */
  seen() {
    const { scrollTop, clientHeight } = this.scroller;
    const shown = this.chunks.filter(({ top, height }) => top < scrollTop + clientHeight && top + height > scrollTop);
    return shown.length ? [shown[0].first, shown[shown.length - 1].end] : undefined;
  }

  /** Colour everything anew. @param {Colouring} colouring */
  paint(colouring) {
    this.colouring = colouring;
    for (const chunk of this.chunks) if (chunk.isDrawn) this.#paintChunk(chunk);
    this.row.messages.forEach((message, i) => {
      this.counts[i].textContent = this.#countsOf(message);
    });
  }

  /** @param {import("./row.js").Message} message */
  #countsOf(message) {
    if (!message.targets) return `${grouped(message.end - message.start)} tokens, not learned`;
    let dropped = 0;
    for (let token = message.start; token < message.end; token++) {
      if (this.row.isTarget.has(token) && !this.colouring?.decisions.kept.has(token)) dropped++;
    }
    return `${grouped(dropped)} of ${grouped(message.targets)} targets dropped, ${percent(dropped, message.targets)}`;
  }

  /** @param {Chunk} chunk */
  #paintChunk(chunk) {
    if (!this.colouring) return;
    const marks = marksOf(this.row, this.colouring, chunk.first, chunk.end);
    for (let piece = chunk.first; piece < chunk.end; piece++) {
      this.#paintPiece(/** @type {HTMLElement} */ (chunk.elementOf(piece)), piece, marks[piece - chunk.first]);
    }
  }

  #paintPiece(/** @type {HTMLElement} */ box, /** @type {number} */ piece, /** @type {string} */ mark) {
    const colouring = /** @type {Colouring} */ (this.colouring);
    const [start, end] = [this.row.starts[piece], this.row.starts[piece + 1]];
    const classes = [];
    for (let token = start; token < end; token++) classes.push(colouring.classes(token));
    const isMixed = classes.some((one) => one !== classes[0]);
    box.className = isMixed ? "t mixed" : classes[0];
    if (end - start > 1) {
      box.classList.add("ticked");
      box.style.setProperty("--tokens", String(end - start));
      box.style.setProperty("--ticks", ticks(classes));
    }
    if (this.current >= start && this.current < end) box.classList.add("current");
    if (mark) box.dataset.mark = mark;
    else delete box.dataset.mark;
  }

  /** The drawn element of a token's piece. @param {number} token @returns {HTMLElement|undefined} */
  elementOf(token) {
    const piece = this.row.pieceOf(token);
    return this.chunks.find((chunk) => chunk.isDrawn && piece >= chunk.first && piece < chunk.end)?.elementOf(piece);
  }

  /** Mark a token as the one that is looked at; -1 for none. */
  setCurrent(/** @type {number} */ token) {
    this.scroller.querySelector(".current")?.classList.remove("current");
    this.current = token;
    if (token >= 0) this.elementOf(token)?.classList.add("current");
  }

  /** Scroll to a token, unfolding and drawing what is needed. @param {number} token @param {"center"|"nearest"} [where] */
  reveal(token, where = "center") {
    const piece = this.row.pieceOf(token);
    const buttons = /** @type {NodeListOf<HTMLElement>} */ (this.scroller.querySelectorAll(".fold"));
    for (const button of buttons) if (piece >= Number(button.dataset.from) && piece < Number(button.dataset.to)) button.click();
    const chunk = this.chunks.find((one) => piece >= one.first && piece < one.end);
    if (!chunk) return;
    // what lies around it is drawn first, and moves it: twice is enough, as the second time all of it is there
    for (let time = 0; time < 2; time++) {
      this.#draw(chunk);
      const box = /** @type {HTMLElement} */ (chunk.elementOf(piece));
      const top = box.offsetTop;
      const { scrollTop, clientHeight } = this.scroller;
      const isInside = top > scrollTop + 60 && top + 40 < scrollTop + clientHeight;
      if (where === "center" || !isInside) this.scroller.scrollTop = top - clientHeight / 3;
      this.update();
    }
  }
}

/** @type {WeakMap<Element, Chunk>} */
const chunkOfBox = new WeakMap();

/** A bar below a piece of several tokens, a step for each: which of them are dropped, and how. @param {string[]} classes */
function ticks(classes) {
  const steps = classes.map((one, i) => {
    const colour = one.includes(" d ") || one.includes("only-") || one.includes("both") ? "var(--dropped)" : one.includes(" x") ? "var(--faint)" : "var(--learned)";
    const [from, to] = [(100 * i) / classes.length, (100 * (i + 1)) / classes.length];
    return `transparent ${from}% calc(${from}% + 1px), ${colour} calc(${from}% + 1px) calc(${to}% - 1px), transparent calc(${to}% - 1px) ${to}%`;
  });
  return `linear-gradient(90deg, ${steps.join(", ")})`;
}
