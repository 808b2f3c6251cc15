// Histograms that steer: while a threshold is held, numbers and tokens follow; the server decides when it is let go.
import { Bits, floats, ints } from "./arrays.js";
import { element, grouped, percent, short } from "./dom.js";

/**
 * @typedef {{name: string, settings: Float32Array, counts: Int32Array, byBin: Int32Array, edges: Float32Array}} Column
 */

const NAMES = { entropy: "entropy", kl: "KL" };
const HEIGHT = 90;

/** What each pair of settings drops, looked up. */
export class Settings {
  /** @param {any} sent of tokenstats/inspect/steering.py */
  constructor(sent) {
    this.targets = sent.targets;
    this.unit = sent.unit;
    this.upto = ints(sent.upto);
    /** @type {Column[]} */
    this.columns = sent.columns.map((/** @type {any} */ column) => ({
      name: column.name,
      settings: floats(column.settings),
      counts: ints(column.counts),
      byBin: ints(column.byBin),
      edges: floats(column.edges),
    }));
    this.width = this.columns.length > 1 ? Math.round(Math.sqrt(this.upto.length)) : 1;
  }

  /** How many tokens are dropped. @param {number[]} chosen a setting a column @param {boolean} both */
  dropped(chosen, both) {
    if (this.columns.length === 1) return this.upto[chosen[0]];
    const at = (/** @type {number} */ i, /** @type {number} */ j) => this.upto[i * this.width + j];
    const last = this.width - 1;
    if (both && chosen[0] && chosen[1]) return at(chosen[0], chosen[1]);
    return at(chosen[0], last) + at(last, chosen[1]) - at(chosen[0], chosen[1]);
  }

  /** "20 %", "1.41 nats", "off" @param {Column} column @param {number} setting */
  nameOf(column, setting) {
    const value = column.settings[setting];
    if (!setting || !Number.isFinite(value)) return "off";
    return this.unit === "share" ? `${Math.round(100 * value)} %` : `${short(value)} nats`;
  }
}

/** Decisions of a row as its levels say, in the form of the server's. @param {any} decisions @param {Record<string, string>} levels @param {Int32Array} targets @param {string[]} names @param {number[]} chosen @param {boolean} both */
export function heldDecisions(decisions, levels, targets, names, chosen, both) {
  const active = names.filter((_, i) => chosen[i] > 0);
  const flags = names.map((name) => Uint8Array.from(atob(levels[name]), (sign) => sign.charCodeAt(0)));
  const length = targets.length ? targets[targets.length - 1] + 1 : 0;
  const [kept, ...dropped] = [Bits.none(length), ...names.map(() => Bits.none(length))];
  for (let n = 0; n < targets.length; n++) {
    const takes = names.map((_, i) => flags[i][n] <= chosen[i] && chosen[i] > 0);
    const gone = both && active.length > 1 ? takes.every(Boolean) : takes.some(Boolean);
    if (!gone) kept.set(targets[n]);
    takes.forEach((taken, i) => taken && gone && dropped[i].set(targets[n]));
  }
  const clauses = names.map((name, i) => ({ text: `highest ${NAMES[/** @type {keyof NAMES} */ (name)]}`, dropped: dropped[i], conditions: [] }));
  const joined = { text: "both", dropped: dropped[0], conditions: [] };
  return { ...decisions, kept, clauses: both && active.length > 1 ? [joined] : clauses.filter((_, i) => chosen[i] > 0) };
}

/** @typedef {{held: (chosen: number[]) => void, released: (chosen: number[]) => void, bin: (column: string, bin: number) => void}} Hands what a reader's hand does: a threshold held, let go, a bin pressed */

export class Steering {
  /** @param {HTMLElement} root @param {Hands} hands */
  constructor(root, hands) {
    this.root = root;
    this.hands = hands;
    /** @type {number[]} */
    this.chosen = [];
    this.isHeld = false;
    this.isDragged = false;
    this.pressedAt = 0;
    /** @type {HTMLInputElement[]} */
    this.ranges = [];
  }

  /** Answers that come while a threshold is held are to what was let go before: they wait for the next. @param {Settings} settings @param {number[]} chosen @param {boolean} both */
  show(settings, chosen, both) {
    if (this.isHeld) return;
    const isNew = String(this.settings?.columns.map(({ name }) => name)) !== String(settings.columns.map(({ name }) => name)) || this.settings?.unit !== settings.unit;
    this.settings = settings;
    this.chosen = [...chosen];
    this.both = both;
    if (isNew) this.#build();
    this.ranges.forEach((range, i) => {
      range.max = String(settings.columns[i].settings.length - 1);
      range.value = String(chosen[i]);
    });
    this.#paint();
  }

  #build() {
    const { columns } = /** @type {Settings} */ (this.settings);
    this.total = element("p", { class: "steer-total", "aria-live": "polite" });
    this.canvases = columns.map(() => /** @type {HTMLCanvasElement} */ (element("canvas", { height: HEIGHT, role: "img" })));
    this.ranges = columns.map((column) => /** @type {HTMLInputElement} */ (element("input", { type: "range", min: 0, "aria-label": `highest ${column.name}` })));
    this.root.replaceChildren(this.total, element("div", { class: "steer-columns" }, columns.map((_, i) => this.#column(i))));
  }

  /** @param {number} i */
  #column(i) {
    const [range, canvas] = [this.ranges[i], this.canvases[i]];
    range.addEventListener("input", () => this.#move(i, Number(range.value)));
    range.addEventListener("change", () => this.#release());
    // let go where it was taken: there is no change to be told of
    for (const end of ["pointerup", "keyup", "blur"]) range.addEventListener(end, () => setTimeout(() => this.isHeld && this.#release()));
    canvas.addEventListener("pointerdown", (event) => {
      this.pressedAt = event.clientX;
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => (event.buttons ? this.#drag(i, event) : this.#hover(i, event)));
    canvas.addEventListener("pointerup", (event) => {
      if (this.isDragged) this.#release();
      else this.hands.bin(this.#columnAt(i).name, Math.floor(this.#binAt(i, event)));
    });
    canvas.addEventListener("pointercancel", () => this.isDragged && this.#release());
    canvas.classList.toggle("draggable", this.settings?.unit === "nats");
    return element("div", { class: "steer" }, [canvas, element("label", {}, [range, element("output", {})]), element("p", { class: "quiet steer-hover" })]);
  }

  /** @param {number} i @returns {Column} */
  #columnAt(i) {
    return /** @type {Settings} */ (this.settings).columns[i];
  }

  #move(/** @type {number} */ i, /** @type {number} */ setting) {
    this.isHeld = true;
    this.chosen[i] = setting;
    this.ranges[i].value = String(setting);
    this.#paint();
    this.hands.held(this.chosen);
  }

  #release() {
    this.isHeld = false;
    this.isDragged = false;
    this.hands.released(this.chosen);
  }

  /** In nats the line follows the pointer, once it has moved as far as no trembling hand does. @param {number} i @param {PointerEvent} event */
  #drag(i, event) {
    if (this.settings?.unit !== "nats") return;
    this.isDragged ||= Math.abs(event.clientX - this.pressedAt) > 3;
    if (this.isDragged) this.#move(i, this.#settingAt(i, event));
  }

  /** The setting whose limit is nearest to the pointer. @param {number} i @param {PointerEvent} event */
  #settingAt(i, event) {
    const column = this.#columnAt(i);
    const bin = this.#binAt(i, event);
    let best = 0;
    for (let s = 1; s < column.settings.length; s++) {
      if (Math.abs(binOf(column, column.settings[s]) - bin) < Math.abs(binOf(column, column.settings[best]) - bin) || !best) best = s;
    }
    return best;
  }

  /** @param {number} i @param {PointerEvent} event */
  #binAt(i, event) {
    const { left, width } = this.canvases[i].getBoundingClientRect();
    const { length } = this.#columnAt(i).counts;
    return Math.min(Math.max(((event.clientX - left) / width) * length, 0), length - 1);
  }

  /** Which bin the pointer is over, how many tokens it has, and what share of them this threshold drops. @param {number} i @param {PointerEvent} event */
  #hover(i, event) {
    const column = this.#columnAt(i);
    const bin = Math.floor(this.#binAt(i, event));
    const dropped = this.chosen[i] ? column.byBin[this.chosen[i] * column.counts.length + bin] : 0;
    const said = /** @type {HTMLElement} */ (this.root.querySelectorAll(".steer-hover")[i]);
    const range = `${short(column.edges[bin])} to ${short(column.edges[bin + 1])} nats`;
    said.textContent = `${range}: ${grouped(column.counts[bin])} targets, ${percent(dropped, column.counts[bin]) || "none"} dropped; a click lists them`;
  }

  #paint() {
    const dropped = this.settings.dropped(this.chosen, this.both);
    this.total.textContent = `${percent(dropped, this.settings.targets)} dropped: ${grouped(dropped)} of ${grouped(this.settings.targets)} targets`;
    this.settings.columns.forEach((column, i) => {
      const name = this.settings.nameOf(column, this.chosen[i]);
      const what = `${NAMES[/** @type {keyof NAMES} */ (column.name)]}: ${this.settings.unit === "share" ? "drop the highest" : "drop above"}`;
      /** @type {HTMLElement} */ (this.root.querySelectorAll("output")[i]).textContent = `${what} ${name}`;
      this.canvases[i].setAttribute("aria-label", `histogram of ${column.name}, threshold ${name}`);
      this.#paintHistogram(column, i);
    });
  }

  /** Counts on a logarithmic scale; what this threshold drops is orange, and in nats a line stands at it. */
  #paintHistogram(/** @type {Column} */ column, /** @type {number} */ i) {
    const canvas = this.canvases[i];
    const bins = column.counts.length;
    canvas.width = bins * 3;
    const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    const style = getComputedStyle(this.root);
    const most = Math.log1p(column.counts.reduce((a, b) => Math.max(a, b), 1));
    const bar = (/** @type {number} */ bin, /** @type {number} */ count) => {
      const height = (HEIGHT * Math.log1p(count)) / most;
      context.fillRect(bin * 3, HEIGHT - height, 3, height);
    };
    for (let bin = 0; bin < bins; bin++) {
      context.fillStyle = style.getPropertyValue("--faint");
      bar(bin, column.counts[bin]);
      context.fillStyle = style.getPropertyValue("--dropped");
      if (this.chosen[i]) bar(bin, column.byBin[this.chosen[i] * bins + bin]);
    }
    if (this.settings.unit === "nats" && this.chosen[i]) {
      context.fillStyle = style.getPropertyValue("--ink");
      context.fillRect(binOf(column, column.settings[this.chosen[i]]) * 3 - 1, 0, 2, HEIGHT);
    }
  }
}

/** Where a value lies among the bins, with its fraction. @param {Column} column @param {number} value */
function binOf(column, value) {
  let bin = 0;
  while (bin < column.counts.length - 1 && column.edges[bin + 1] <= value) bin++;
  const [low, high] = [column.edges[bin], column.edges[bin + 1]];
  return bin + Math.min(1, Math.max(0, (value - low) / (high - low)));
}
