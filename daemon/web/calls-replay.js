/** A clock over a call: follows a live one, or runs through what is kept of it. Knows no page. */

const FRAME_MS = 1000;

/** Where in the call the page is. */
export class Replay {
  /** @param {(ms: number) => void} moved */
  constructor(moved) {
    this.moved = moved;
    this.atMs = 0;
    this.endMs = 0;
    this.speed = 4;
    this.running = false;
    this.following = true;
  }

  /** @param {number} ms the call's length by now */
  extend(ms) {
    this.endMs = ms;
    if (this.following) this.go(ms);
  }

  /** Shows the end, also as it moves on. */
  follow() {
    this.stop();
    this.following = true;
    this.go(this.endMs);
  }

  /** @param {number} ms */
  seek(ms) {
    this.following = false;
    this.go(ms);
  }

  /** From here; from the beginning where the end was reached. */
  start() {
    this.following = false;
    if (this.atMs >= this.endMs) this.atMs = 0;
    this.running = true;
    this.last = performance.now();
    this.frame = requestAnimationFrame((now) => this.step(now));
  }

  stop() {
    this.running = false;
    cancelAnimationFrame(this.frame);
  }

  /** @param {number} now */
  step(now) {
    if (!this.running) return;
    // A tab in the background gets no frames: the time it slept is not jumped over.
    const passed = Math.max(0, Math.min(FRAME_MS, now - this.last));
    this.last = now;
    if (this.atMs + passed * this.speed >= this.endMs) this.stop();
    this.go(this.atMs + passed * this.speed);
    if (this.running) this.frame = requestAnimationFrame((next) => this.step(next));
  }

  /** @param {number} ms */
  go(ms) {
    this.atMs = Math.max(0, Math.min(ms, this.endMs));
    this.moved(this.atMs);
  }
}
