// What the page is sent as base64 becomes typed arrays again.

/** @param {string} text @returns {Uint8Array} */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
}

/** @param {string} text base64 of little-endian float32 @returns {Float32Array} */
export function floats(text) {
  return new Float32Array(bytesOf(text).buffer);
}

/** @param {string} text base64 of little-endian int32 @returns {Int32Array} */
export function ints(text) {
  return new Int32Array(bytesOf(text).buffer);
}

/** Flags, one bit each: flag i is bit i % 8 of byte floor(i / 8). */
export class Bits {
  /** @param {Uint8Array} bytes */
  constructor(bytes) {
    this.bytes = bytes;
  }

  /** @param {string} text base64 */
  static decode(text) {
    return new Bits(bytesOf(text));
  }

  /** @param {number} count all flags unset */
  static none(count) {
    return new Bits(new Uint8Array(Math.ceil(count / 8)));
  }

  /** @param {number} i @returns {boolean} */
  has(i) {
    return ((this.bytes[i >> 3] >> (i & 7)) & 1) === 1;
  }

  /** @param {number} i */
  set(i) {
    this.bytes[i >> 3] |= 1 << (i & 7);
  }
}

/** Where in rising numbers the last one stands that is at most x; -1 before the first. */
export function lastAtMost(/** @type {Int32Array} */ rising, /** @type {number} */ x) {
  let low = 0;
  let high = rising.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (rising[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}
