// A message's pieces in chunks of a few hundred, of which only those near the window are in the page.
import { element } from "./dom.js";

/** Pieces in a chunk, about: it ends at the end of a line where one is near. */
const CHUNK = 200;
const LONGEST_TEXT = 400;

/** @typedef {import("./row.js").Row} Row */

/** Some pieces of a message. While it is not drawn, an empty box of its height stands for it. */
export class Chunk {
  /** @param {Row} row @param {number} first @param {number} end pieces first to end - 1 */
  constructor(row, first, end) {
    this.row = row;
    this.first = first;
    this.end = end;
    this.isDrawn = false;
    this.nodes = 0;
    this.top = 0;
    this.height = 0;
    this.box = element("div", { class: "chunk" });
  }

  get characters() {
    let count = 0;
    for (let piece = this.first; piece < this.end; piece++) count += this.row.texts[piece].length + 1;
    return count;
  }

  get lines() {
    let count = 1;
    for (let piece = this.first; piece < this.end; piece++) count += this.row.texts[piece].split("\n").length - 1;
    return count;
  }

  /** Guess the height of what is not drawn. @param {number} perLine characters @param {number} line pixels */
  guessHeight(perLine, line) {
    if (!this.isDrawn) this.box.style.height = `${Math.ceil(this.lines / 2 + this.characters / perLine) * line}px`;
  }

  draw() {
    if (this.isDrawn) return;
    const pieces = [];
    for (let piece = this.first; piece < this.end; piece++) pieces.push(pieceElement(this.row, piece));
    this.box.replaceChildren(...pieces);
    this.box.style.height = "";
    this.nodes = this.box.getElementsByTagName("*").length;
    this.isDrawn = true;
  }

  /** Read where it stands; the layout must not be asked for again until something is drawn. */
  measure() {
    this.top = this.box.offsetTop;
    this.height = this.box.offsetHeight;
  }

  /** How far it is from a place, pixels. */
  distance(/** @type {number} */ place) {
    return Math.max(0, this.top - place, place - this.top - this.height);
  }

  clear() {
    if (!this.isDrawn) return;
    this.box.style.height = `${this.height}px`;
    this.box.replaceChildren();
    this.nodes = 0;
    this.isDrawn = false;
  }

  /** The element of a piece, if it is drawn. @param {number} piece @returns {HTMLElement|undefined} */
  elementOf(piece) {
    return /** @type {HTMLElement|undefined} */ (this.box.children[piece - this.first]);
  }
}

/** Cut pieces first to end - 1 into chunks. @param {Row} row @param {number} first @param {number} end @returns {Chunk[]} */
export function chunksOf(row, first, end) {
  const chunks = [];
  while (first < end) {
    let last = Math.min(first + CHUNK, end);
    for (let piece = last; piece < Math.min(first + 1.5 * CHUNK, end); piece++) {
      if (row.texts[piece - 1].includes("\n")) {
        last = piece;
        break;
      }
    }
    chunks.push(new Chunk(row, first, last));
    first = last;
  }
  return chunks;
}

/** @param {Row} row @param {number} piece */
function pieceElement(row, piece) {
  const made = element("span", { "data-piece": piece });
  let text = row.texts[piece];
  if (text.length > LONGEST_TEXT) text = `${text.slice(0, LONGEST_TEXT)}… (${text.length} characters)`;
  const [head, ...lines] = text.split("\n");
  made.append(head);
  for (const line of lines) made.append(element("i", { class: "n" }), `\n${line}`);
  return made;
}
