// The token view: a row as a chat, its tokens coloured, an inspector, a minimap, the keyboard.
import { Colouring } from "./colours.js";
import { element } from "./dom.js";
import { Drawing } from "./drawing.js";
import { Inspector, verdict } from "./inspector.js";
import { choicesOf, headOf, legendOf } from "./legend.js";
import { Minimap } from "./minimap.js";
import { Decisions, Row } from "./row.js";

/**
 * @typedef {{colour?: string, pinned?: number, scales?: Record<string, number>}} Settings
 * @typedef {{pin?: (token: number) => void, colour?: (key: string) => void}} Listeners
 */

export class TokenView {
  /** @param {HTMLElement} root @param {Listeners} [listeners] */
  constructor(root, listeners = {}) {
    this.listeners = listeners;
    /** @type {Row|undefined} */
    this.row = undefined;
    /** @type {Decisions|undefined} */
    this.decisions = undefined;
    /** @type {Settings} */
    this.settings = {};
    this.pinned = -1;
    this.current = -1;
    this.head = element("div", { class: "head" });
    this.scroller = element("div", {
      class: "tokens", tabindex: 0, role: "application", "aria-roledescription": "token view",
      "aria-label": "tokens of the row; arrow keys move, Enter pins, d goes to the next dropped token",
    });
    this.spoken = element("div", { class: "spoken", "aria-live": "polite" });
    const middle = element("div", { class: "middle" }, [this.scroller]);
    this.minimap = new Minimap(middle, (token) => this.drawing?.reveal(token));
    this.inspector = new Inspector(element("aside", { class: "inspector", "aria-label": "the token looked at" }));
    this.root = element("div", { class: "token-view" }, [this.head, element("div", { class: "body" }, [middle, this.inspector.box]), this.spoken]);
    root.replaceChildren(this.root);
    this.#listen();
  }

  /** Show a row; it opens at the pinned token, or at its first target. @param {any} row @param {any} decisions @param {Settings} [settings] */
  show(row, decisions, settings = {}) {
    this.row = new Row(row);
    this.settings = settings;
    this.pinned = settings.pinned ?? -1;
    if (this.pinned >= this.row.length) this.pinned = -1;
    this.current = this.pinned;
    this.drawing = new Drawing(this.scroller, this.row);
    this.decide(decisions);
    const first = this.pinned >= 0 ? this.pinned : (this.row.targets[0] ?? 0);
    this.drawing.setCurrent(this.current);
    this.drawing.reveal(first);
    this.#scrolled();
  }

  /** The same row, with another token pinned or another colouring, as the page's address has it. @param {Settings} settings */
  follow(settings) {
    this.settings = settings;
    const pinned = settings.pinned ?? -1;
    if (!this.row || pinned === this.pinned || pinned >= this.row.length) return;
    if (pinned >= 0) this.moveTo(pinned);
    this.pinned = pinned;
  }

  /** The same row under other decisions: only colours and counts change. @param {any} decisions */
  decide(decisions) {
    this.decisions = new Decisions(decisions);
    const possible = Colouring.possible(/** @type {Row} */ (this.row), this.decisions);
    const wanted = this.settings.colour ?? "clause";
    this.paint(possible.includes(wanted) ? wanted : "clause");
  }

  /** Colour by a key of COLOURINGS. @param {string} key */
  paint(key) {
    if (!this.row || !this.decisions || !this.drawing) return;
    this.settings.colour = key;
    const colouring = new Colouring(this.row, this.decisions, key, this.settings.scales?.[key]);
    this.root.classList.toggle("heat", colouring.isHeat);
    const choose = (/** @type {string} */ chosen) => {
      this.paint(chosen);
      this.listeners.colour?.(chosen);
    };
    this.head.replaceChildren(...headOf(this.row, colouring), choicesOf(this.row, colouring, choose), legendOf(this.row, colouring));
    this.drawing.update();
    this.drawing.paint(colouring);
    this.minimap.paint(colouring);
    this.inspect(this.current);
  }

  /** Show a token in the inspector. */
  inspect(/** @type {number} */ token) {
    if (this.row && this.decisions) this.inspector.show(this.row, this.decisions, token, token >= 0 && token === this.pinned);
  }

  /** Look at a token and bring it into the window. */
  moveTo(/** @type {number} */ token) {
    if (!this.row || !this.drawing || !this.decisions) return;
    this.current = Math.min(Math.max(token, 0), this.row.length - 1);
    this.drawing.reveal(this.current, "nearest");
    this.drawing.setCurrent(this.current);
    this.inspect(this.current);
    const entropy = this.row.value("entropy", this.current);
    const said = Number.isFinite(entropy) ? `, entropy ${entropy.toFixed(2)}` : "";
    this.spoken.textContent = `${this.row.label(this.row.ids[this.current])}, ${verdict(this.row, this.decisions, this.current)}${said}`;
  }

  /** Keep a token in the inspector; the same one again lets it go. */
  pin(/** @type {number} */ token) {
    this.pinned = token === this.pinned ? -1 : token;
    this.current = token;
    this.drawing?.setCurrent(token);
    this.inspect(token);
    this.listeners.pin?.(this.pinned);
  }

  /** The next dropped target after the one looked at, or before it; round the end. @param {number} step 1 or -1 */
  nextDropped(step) {
    if (!this.row || !this.decisions) return;
    const { targets } = this.row;
    const dropped = [...targets].filter((token) => !this.decisions?.kept.has(token));
    if (!dropped.length) return;
    const after = step > 0 ? dropped.find((token) => token > this.current) : dropped.findLast((token) => token < this.current);
    this.moveTo(after ?? (step > 0 ? dropped[0] : dropped[dropped.length - 1]));
  }

  #listen() {
    this.scroller.addEventListener("scroll", () => this.#soon());
    this.scroller.addEventListener("pointermove", (event) => this.#hover(this.#tokenAt(event)));
    this.scroller.addEventListener("pointerleave", () => this.#hover(-1));
    this.scroller.addEventListener("click", (event) => {
      const token = this.#tokenAt(event);
      if (token >= 0) this.pin(token);
    });
    this.scroller.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.#key(event)) return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.resized = new ResizeObserver(() => {
      this.drawing?.guessHeights();
      this.#soon();
    });
    this.resized.observe(this.scroller);
  }

  /** Returns whether the key was one of ours. @param {KeyboardEvent} event */
  #key(event) {
    const last = (this.row?.length ?? 1) - 1;
    const from = this.current >= 0 ? this.current : (this.row?.targets[0] ?? 0) - 1;
    /** @type {Record<string, () => void>} */
    const actions = {
      ArrowRight: () => this.moveTo(from + 1),
      ArrowLeft: () => this.moveTo(from - 1),
      Home: () => this.moveTo(0),
      End: () => this.moveTo(last),
      Enter: () => this.current >= 0 && this.pin(this.current),
      Escape: () => this.pinned >= 0 && this.pin(this.pinned),
      d: () => this.nextDropped(1),
      D: () => this.nextDropped(-1),
    };
    const action = actions[event.key];
    action?.();
    return Boolean(action);
  }

  /** The token under the pointer; of a piece of several, the one whose tick it is over; -1 for none. @param {PointerEvent|MouseEvent} event */
  #tokenAt(event) {
    const box = /** @type {HTMLElement|null} */ (/** @type {Element} */ (event.target).closest("[data-piece]"));
    if (!box || !this.row) return -1;
    const piece = Number(box.dataset.piece);
    const [start, end] = [this.row.starts[piece], this.row.starts[piece + 1]];
    const { left, width } = box.getBoundingClientRect();
    const share = width ? Math.min(Math.max((event.clientX - left) / width, 0), 0.999) : 0;
    return start + Math.floor(share * (end - start));
  }

  #hover(/** @type {number} */ token) {
    if (this.pinned < 0) this.inspect(token >= 0 ? token : this.current);
  }

  #soon() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = undefined;
      this.#scrolled();
    });
  }

  #scrolled() {
    if (!this.drawing || !this.row) return;
    if (!this.drawing.update()) this.#soon();
    const seen = this.drawing.seen();
    if (seen) this.minimap.show(this.row.starts[seen[0]], this.row.starts[seen[1]]);
  }
}
