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

export class Steering {
  /** @param {HTMLElement} root @param {(chosen: number[]) => void} held @param {(chosen: number[]) => void} released */
  constructor(root, held, released) {
    this.root = root;
    this.held = held;
    this.released = released;
    /** @type {number[]} */
    this.chosen = [];
  }

  /** @param {Settings} settings @param {number[]} chosen @param {boolean} both */
  show(settings, chosen, both) {
    this.settings = settings;
    this.chosen = [...chosen];
    this.both = both;
    this.total = element("p", { class: "steer-total", "aria-live": "polite" });
    this.canvases = settings.columns.map(() => /** @type {HTMLCanvasElement} */ (element("canvas", { height: HEIGHT, role: "img" })));
    this.root.replaceChildren(this.total, element("div", { class: "steer-columns" }, settings.columns.map((column, i) => this.#column(column, i))));
    this.#paint();
  }

  /** @param {Column} column @param {number} i */
  #column(column, i) {
    const range = /** @type {HTMLInputElement} */ (element("input", { type: "range", min: 0, max: column.settings.length - 1, "aria-label": `highest ${column.name}` }));
    range.value = String(this.chosen[i]);
    const said = element("output", {});
    const move = (/** @type {number} */ setting) => {
      this.chosen[i] = setting;
      range.value = String(setting);
      this.#paint();
      this.held(this.chosen);
    };
    range.addEventListener("input", () => move(Number(range.value)));
    range.addEventListener("change", () => this.released(this.chosen));
    const canvas = this.canvases[i];
    const drag = (/** @type {PointerEvent} */ event) => {
      if (this.settings.unit !== "nats" || !event.buttons) return;
      move(this.#settingAt(column, canvas, event));
      if (event.type === "pointerdown") canvas.setPointerCapture(event.pointerId);
    };
    canvas.addEventListener("pointerdown", drag);
    canvas.addEventListener("pointermove", (event) => (event.buttons ? drag(event) : this.#hover(column, i, event)));
    canvas.addEventListener("pointerup", () => this.settings.unit === "nats" && this.released(this.chosen));
    canvas.classList.toggle("draggable", this.settings.unit === "nats");
    return element("div", { class: "steer" }, [canvas, element("label", {}, [range, said]), element("p", { class: "quiet steer-hover" })]);
  }

  /** The setting whose limit is nearest to the pointer. */
  #settingAt(/** @type {Column} */ column, /** @type {HTMLCanvasElement} */ canvas, /** @type {PointerEvent} */ event) {
    const bin = this.#binAt(column, canvas, event);
    let best = 0;
    for (let s = 1; s < column.settings.length; s++) {
      if (Math.abs(binOf(column, column.settings[s]) - bin) < Math.abs(binOf(column, column.settings[best]) - bin) || !best) best = s;
    }
    return best;
  }

  #binAt(/** @type {Column} */ column, /** @type {HTMLCanvasElement} */ canvas, /** @type {PointerEvent} */ event) {
    const { left, width } = canvas.getBoundingClientRect();
    return Math.min(Math.max(((event.clientX - left) / width) * column.counts.length, 0), column.counts.length - 1);
  }

  /** Which bin the pointer is over, how many tokens it has, and what share of them this threshold drops. */
  #hover(/** @type {Column} */ column, /** @type {number} */ i, /** @type {PointerEvent} */ event) {
    const bin = Math.floor(this.#binAt(column, this.canvases[i], event));
    const dropped = this.chosen[i] ? column.byBin[this.chosen[i] * column.counts.length + bin] : 0;
    const said = /** @type {HTMLElement} */ (this.root.querySelectorAll(".steer-hover")[i]);
    const range = `${short(column.edges[bin])} to ${short(column.edges[bin + 1])} nats`;
    said.textContent = `${range}: ${grouped(column.counts[bin])} targets, ${percent(dropped, column.counts[bin]) || "none"} dropped`;
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
