/** A call drawn over time: a lane per role, what both said at once, alerts, and how arousal and valence moved. */

import { make, svg } from "./parts.js";
import { clock, percent, shortClock } from "./words.js";

const LANE = 46;
const BLOCK = 34;
const MARKS = 20;
const CHART = 96;
const AXIS = 22;
const GAP = 10;
const PAD = 12;
const LETTER_PX = 7.6;
const LEAST_PX_PER_S = 7;
const MOST_PX_PER_S = 60;
const ZOOM = 1.6;
const STEPS_S = [5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600];
const TICK_PX = 76;
const LEAST_POINT_PX = 16;
const LEAST_WORDS_PX = 30;

const ATTRIBUTES = { low: 1, high: 7, lines: ["valence", "arousal"], show: (value) => value.toFixed(0) };
const NEGATIVITY = { low: 0, high: 1, lines: ["negativity"], show: (value) => `${value * 100}%` };

/** @param {any} said @param {number} width px @returns {string} as much of its label as fits */
function fitting(said, width) {
  const name = said.abstained ? "unsure" : said.top;
  if (width >= name.length * LETTER_PX + 10) return name;
  if (said.abstained) return width >= LETTER_PX + 6 ? "?" : ""; // as in "unsure"; three letters of that say nothing
  return width >= 3 * LETTER_PX + 6 ? name.slice(0, 3) : "";
}

/** Draws a call; what it shows can also be read in the transcript. */
export class Timeline {
  /** @param {HTMLElement} figure @param {(ms: number) => void} seek */
  constructor(figure, seek) {
    this.figure = figure;
    this.scroll = figure.querySelector(".scroll");
    this.gutter = figure.querySelector(".gutter");
    this.legend = figure.querySelector(".legend");
    this.zoom = 1;
    this.call = null;
    this.atMs = 0;
    this.scroll.addEventListener("click", (event) => {
      const { left } = this.scroll.getBoundingClientRect();
      seek(Math.max(0, ((event.clientX - left + this.scroll.scrollLeft - PAD) / this.pxPerS) * 1000));
    });
    new ResizeObserver(() => this.draw()).observe(this.scroll);
  }

  /** @param {any} call with its analysis */
  show(call) {
    this.call = call;
    this.draw();
  }

  /** @param {1 | -1} step */
  zoomBy(step) {
    this.zoom = Math.max(this.fit / this.base, Math.min(MOST_PX_PER_S / this.base, this.zoom * ZOOM ** step));
    this.draw();
    this.reveal();
  }

  get durationS() {
    return Math.max(10, this.call.duration_ms / 1000);
  }

  /** @returns {number} px per s at which the whole call can be seen */
  get fit() {
    return (this.scroll.clientWidth - 2 * PAD) / this.durationS;
  }

  /** @returns {number} px per s without zoom: long calls are scrolled */
  get base() {
    return Math.max(this.fit, LEAST_PX_PER_S);
  }

  get pxPerS() {
    return Math.max(this.fit, this.base * this.zoom);
  }

  /** @param {number} ms */
  x(ms) {
    return PAD + (ms / 1000) * this.pxPerS;
  }

  get scale() {
    return this.call.said.some(({ valence, arousal }) => valence !== null || arousal !== null)
      ? ATTRIBUTES
      : NEGATIVITY;
  }

  draw() {
    if (!this.call || !this.scroll.clientWidth) return;
    const roles = this.call.roles.map(({ role }) => role);
    const chartTop = MARKS + roles.length * LANE + GAP;
    this.height = chartTop + CHART + AXIS;
    const width = Math.ceil(this.x(this.durationS * 1000) + PAD);
    const drawing = svg("svg", { width, height: this.height, "aria-hidden": "true" });
    this.axis(drawing, chartTop + CHART, width);
    this.overlaps(drawing, roles.length);
    roles.forEach((role, lane) => this.lane(drawing, role, MARKS + lane * LANE, width));
    this.chart(drawing, roles, chartTop, width);
    this.marks(drawing, roles);
    this.head = svg("line", { class: "playhead", y1: 0, y2: chartTop + CHART });
    drawing.append(this.head);
    this.scroll.replaceChildren(drawing);
    this.label(roles, chartTop);
    this.moveTo(this.atMs);
  }

  /** @param {SVGElement} drawing @param {number} y @param {number} width */
  axis(drawing, y, width) {
    const step = STEPS_S.find((seconds) => seconds * this.pxPerS >= TICK_PX) ?? STEPS_S.at(-1);
    for (let at = 0; at <= this.durationS; at += step) {
      const x = this.x(at * 1000);
      drawing.append(svg("line", { class: "tick", x1: x, x2: x, y1: MARKS, y2: y }));
      if (x < width - 24) drawing.append(svg("text", { class: "tick-words", x, y: y + 15 }, shortClock(at * 1000)));
    }
  }

  /** @param {SVGElement} drawing @param {number} lanes */
  overlaps(drawing, lanes) {
    for (const [start, end] of this.call.analysis.overlaps) {
      const band = svg("rect", {
        class: "overlap",
        x: this.x(start),
        y: MARKS,
        width: Math.max(1, this.x(end) - this.x(start)),
        height: lanes * LANE,
      });
      band.append(svg("title", {}, `both speak, ${clock(start)} to ${clock(end)}`));
      drawing.append(band);
    }
  }

  /** @param {SVGElement} drawing @param {string} role @param {number} top @param {number} width */
  lane(drawing, role, top, width) {
    drawing.append(svg("line", { class: "ground", x1: PAD, x2: width - PAD, y1: top + LANE / 2, y2: top + LANE / 2 }));
    for (const said of this.call.said.filter((one) => one.role === role)) {
      const [left, right] = [this.x(said.start_ms), this.x(said.end_ms)];
      const block = svg("g", { class: "block", "data-emotion": said.top, "data-unsure": said.abstained });
      const y = top + (LANE - BLOCK) / 2;
      const wide = Math.max(3, right - left - 1);
      block.append(
        svg("title", {}, `${role}, ${clock(said.start_ms)}: ${said.top} ${percent(said.confidence)}. ${said.text}`),
      );
      block.append(svg("rect", { class: "body", x: left, y, width: wide, height: BLOCK, rx: Math.min(6, wide / 2) }));
      const words = fitting(said, right - left);
      if (words) block.append(svg("text", { x: (left + right) / 2, y: top + LANE / 2 + 4.5 }, words));
      drawing.append(block);
    }
  }

  /** @param {SVGElement} drawing @param {string[]} roles @param {number} top @param {number} width */
  chart(drawing, roles, top, width) {
    const { low, high, lines } = this.scale;
    const y = (value) => top + CHART - ((value - low) / (high - low)) * CHART;
    for (const value of [low, (low + high) / 2, high])
      drawing.append(svg("line", { class: "ground", x1: PAD, x2: width - PAD, y1: y(value), y2: y(value) }));
    roles.forEach((role, index) => {
      const said = this.call.said.filter((one) => one.role === role);
      for (const name of lines) {
        const points = said.filter((one) => one[name] !== null);
        const d = points.map(
          (one) => `${this.x((one.start_ms + one.end_ms) / 2).toFixed(1)},${y(one[name]).toFixed(1)}`,
        );
        const line = svg("g", { class: "line", "data-role": index % 2, "data-measure": name });
        line.append(svg("polyline", { points: d.join(" ") }));
        // Two roles differ in the shape of their points, not in their colour alone.
        let last = -Infinity;
        for (const [px, py] of d.map((point) => point.split(",").map(Number))) {
          if (px - last < LEAST_POINT_PX) continue;
          line.append(marker(index, px, py));
          last = px;
        }
        drawing.append(line);
      }
    });
    const turns = this.call.analysis.roles.flatMap(({ turning_points: points, role }) =>
      points.map((point) => ({ ...point, role })),
    );
    turns.sort((one, other) => one.at_ms - other.at_ms);
    let last = -Infinity;
    for (const point of turns) {
      const roomy = this.x(point.at_ms) - last >= LEAST_WORDS_PX;
      this.turn(drawing, point, top, roomy);
      if (roomy) last = this.x(point.at_ms);
    }
  }

  /** @param {SVGElement} drawing @param {any} point @param {number} top @param {boolean} roomy whether words fit */
  turn(drawing, point, top, roomy) {
    const x = this.x(point.at_ms);
    const mark = svg("g", { class: "turning" });
    const title = `turning point of the ${point.role}, ${clock(point.at_ms)}: ${point.before} to ${point.after}`;
    mark.append(svg("title", {}, title));
    mark.append(svg("line", { x1: x, x2: x, y1: MARKS, y2: top + CHART }));
    if (roomy) mark.append(svg("text", { x: x + 4, y: top + 10 }, "turn"));
    drawing.append(mark);
  }

  /** @param {SVGElement} drawing @param {string[]} roles */
  marks(drawing, roles) {
    for (const alert of this.call.raised) {
      const x = this.x(alert.at_ms);
      const mark = svg("g", { class: "alert-mark" });
      const lane = Math.max(0, roles.indexOf(alert.role));
      mark.append(svg("title", {}, `alert “${alert.rule}”, ${alert.role}, ${clock(alert.at_ms)}`));
      mark.append(svg("line", { x1: x, x2: x, y1: MARKS - 4, y2: MARKS + (lane + 1) * LANE - 6 }));
      mark.append(svg("path", { d: `M${x - 7} ${MARKS - 4} h14 l-7 -12 z` }));
      drawing.append(mark);
    }
  }

  /** @param {string[]} roles @param {number} chartTop */
  label(roles, chartTop) {
    const { low, high, lines, show } = this.scale;
    const at = (top, className, words) => {
      const label = make("span", className, words);
      label.style.top = `${top}px`;
      return label;
    };
    this.gutter.style.height = `${this.height}px`;
    this.gutter.replaceChildren(
      ...roles.map((role, lane) => at(MARKS + lane * LANE + LANE / 2, "gutter-role", role)),
      at(chartTop, "gutter-value", show(high)),
      at(chartTop + CHART, "gutter-value", show(low)),
    );
    const shapes = roles.map((role, index) => `${index % 2 ? "■" : "●"} ${role}`).join("   ");
    const strokes =
      lines.length > 1 ? "solid valence, dashed arousal" : "negativity (how probable the negative classes are)";
    this.legend.textContent = `${shapes}   ·   ${strokes}   ·   ▲ alert   ·   shaded: both speak`;
  }

  /** @param {number} ms */
  moveTo(ms) {
    this.atMs = ms;
    if (!this.head) return;
    const x = this.x(Math.min(ms, this.durationS * 1000));
    this.head.setAttribute("x1", String(x));
    this.head.setAttribute("x2", String(x));
  }

  /** Brings the playhead into view. */
  reveal() {
    const x = this.x(this.atMs);
    const { scrollLeft, clientWidth } = this.scroll;
    if (x < scrollLeft + PAD || x > scrollLeft + clientWidth - 2 * PAD) this.scroll.scrollLeft = x - clientWidth * 0.7;
  }
}

/** @param {number} index of the role @param {number} x @param {number} y */
function marker(index, x, y) {
  return index % 2
    ? svg("rect", { class: "point", x: x - 3, y: y - 3, width: 6, height: 6 })
    : svg("circle", { class: "point", cx: x, cy: y, r: 3.2 });
}
