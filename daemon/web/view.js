/** What both pages show: finished utterances, and notices. Text from outside goes in through textContent alone. */

import { LEAST_SHOWN, fresh, setWidth } from "./parts.js";
import { clock, duration, latencyWords, percent, sinceEnd } from "./words.js";

const MAX_SESSIONS = 5;
/** A page left open all day must not grow without end; Redis has the rest. */
const MAX_UTTERANCES = 500;

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
    part("latency").textContent = duration(sinceEnd(emotion.latency_ms));
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
