// Clause numbers above tokens: one where a run of the same clauses begins, and never one across another.

/** Pixels of a character of the text, of one above it, and of the line before a number, as view.css has them. */
const CHARACTER = 8.4;
const DIGIT = 6.1;
const EDGE = 2;
/** "Several": stands for "1+2" where the next number is too near. */
export const SEVERAL = "+";

/** @typedef {import("./row.js").Row} Row @typedef {import("./colours.js").Colouring} Colouring */

/**
 * What stands above each of a chunk's pieces; "" for nothing.
 * @param {Row} row @param {Colouring} colouring @param {number} first @param {number} end pieces first to end - 1 @returns {string[]}
 */
export function marksOf(row, colouring, first, end) {
  const marks = [];
  let before = first ? colouring.mark(row.starts[first] - 1) : "";
  for (let piece = first; piece < end; piece++) {
    const mark = colouring.mark(row.starts[piece]);
    marks.push(mark === before ? "" : mark);
    before = colouring.mark(row.starts[piece + 1] - 1);
  }
  let room = 0; // from a piece to the next that is marked, or to the end of the line
  for (let i = marks.length - 1; i >= 0; i--) {
    const text = row.texts[first + i];
    room = text.includes("\n") ? Infinity : room + [...text].length * CHARACTER;
    if (marks[i].length > 1 && EDGE + marks[i].length * DIGIT > room) marks[i] = SEVERAL;
    if (marks[i]) room = 0;
  }
  return marks;
}
