/** Audio from the first sample that the server may need again, by its position in bytes since the first one. */

/** Of audio that is kept while nothing of it is settled; the oldest goes first. */
const LONGEST_S = 120;

export class Tape {
  /** @param {number} frameBytes of one sample of every channel @param {number} sampleRate Hz */
  constructor(frameBytes, sampleRate) {
    this.frameBytes = frameBytes;
    this.sampleRate = sampleRate;
    /** @type {Uint8Array[]} */
    this.chunks = [];
    this.start = 0;
    this.end = 0;
  }

  /** @param {Uint8Array} chunk that stays as it is */
  add(chunk) {
    this.chunks.push(chunk);
    this.end += chunk.byteLength;
    while (this.end - this.start > LONGEST_S * this.sampleRate * this.frameBytes) this.drop();
  }

  drop() {
    this.start += this.chunks.shift()?.byteLength ?? 0;
  }

  /** Drops the chunks that lie before a position. @param {number} position */
  forget(position) {
    while (this.chunks.length && this.start + this.chunks[0].byteLength <= position) this.drop();
  }

  /** @param {number} position @returns {Uint8Array[]} what is kept from there on */
  after(position) {
    let at = this.start;
    return this.chunks.flatMap((chunk) => {
      const skipped = Math.max(0, position - at);
      at += chunk.byteLength;
      return skipped < chunk.byteLength ? [chunk.subarray(skipped)] : [];
    });
  }

  /** @param {number} ms @returns {number} the position of the sample that begins there or before */
  at(ms) {
    return Math.floor((ms * this.sampleRate) / 1000 + 1e-6) * this.frameBytes;
  }
}
