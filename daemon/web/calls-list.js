/** The list of calls: rows that change in place, ordered by what needs attention. */

import { byId, fresh, svg } from "./parts.js";
import { percent, shortClock } from "./words.js";

const SPARK = { width: 84, height: 22, pad: 3 };
const RANGES = { valence: [1, 7], negativity: [0, 1] };

export const STATUS = {
  live: "live",
  lost: "lost",
  ended: "ended",
  failed: "failed",
};
export const STATUS_TITLE = {
  live: "Somebody is connected.",
  lost: "No event for half an hour, and no end: its server may have been killed.",
  ended: "It ended as its client wished.",
  failed: "It ended before everything was scored.",
};

/** @param {HTMLElement} element @param {string} status */
export function badge(element, status) {
  element.dataset.status = status;
  element.textContent = STATUS[status] ?? status;
  element.title = STATUS_TITLE[status] ?? "";
}

/** @param {HTMLElement} element @param {{top: string, confidence: number, abstained: boolean, final?: boolean} | null} now */
export function feeling(element, now) {
  element.dataset.emotion = now ? now.top : "";
  element.dataset.unsure = String(Boolean(now?.abstained));
  element.querySelector(".label").textContent = now ? now.top : "nothing yet";
  element.querySelector(".sure").textContent = now ? percent(now.confidence) + (now.abstained ? ", unsure" : "") : "";
}

/** @param {SVGElement} element @param {{measure: string, values: number[]}} spark @param {string} role */
function sparkline(element, { measure, values }, role) {
  const [low, high] = RANGES[measure];
  const x = (i) => SPARK.pad + (i / Math.max(1, values.length - 1)) * (SPARK.width - 2 * SPARK.pad);
  const y = (value) => SPARK.height - SPARK.pad - ((value - low) / (high - low)) * (SPARK.height - 2 * SPARK.pad);
  const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
  const parts = [
    svg("line", { class: "spark-ground", x1: 0, x2: SPARK.width, y1: y((low + high) / 2), y2: y((low + high) / 2) }),
  ];
  if (points.length > 1) parts.push(svg("polyline", { class: "spark-line", points: points.join(" ") }));
  if (points.length) {
    const [cx, cy] = points.at(-1).split(",");
    parts.push(svg("circle", { class: "spark-end", cx, cy, r: 2.5 }));
  }
  element.replaceChildren(...parts);
  const show = (value) => (measure === "valence" ? value.toFixed(1) : percent(value));
  const words = values.length
    ? `${measure} of the ${role}, last ${values.length}: from ${show(values[0])} to ${show(values.at(-1))}`
    : `no ${measure} yet`;
  element.setAttribute("aria-label", words);
}

/** @param {any} call @param {number} skewMs of this browser's clock against the server's */
export function times(call, skewMs = 0) {
  const begun = new Date(call.begun_ms - skewMs);
  const day = begun.toDateString() === new Date().toDateString() ? {} : { month: "short", day: "numeric" };
  const at = begun.toLocaleString([], { hour: "2-digit", minute: "2-digit", ...day });
  return `${at} · ${shortClock(call.duration_ms)} · ${call.utterances} utterance${call.utterances === 1 ? "" : "s"}`;
}

/** One call. */
class Row {
  /** @param {any} call */
  constructor(call) {
    this.element = fresh("row-template");
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.part("call-link").href = `#${encodeURIComponent(call.call)}`;
    this.part("call-name").textContent = call.call;
    /** @type {Map<string, HTMLElement>} */
    this.parties = new Map();
    this.update(call);
  }

  /** @param {any} call */
  update(call) {
    this.call = call;
    badge(this.part("badge"), call.status);
    this.part("attention-value").textContent = String(Math.round(call.attention));
    this.part("meter-fill").style.width = `${call.attention}%`;
    this.part("call-attention").dataset.level = call.attention >= 60 ? "high" : call.attention >= 35 ? "middle" : "low";
    this.part("alerts").hidden = call.alerts === 0;
    this.part("alerts").textContent = `▲ ${call.alerts} alert${call.alerts === 1 ? "" : "s"}`;
    this.part("call-times").textContent = times(call);
    for (const { role, now, spark } of call.roles) {
      if (!this.parties.has(role)) this.party(role);
      const party = this.parties.get(role);
      feeling(party.querySelector(".feeling"), now);
      sparkline(party.querySelector(".spark"), spark, role);
    }
  }

  /** @param {string} role */
  party(role) {
    const party = fresh("party-template");
    party.querySelector(".party-role").textContent = role;
    this.part("parties").append(party);
    this.parties.set(role, party);
  }

  /** @param {boolean} on */
  choose(on) {
    if (on) this.part("call-link").setAttribute("aria-current", "true");
    else this.part("call-link").removeAttribute("aria-current");
  }
}

const FILTERS = {
  "": () => true,
  live: (call) => call.status === "live",
  over: (call) => call.status !== "live",
  alerts: (call) => call.alerts > 0,
};

/** All calls. */
export class CallList {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
    /** @type {Map<string, Row>} */
    this.rows = new Map();
    this.chosen = "";
    byId("filter").addEventListener("change", () => this.arrange());
    // Rows must not move away under a pointer or the keyboard's focus: they are put in order when that is gone.
    for (const left of ["pointerleave", "focusout"])
      element.addEventListener(left, () => setTimeout(() => this.arrange()));
  }

  /** @param {any[]} calls all there are */
  replace(calls) {
    const known = new Set(calls.map(({ call }) => call));
    for (const name of this.rows.keys()) if (!known.has(name)) this.remove(name);
    this.update(calls);
    this.arrange(true);
  }

  /** @param {any[]} calls changed or new ones */
  update(calls) {
    for (const call of calls) {
      const row = this.rows.get(call.call);
      if (row) row.update(call);
      else this.rows.set(call.call, new Row(call));
    }
    this.arrange();
  }

  /** @param {string} name */
  remove(name) {
    this.rows.get(name)?.element.remove();
    this.rows.delete(name);
  }

  /** @param {string} name of the call that is open, "" for none */
  choose(name) {
    this.rows.get(this.chosen)?.choose(false);
    this.chosen = name;
    this.rows.get(name)?.choose(true);
  }

  get held() {
    return this.element.matches(":hover") || this.element.contains(document.activeElement);
  }

  /** Puts rows in order. @param {boolean} [always] also under the pointer */
  arrange(always = false) {
    const passes = FILTERS[byId("filter").value];
    const rank = ({ call }) => [call.status === "live" ? 0 : 1, -call.attention, -call.updated_ms];
    const shown = [...this.rows.values()].filter(({ call }) => passes(call));
    shown.sort((one, other) => {
      const [a, b] = [rank(one), rank(other)];
      return a[0] - b[0] || a[1] - b[1] || a[2] - b[2];
    });
    if (this.held && !always) {
      for (const row of shown) if (!row.element.isConnected) this.element.append(row.element);
    } else if (
      shown.some((row, i) => this.element.children[i] !== row.element) ||
      shown.length !== this.element.children.length
    ) {
      const focused = document.activeElement;
      this.element.replaceChildren(...shown.map(({ element }) => element));
      if (focused instanceof HTMLElement && this.element.contains(focused)) focused.focus();
    }
    this.rows.get(this.chosen)?.choose(true);
    const live = [...this.rows.values()].filter(({ call }) => call.status === "live").length;
    byId("list-count").textContent = this.rows.size ? `${live} live, ${this.rows.size} in all` : "";
    byId("list-empty").hidden = shown.length > 0;
    byId("list-empty").textContent = this.rows.size
      ? "No call is like that."
      : "No calls yet. They appear here as soon as somebody streams one.";
  }
}
