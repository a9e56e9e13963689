/** Where a voice lies between calm and excited, unpleasant and pleasant: its last results in a plane. */

import { svg } from "./parts.js";

const LOWEST = 1;
const HIGHEST = 7;
const SIZE = 100;
/** Of the results before; each is drawn fainter than the next. */
const TRAIL = 6;

/** @param {number} value 1..7 @returns {number} 0..SIZE */
const place = (value) => ((value - LOWEST) / (HIGHEST - LOWEST)) * SIZE;

/** Draws one lane's plane. The attributes beside it say the same in numbers. */
export class Plane {
  /** @param {SVGElement} picture */
  constructor(picture) {
    this.picture = picture;
    /** @type {{utterance: number, x: number, y: number, top: string}[]} */
    this.points = [];
    this.marks = svg("g", {});
    const middle = SIZE / 2;
    picture.setAttribute("viewBox", `-4 -4 ${SIZE + 8} ${SIZE + 8}`);
    picture.replaceChildren(
      svg("rect", { class: "plane-ground", x: 0, y: 0, width: SIZE, height: SIZE, rx: 6 }),
      svg("path", { class: "plane-axes", d: `M0 ${middle}H${SIZE}M${middle} 0V${SIZE}` }),
      svg("text", { class: "plane-word", x: middle, y: 8, "text-anchor": "middle" }, "excited"),
      svg("text", { class: "plane-word", x: middle, y: SIZE - 3, "text-anchor": "middle" }, "calm"),
      svg("text", { class: "plane-word", x: 3, y: middle - 3 }, "unpleasant"),
      svg("text", { class: "plane-word", x: SIZE - 3, y: middle - 3, "text-anchor": "end" }, "pleasant"),
      this.marks,
    );
  }

  /** @param {any} emotion interim or final */
  show({ utterance, arousal, valence, top }) {
    if (arousal === null || valence === null) return;
    const point = { utterance, x: place(valence), y: SIZE - place(arousal), top };
    if (this.points.at(-1)?.utterance === utterance) this.points.pop();
    this.points = [...this.points, point].slice(-TRAIL);
    const path = this.points.map(({ x, y }, index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    const dots = this.points.map(({ x, y, top: name }, index) => {
      const last = index === this.points.length - 1;
      const opacity = last ? 1 : 0.15 + (0.5 * index) / TRAIL;
      return svg("circle", { class: "plane-dot", cx: x.toFixed(1), cy: y.toFixed(1), r: last ? 5 : 3, opacity, "data-emotion": name });
    });
    this.marks.replaceChildren(svg("path", { class: "plane-trail", d: path }), ...dots);
    this.picture.setAttribute("aria-label", `Arousal ${arousal.toFixed(1)} and valence ${valence.toFixed(1)} of 7`);
  }
}
