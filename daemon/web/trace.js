/** The last half minute of a lane: each utterance a block, in it the posterior as it moved while the person spoke. */

const WINDOW_MS = 30_000;
const RADIUS_PX = 3;
const TRACK_PX = 4;
const PLAYHEAD_PX = 2;
/** Below the blocks, for the name of each one's emotion. */
const WORDS_PX = 18;
const BETWEEN_WORDS_PX = 6;

/**
 * @typedef {{index: number, startMs: number, top: string, slices: {endMs: number, probabilities: Record<string, number>}[]}} Block
 */

/** Draws one lane's canvas. It repeats what the bars and the list say, so it is hidden from screen readers. */
export class Trace {
  /** @param {HTMLCanvasElement} canvas @param {string[]} classes trained ones, in canonical order */
  constructor(canvas, classes) {
    this.canvas = canvas;
    this.classes = classes;
    this.nowMs = 0;
    /** @type {Block[]} */
    this.blocks = [];
  }

  /** @param {any} emotion interim or final */
  add(emotion) {
    let block = this.blocks.at(-1);
    if (block?.index !== emotion.utterance) {
      block = { index: emotion.utterance, startMs: emotion.start_ms, top: "", slices: [] };
      this.blocks.push(block);
    }
    // The end of a final can lie before that of its last interim: what is past it was silence.
    const kept = block.slices.filter((slice) => slice.endMs < emotion.end_ms);
    block.top = emotion.top;
    block.slices = [...kept, { endMs: emotion.end_ms, probabilities: emotion.probabilities }];
    this.blocks = this.blocks.filter((old) => old.slices.at(-1).endMs > this.nowMs - WINDOW_MS);
    this.draw();
  }

  /** @param {number} nowMs of the stream */
  moveTo(nowMs) {
    this.nowMs = nowMs;
    this.draw();
  }

  /** Colours are read each time: the person may switch between light and dark. */
  draw() {
    const { canvas } = this;
    const [width, height, ratio] = [canvas.clientWidth, canvas.clientHeight, window.devicePixelRatio];
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    const from = Math.max(0, this.nowMs - WINDOW_MS);
    // Whole device pixels: slices that share one would show the ground between them.
    const x = (ms) => Math.round(((ms - from) / WINDOW_MS) * width * ratio) / ratio;
    const style = getComputedStyle(canvas);
    const colors = this.classes.map((name) => style.getPropertyValue(`--${name}`));
    const tall = height - WORDS_PX;
    pen.fillStyle = style.getPropertyValue("--track");
    pen.fillRect(0, (tall - TRACK_PX) / 2, width, TRACK_PX);
    for (const block of this.blocks) this.drawBlock(pen, block, x, tall, colors);
    pen.fillStyle = style.color;
    pen.fillRect(Math.min(x(this.nowMs), width - PLAYHEAD_PX), 0, PLAYHEAD_PX, tall);
    pen.font = `${style.fontSize} ${style.fontFamily}`;
    this.drawWords(pen, x, width, height);
  }

  /**
   * Names each block that has room, the newest first.
   * @param {CanvasRenderingContext2D} pen @param {(ms: number) => number} x @param {number} width @param {number} height
   */
  drawWords(pen, x, width, height) {
    let until = width + BETWEEN_WORDS_PX;
    for (const { startMs, top } of this.blocks.toReversed()) {
      const long = pen.measureText(top).width;
      const left = Math.max(0, Math.min(x(startMs), width - long));
      if (left + long + BETWEEN_WORDS_PX > until) continue;
      pen.fillText(top, left, height - 4);
      until = left;
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Block} block
   * @param {(ms: number) => number} x
   * @param {number} height
   * @param {string[]} colors
   */
  drawBlock(pen, block, x, height, colors) {
    pen.save();
    pen.beginPath();
    pen.roundRect(x(block.startMs), 0, x(block.slices.at(-1).endMs) - x(block.startMs), height, RADIUS_PX);
    pen.clip();
    let left = x(block.startMs);
    for (const { endMs, probabilities } of block.slices) {
      const right = x(endMs);
      let top = 0;
      this.classes.forEach((name, index) => {
        pen.fillStyle = colors[index];
        const tall = probabilities[name] * height;
        pen.fillRect(left, top, right - left, tall + 0.5); // half a pixel over, for the same reason
        top += tall;
      });
      left = right;
    }
    pen.restore();
  }
}
