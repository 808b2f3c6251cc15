// Entropy against KL: how many targets each cell holds, and which share of them is dropped. One that is pointed at says so.
import { floats, ints } from "./arrays.js";
import { element, grouped, percent, short } from "./dom.js";

const CELL_PIXELS = 6;
const TITLES = ["targets by entropy and KL", "share of them that is dropped"];
const TICKS = [0, 0.25, 0.5, 0.75, 1];

export class Joint {
  /** @param {HTMLElement} root @param {(entropy: number, kl: number) => void} press */
  constructor(root, press) {
    this.root = root;
    this.press = press;
    /** The cell looked at: of entropy, of KL. @type {[number, number]|undefined} */
    this.at = undefined;
    this.canvases = TITLES.map((title) => this.#canvas(title));
    this.axes = TITLES.map(() => [element("div", { class: "axis x" }), element("div", { class: "axis y" })]);
    this.said = element("p", { class: "quiet steer-hover joint-said", "aria-live": "polite" });
    const panels = TITLES.map((title, i) => element("div", { class: "joint" }, [element("p", { text: title }), ...this.axes[i], this.canvases[i]]));
    root.replaceChildren(element("div", { class: "steer-columns" }, panels), this.said);
  }

  /** @param {any} sent of tokenstats/inspect/rows/joint.py */
  show(sent) {
    this.size = sent.size;
    this.edges = sent.edges.map(floats);
    const [cells, counts, dropped] = [sent.cells, sent.counts, sent.dropped].map(ints);
    /** @type {Map<number, [number, number]>} what a cell holds, and what of it is dropped */
    this.cells = new Map([...cells].map((cell, i) => [cell, [counts[i], dropped[i]]]));
    this.most = counts.reduce((a, b) => Math.max(a, b), 1);
    const places = [[...cells].map((cell) => Math.floor(cell / this.size)), [...cells].map((cell) => cell % this.size)];
    this.low = places.map((of) => of.reduce((a, b) => Math.min(a, b), this.size - 1));
    this.high = places.map((of) => of.reduce((a, b) => Math.max(a, b), 0) + 1);
    this.#label();
    this.#paint();
  }

  /** @param {string} title */
  #canvas(title) {
    const canvas = /** @type {HTMLCanvasElement} */ (element("canvas", { tabindex: 0, role: "application", "aria-label": `${title}; arrow keys move, Enter lists the tokens` }));
    canvas.addEventListener("pointermove", (event) => this.#look(...this.#cellAt(canvas, event)));
    canvas.addEventListener("click", (event) => {
      this.#look(...this.#cellAt(canvas, event));
      this.#list();
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] }[event.key];
      if (step) this.#look(...this.#moved(step));
      else if (event.key === "Enter") this.#list();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    return canvas;
  }

  /** @param {HTMLCanvasElement} canvas @param {PointerEvent|MouseEvent} event @returns {[number, number]} */
  #cellAt(canvas, event) {
    const { left, bottom, width, height } = canvas.getBoundingClientRect();
    const shares = [(event.clientX - left) / width, (bottom - event.clientY) / height];
    return /** @type {[number, number]} */ (shares.map((share, i) => this.#within(i, this.low[i] + Math.floor(share * (this.high[i] - this.low[i])))));
  }

  /** @param {number[]} step @returns {[number, number]} */
  #moved(step) {
    const from = this.at ?? this.low;
    return /** @type {[number, number]} */ ([0, 1].map((i) => this.#within(i, from[i] + step[i])));
  }

  #within(/** @type {number} */ i, /** @type {number} */ place) {
    return Math.min(Math.max(place, this.low[i]), this.high[i] - 1);
  }

  /** What a cell holds; nothing of an empty one. @param {number} entropy @param {number} kl @returns {[number, number]} */
  #held(entropy, kl) {
    return this.cells.get(entropy * this.size + kl) ?? [0, 0];
  }

  /** Say what a cell holds. @param {number} entropy @param {number} kl */
  #look(entropy, kl) {
    this.at = [entropy, kl];
    const [count, dropped] = this.#held(entropy, kl);
    const [x, y] = this.at.map((place, i) => `${short(this.edges[i][place])} to ${short(this.edges[i][place + 1])}`);
    const what = count ? `${grouped(count)} targets, ${percent(dropped, count)} dropped; a click lists them` : "no targets";
    this.said.textContent = `entropy ${x}, KL ${y} nats: ${what}`;
    this.#paint();
  }

  #list() {
    if (this.at && this.#held(...this.at)[0]) this.press(...this.at);
  }

  #label() {
    for (const axes of this.axes) {
      axes.forEach((axis, i) => {
        const name = element("b", { text: i ? "KL, nats" : "entropy, nats" });
        const ticks = TICKS.map((share) => {
          const value = this.edges[i][Math.round(this.low[i] + share * (this.high[i] - this.low[i]))];
          const tick = element("span", { text: short(Number(value.toPrecision(2))) });
          tick.style.setProperty("--at", `${100 * share}%`);
          return tick;
        });
        axis.replaceChildren(...ticks, name);
      });
    }
  }

  #paint() {
    const style = getComputedStyle(this.root);
    const [paper, faint, learned, gone, ink] = ["--paper", "--faint", "--learned", "--dropped", "--ink"].map((name) => style.getPropertyValue(name));
    this.canvases.forEach((canvas, panel) => {
      const [width, height] = [0, 1].map((i) => (this.high[i] - this.low[i]) * CELL_PIXELS);
      [canvas.width, canvas.height] = [Math.max(width, 1), Math.max(height, 1)];
      const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
      const fill = (/** @type {number} */ entropy, /** @type {number} */ kl, /** @type {string} */ colour, /** @type {number} */ alpha) => {
        [context.fillStyle, context.globalAlpha] = [colour, alpha];
        context.fillRect((entropy - this.low[0]) * CELL_PIXELS, height - (kl - this.low[1] + 1) * CELL_PIXELS, CELL_PIXELS, CELL_PIXELS);
      };
      context.fillStyle = paper;
      context.fillRect(0, 0, width, height);
      for (const [cell, [count, dropped]] of this.cells) {
        const place = /** @type {[number, number]} */ ([Math.floor(cell / this.size), cell % this.size]);
        if (panel) fill(...place, faint, 0.45);
        if (panel) fill(...place, gone, dropped / count);
        else fill(...place, learned, 0.15 + (0.85 * Math.log1p(count)) / Math.log1p(this.most));
      }
      if (!this.at) return;
      [context.strokeStyle, context.globalAlpha, context.lineWidth] = [ink, 1, 2];
      context.strokeRect((this.at[0] - this.low[0]) * CELL_PIXELS, height - (this.at[1] - this.low[1] + 1) * CELL_PIXELS, CELL_PIXELS, CELL_PIXELS);
    });
  }
}
