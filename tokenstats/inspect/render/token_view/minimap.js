// The whole row as a strip beside the text: where targets are, where tokens are dropped, what the window shows.
import { element } from "./dom.js";

/** @typedef {import("./drawing.js").Drawing} Drawing @typedef {import("./colours.js").Colouring} Colouring */

export class Minimap {
  /** @param {HTMLElement} parent @param {(token: number) => void} go */
  constructor(parent, go) {
    this.canvas = /** @type {HTMLCanvasElement} */ (element("canvas", { class: "minimap", "aria-hidden": true, width: 18 }));
    this.window = element("div", { class: "minimap-window" });
    this.box = element("div", { class: "minimap-box", title: "the whole row: orange is dropped, blue learned" }, [this.canvas, this.window]);
    parent.append(this.box);
    this.length = 1;
    const jump = (/** @type {PointerEvent} */ event) => {
      if (event.type === "pointermove" && !event.buttons) return;
      const { top, height } = this.canvas.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientY - top) / height, 0), 0.9999);
      go(Math.floor(share * this.length));
    };
    this.box.addEventListener("pointerdown", jump);
    this.box.addEventListener("pointermove", jump);
  }

  /** @param {Colouring} colouring */
  paint(colouring) {
    const { row, decisions } = colouring;
    this.length = row.length;
    const height = Math.max(1, this.box.clientHeight);
    this.canvas.height = height;
    const context = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    const style = getComputedStyle(this.box);
    const [faint, learned, dropped] = ["--faint", "--learned", "--dropped"].map((name) => style.getPropertyValue(name));
    for (let y = 0; y < height; y++) {
      const [from, to] = [Math.floor((y * row.length) / height), Math.max(Math.ceil(((y + 1) * row.length) / height), 1)];
      let targets = 0;
      let gone = 0;
      for (let token = from; token < to; token++) {
        if (!row.isTarget.has(token)) continue;
        targets++;
        if (!decisions.kept.has(token)) gone++;
      }
      context.fillStyle = targets ? learned : faint;
      context.fillRect(0, y, targets ? 18 : 5, 1);
      context.fillStyle = dropped;
      if (gone) context.fillRect(0, y, Math.max(4, (18 * gone) / targets), 1);
    }
  }

  /** Mark the tokens that the window shows. */
  show(/** @type {number} */ first, /** @type {number} */ last) {
    const height = this.box.clientHeight;
    this.window.style.top = `${(first / this.length) * height}px`;
    this.window.style.height = `${Math.max(6, ((last - first) / this.length) * height)}px`;
  }
}
