/** The page's parts. Text from outside goes in through textContent alone. */

import { Trace } from "./trace.js";
import { clock, duration, latencyWords, percent } from "./words.js";

const QUIETEST_DB = -60;
/** What is said to be 0% is not drawn either. */
const LEAST_SHOWN = 0.005;
const LOWEST_ATTRIBUTE = 1;
const HIGHEST_ATTRIBUTE = 7;
const MAX_SESSIONS = 5;
/** A page left open all day must not grow without end; Redis has the rest. */
const MAX_UTTERANCES = 500;

/** @param {string} id @returns {HTMLElement} */
export const byId = (id) => document.getElementById(id);

/** @param {string} id of a template @returns {HTMLElement} */
function fresh(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

/** @param {HTMLElement} element @param {number} share 0..1 */
function setWidth(element, share) {
  element.style.width = share < LEAST_SHOWN ? "0" : `${Math.min(100, share * 100).toFixed(1)}%`;
}

/** @param {number} amplitude 0..1 @returns {number} 0..1 on a scale of dB */
function loudness(amplitude) {
  return amplitude > 0 ? 1 - (20 * Math.log10(amplitude)) / QUIETEST_DB : 0;
}

/** One row: a name, a bar, a number. */
class Bar {
  /** @param {string} name @param {string} kind class or attribute */
  constructor(name, kind) {
    this.element = fresh("bar-template");
    this.element.dataset[kind] = name;
    this.element.querySelector(".name").textContent = name;
    this.fill = this.element.querySelector(".fill");
    this.value = this.element.querySelector(".value");
  }

  /** @param {number} share 0..1 @param {string} words */
  set(share, words) {
    setWidth(this.fill, share);
    this.value.textContent = words;
  }
}

/** What one party sounds like now. */
export class Lane {
  /**
   * @param {string} role
   * @param {{trained_classes: string[], trained_attributes: string[]}} created `session.created`
   */
  constructor(role, created) {
    this.element = fresh("lane-template");
    this.part = (name) => this.element.querySelector(`.${name}`);
    this.part("role").textContent = role;
    this.bars = new Map(created.trained_classes.map((name) => [name, new Bar(name, "emotion")]));
    this.part("bars").append(...[...this.bars.values()].map((bar) => bar.element));
    this.attributes = new Map(created.trained_attributes.map((name) => [name, new Bar(name, "attribute")]));
    this.part("attributes").append(...[...this.attributes.values()].map((bar) => bar.element));
    this.part("attributes").hidden = this.attributes.size === 0;
    this.trace = new Trace(this.element.querySelector("canvas"), created.trained_classes);
    this.startedMs = -1;
    this.held = 0;
  }

  /** @param {number} nowMs of the stream @param {number} rms @param {number} peak both 0..1 */
  hear(nowMs, rms, peak) {
    this.level(rms, peak);
    this.trace.moveTo(nowMs);
  }

  /** @param {number} rms @param {number} peak both 0..1 */
  level(rms, peak) {
    this.held = Math.max(loudness(peak), this.held - 0.012);
    setWidth(this.part("level-fill"), loudness(rms));
    this.part("level-peak").style.left = `${(Math.max(0, Math.min(1, this.held)) * 100).toFixed(1)}%`;
  }

  /** @param {{start_ms: number}} message `speech.started` */
  started({ start_ms }) {
    this.startedMs = start_ms;
    this.speaking(true);
  }

  /** @param {boolean} on @param {string} [otherwise] what to say when nobody speaks */
  speaking(on, otherwise = "listening") {
    this.element.dataset.speaking = String(on);
    this.part("speaking-words").textContent = on ? "speaking" : otherwise;
  }

  /** The stream is over: the last result stays, the meter falls. */
  stop() {
    this.speaking(false, "stopped");
    this.held = 0;
    this.level(0, 0);
    const top = this.part("top");
    if (top.dataset.empty) top.textContent = "no speech";
  }

  /** @param {any} emotion interim or final */
  show(emotion) {
    // A final can come after the next utterance began: it must not put that one's light out.
    this.speaking(!emotion.final || this.startedMs >= emotion.end_ms);
    this.trace.add(emotion);
    this.element.dataset.emotion = emotion.top;
    this.element.dataset.abstained = String(emotion.abstained);
    this.element.dataset.final = String(emotion.final);
    const top = this.part("top");
    top.textContent = emotion.top;
    delete top.dataset.empty;
    this.part("confidence").textContent = percent(emotion.confidence);
    this.part("unsure").hidden = !emotion.abstained;
    this.part("stage").textContent = emotion.final ? "" : `so far, ${duration(emotion.end_ms - emotion.start_ms)}`;
    if (emotion.text !== null) this.part("caption").textContent = emotion.text ? `“${emotion.text}”` : "(no words)";
    for (const [name, bar] of this.bars) {
      bar.set(emotion.probabilities[name], percent(emotion.probabilities[name]));
      bar.element.dataset.top = String(name === emotion.top);
    }
    for (const [name, bar] of this.attributes) this.attribute(bar, emotion[name]);
  }

  /** @param {Bar} bar @param {number | null} value 1..7 */
  attribute(bar, value) {
    if (value === null) bar.set(0, "–");
    else
      bar.set(
        (value - LOWEST_ATTRIBUTE) / (HIGHEST_ATTRIBUTE - LOWEST_ATTRIBUTE),
        `${value.toFixed(1)}/${HIGHEST_ATTRIBUTE}`,
      );
  }
}

/** The finished utterances of one stream. */
export class SessionList {
  /** @param {HTMLElement} history @param {string} name of the source */
  constructor(history, name) {
    this.element = fresh("session-template");
    this.list = this.element.querySelector(".utterances");
    this.element.querySelector(".session-name").textContent = name;
    this.totals(new Date().toLocaleTimeString([], { timeStyle: "short" }));
    history.prepend(this.element);
    while (history.children.length > MAX_SESSIONS) history.lastElementChild.remove();
  }

  /** @param {string} words */
  totals(words) {
    this.element.querySelector(".session-totals").textContent = words;
  }

  /** Nothing will come any more. */
  end() {
    this.element.querySelector(".nothing").textContent = "No utterance was finished.";
  }

  /** @param {any} emotion a final @param {boolean} withRole @param {string[]} classes trained ones */
  add(emotion, withRole, classes) {
    this.element.querySelector(".nothing").hidden = true;
    const row = fresh("utterance-template");
    const part = (name) => row.querySelector(`.${name}`);
    row.dataset.emotion = emotion.top;
    row.dataset.abstained = String(emotion.abstained);
    part("when").textContent = clock(emotion.start_ms);
    part("when").title = `${clock(emotion.start_ms)} to ${clock(emotion.end_ms)}`;
    part("who").textContent = withRole ? emotion.role : "";
    part("text").textContent = emotion.text || "(no words)";
    if (emotion.text_trusted === false) {
      row.dataset.trusted = "false";
      part("text").title = "The words may be wrong: the recogniser was not sure of them.";
    }
    part("label").textContent = emotion.top;
    part("confidence").textContent = percent(emotion.confidence);
    part("unsure").hidden = !emotion.abstained;
    part("latency").textContent = duration(emotion.latency_ms.total);
    part("latency").title = latencyWords(emotion.latency_ms);
    stack(part("stack"), emotion.probabilities, classes);
    this.list.prepend(row);
    if (this.list.children.length > MAX_UTTERANCES) this.list.lastElementChild.remove();
  }
}

/** @param {HTMLElement} element @param {Record<string, number>} probabilities @param {string[]} classes */
function stack(element, probabilities, classes) {
  const words = classes.map((name) => `${name} ${percent(probabilities[name])}`).join(", ");
  element.setAttribute("aria-label", words);
  element.title = words;
  for (const name of classes.filter((name) => probabilities[name] >= LEAST_SHOWN)) {
    const piece = document.createElement("span");
    piece.dataset.emotion = name;
    setWidth(piece, probabilities[name]);
    element.append(piece);
  }
}

/** Errors and warnings, each said once. */
export class Notices {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.element = element;
  }

  /** Takes all away. */
  clear() {
    this.element.replaceChildren();
  }

  /** @param {"error" | "warning" | "note"} kind @param {string} words */
  say(kind, words) {
    if ([...this.element.children].some((notice) => notice.dataset.words === words)) return;
    const notice = document.createElement("p");
    notice.className = "notice";
    notice.dataset.kind = kind;
    notice.dataset.words = words;
    notice.setAttribute("role", kind === "error" ? "alert" : "status");
    notice.textContent = words;
    this.element.append(notice);
  }

  /** @param {string} words takes this one away */
  unsay(words) {
    [...this.element.children].find((notice) => notice.dataset.words === words)?.remove();
  }
}
