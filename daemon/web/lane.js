/** What one party sounds like now. Text from outside goes in through textContent alone. */

import { fresh, setWidth } from "./parts.js";
import { Plane } from "./plane.js";
import { Trace } from "./trace.js";
import { duration, latencyWords, percent, shareTitle, shareWords, sinceEnd } from "./words.js";

const QUIETEST_DB = -60;
const LOWEST_ATTRIBUTE = 1;
const HIGHEST_ATTRIBUTE = 7;
/** Of what was said last. */
const PHRASES = 3;

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
    const plane = ["arousal", "valence"].every((name) => this.attributes.has(name));
    this.part("plane").hidden = !plane;
    if (plane) this.plane = new Plane(this.part("plane-picture"));
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
    const stage = this.part("stage");
    stage.textContent = emotion.final
      ? `${duration(sinceEnd(emotion.latency_ms))} after its end`
      : `so far, ${duration(emotion.end_ms - emotion.start_ms)}`;
    stage.title = emotion.final ? latencyWords(emotion.latency_ms) : "";
    if (emotion.members_used) {
      stage.textContent += " · in haste";
      stage.title += ` There was no time for all members: ${emotion.members_used.join(", ")} alone were asked.`;
    }
    if (emotion.final) this.say(emotion);
    this.shares(emotion.modality_share);
    this.plane?.show(emotion);
    for (const [name, bar] of this.bars) {
      bar.set(emotion.probabilities[name], percent(emotion.probabilities[name]));
      bar.element.dataset.top = String(name === emotion.top);
    }
    for (const [name, bar] of this.attributes) this.attribute(bar, emotion[name]);
  }

  /** Adds what was said, in the colour and with the name of how it was said. @param {any} emotion a final */
  say(emotion) {
    const phrase = fresh("phrase-template");
    phrase.dataset.emotion = emotion.top;
    phrase.dataset.abstained = String(emotion.abstained);
    phrase.dataset.trusted = String(emotion.text_trusted);
    phrase.querySelector(".phrase-words").textContent = emotion.text || "(no words)";
    phrase.querySelector(".phrase-label").textContent = emotion.top;
    const said = this.part("said");
    said.append(phrase, " ");
    while (said.children.length > PHRASES) said.firstElementChild.remove();
  }

  /** @param {Record<string, number> | undefined} shares only some bundles tell them */
  shares(shares) {
    const line = this.part("shares");
    line.hidden = !shares;
    line.textContent = shares ? shareWords(shares) : "";
    line.title = shares ? shareTitle(shares) : "";
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
