/**
 * The live page: one run at a time, from a source of audio to what is shown.
 *
 *     idle -> preparing (microphone, decoding) -> connecting -> live -> finishing (last results) -> idle
 *
 * A run that fails anywhere goes to idle at once, says why, and offers to be repeated.
 */

import { token } from "./access.js";
import { MedusaError, connect, publish } from "./client/medusa.js";
import { Lane } from "./lane.js";
import { byId } from "./parts.js";
import { ServerAway, SourceError, openDemo, openFile, openMicrophone } from "./sources.js";
import { Notices, SessionList } from "./view.js";
import { announcement, awayWords, endWords, lostWords, percent, shortClock, totals, transportWords } from "./words.js";

const INTERIM_MS = 500;
const FINISH_MS = 30_000;
const FRAME_MS = 40;
const LATE_S = 2;
const TOO_LATE_S = 30;
const SILENT_PEAK = 0.001;
/** Four seconds in which nothing is louder than -60 dBFS: even an empty room is. */
const SILENT_FRAMES = 100;

const ATTEMPTS = 8;
const LONGEST_PAUSE_MS = 2_000;

const INTERRUPTED_WORDS = "The connection was lost and is being made again. What is said meanwhile follows.";
const LATE_WORDS = "The server takes audio more slowly than you speak: results come late.";
const SILENT_WORDS = "Nothing is heard from the microphone. Is it muted, or is another one meant?";
const STATES = {
  idle: "Not connected",
  preparing: "Waiting for audio …",
  connecting: "Connecting …",
  live: "Live",
  finishing: "Finishing …",
  failed: "Disconnected",
};

const notices = new Notices(byId("notices"));

/** From a press on Start, or from a chosen file, to the end of its stream. */
class Run {
  /** @param {() => Promise<import("./sources.js").Source>} open */
  constructor(open) {
    this.open = open;
    this.state = "preparing";
    this.heardMs = 0;
    this.silentFrames = 0;
    this.patience = new AbortController();
    /** @type {Lane[]} */
    this.lanes = [];
  }

  /** Opens the source, then the stream. */
  async begin() {
    notices.clear();
    this.enter("preparing");
    try {
      const source = await this.open();
      if (this.over) return void source.stop();
      this.source = source;
    } catch (error) {
      if (this.over) return undefined; // stopped meanwhile: the page may be another run's by now
      if (error instanceof ServerAway) return this.fail(awayWords(location.host));
      const known = error instanceof SourceError;
      if (!known) console.error(error);
      notices.say("error", known ? error.message : `Audio could not be opened: ${error.message}`);
      return this.release("idle"); // nothing was connected yet: Start is the way to try again
    }
    this.source.onended = () => this.finish();
    if (this.source.note) notices.say("note", this.source.note);
    byId("source").textContent = this.source.name;
    byId("transport").textContent = "";
    this.enter("connecting");
    try {
      this.session = await this.connected();
    } catch (error) {
      return this.lost(error);
    }
    byId("transport").textContent = transportWords(this.session.transport);
    return this.listen();
  }

  /**
   * A microphone goes over WebRTC, which loses a packet rather than wait for it; a file over a WebSocket, which loses nothing.
   * @returns {Promise<import("./client/medusa.js").Session>}
   */
  async connected() {
    const { roles, sampleRate, media } = this.source;
    const wanted = { url: document.baseURI, token, roles, interimMs: INTERIM_MS, signal: this.patience.signal };
    if (media) {
      try {
        return await publish(media, wanted);
      } catch (error) {
        if (this.over || !(error instanceof MedusaError)) throw error;
        notices.say("note", `Audio goes over a WebSocket, for WebRTC does not work here: ${error.message}.`);
      }
    }
    return connect({ ...wanted, sampleRate, onInterrupted: ({ attempt }) => this.interrupted(attempt) });
  }

  /** @param {number} attempt from 1 @returns {number | false} ms until the next one */
  interrupted(attempt) {
    if (this.over || attempt > ATTEMPTS) return false;
    notices.say("warning", INTERRUPTED_WORDS);
    return Math.min(LONGEST_PAUSE_MS, 100 * 2 ** attempt);
  }

  /** Shows what comes, until nothing comes any more. */
  async listen() {
    try {
      for await (const message of this.session) {
        if (this.over) return undefined;
        this.receive(message);
      }
      return this.over ? undefined : this.release(this.state === "finishing" ? "idle" : "failed");
    } catch (error) {
      return this.lost(error);
    }
  }

  /** @returns {boolean} whether nothing of this run may touch the page any more */
  get over() {
    return this.state === "idle" || this.state === "failed";
  }

  /** @param {keyof typeof STATES} state */
  enter(state) {
    this.state = state;
    byId("connection").dataset.state = state;
    byId("connection-words").textContent = STATES[state];
    byId("toggle").textContent = this.over ? "Start" : "Stop";
    // Not `disabled`: that would throw the keyboard's focus off the button.
    byId("toggle").setAttribute("aria-disabled", String(state === "finishing"));
    byId("play").disabled = byId("demo").disabled = !this.over;
    byId("reconnect").hidden = state !== "failed";
  }

  /** @param {any} message of the server */
  receive(message) {
    switch (message.type) {
      case "session.created":
        return this.created(message);
      case "session.resumed":
        return notices.unsay(INTERRUPTED_WORDS);
      case "speech.started":
        return this.lanes[message.channel].started(message);
      case "emotion":
        return this.emotion(message);
      case "gap":
        return notices.say("warning", `${(message.duration_ms / 1000).toFixed(1)} s of audio did not arrive and counts as silence.`);
      case "alert":
        return notices.say("warning", `Alert ${message.rule}: ${message.role}, ${percent(message.score)}.`);
      case "warning":
        return notices.say("warning", message.message);
      case "error":
        this.error = message.message;
        return notices.say("error", `The server ${this.list ? "ended" : "refused"} the stream: ${message.message}`);
      case "session.closed":
        this.list.totals(totals(message));
        // What the client asked for needs no word; an error has had its own.
        if (!this.error && message.reason !== "client_closed") notices.say("error", endWords(message.reason));
        return undefined;
      default:
        return undefined; // a newer server may say more than this page knows
    }
  }

  /** @param {any} message `session.created` */
  created(message) {
    this.classes = message.trained_classes;
    this.lanes = message.roles.map((role) => new Lane(role, message));
    byId("lanes").replaceChildren(...this.lanes.map((lane) => lane.element));
    byId("lanes").dataset.count = String(this.lanes.length);
    byId("welcome").hidden = true;
    byId("ids").textContent = `model ${message.model} · call ${message.call}`;
    this.list = new SessionList(byId("history"), this.source.name);
    this.heardMs = 0;
    notices.unsay(INTERRUPTED_WORDS);
    notices.unsay(endWords("going_away"));
    if (this.state !== "connecting") return; // another stream of the same call: the source goes on
    this.enter("live");
    this.source.start((frame) => this.frame(frame));
  }

  /** @param {any} message `emotion` */
  emotion(message) {
    this.lanes[message.channel].show(message);
    if (!message.final) return;
    const withRole = this.lanes.length > 1;
    this.list.add(message, withRole, this.classes);
    byId("announcer").textContent = announcement(message, withRole);
  }

  /** @param {import("./sources.js").Frame} frame */
  frame({ pcm, rms, peak }) {
    if (this.over) return;
    this.session.send?.(pcm);
    this.heardMs += FRAME_MS;
    byId("elapsed").textContent = shortClock(this.heardMs);
    this.lanes.forEach((lane, channel) => lane.hear(this.heardMs, rms[channel], peak[channel]));
    this.watchSilence(Math.max(...peak));
    if (this.session.send) this.watchBacklog();
  }

  /** @param {number} peak 0..1 */
  watchSilence(peak) {
    this.silentFrames = peak > SILENT_PEAK ? 0 : this.silentFrames + 1;
    if (this.source.media && this.silentFrames === SILENT_FRAMES) notices.say("warning", SILENT_WORDS);
    if (this.silentFrames === 0) notices.unsay(SILENT_WORDS);
  }

  /** Back-pressure reaches a browser only as bytes that wait: said early, and an end before memory is. */
  watchBacklog() {
    const waiting = this.session.backlogS;
    if (waiting > LATE_S) notices.say("warning", LATE_WORDS);
    else if (waiting === 0) notices.unsay(LATE_WORDS);
    if (waiting > TOO_LATE_S) this.fail("The server fell too far behind, so the stream was ended.");
  }

  /** Ends the run properly: the last utterance is still scored. */
  async finish() {
    if (this.state === "preparing" || this.state === "connecting") return this.release("idle");
    if (this.state !== "live") return;
    this.enter("finishing");
    await this.source.stop();
    this.lanes.forEach((lane) => lane.stop());
    this.session.close();
    this.waiting = setTimeout(() => this.fail("The server did not send the last results in time."), FINISH_MS);
  }

  /** @param {Error} error that ended the stream, or forbade it */
  lost(error) {
    if (this.over) return;
    const known = error instanceof MedusaError;
    // An error message of the server has had its own words.
    if (!this.error) notices.say("error", known ? lostWords(error, Boolean(this.list), location.host) : error.message);
    this.release("failed");
  }

  /** @param {string} words */
  fail(words) {
    if (this.over) return;
    notices.say("error", words);
    this.release("failed");
  }

  /** @param {"idle" | "failed"} state */
  release(state) {
    this.enter(state);
    clearTimeout(this.waiting);
    this.patience.abort();
    this.session?.abandon();
    this.source?.stop();
    this.lanes.forEach((lane) => lane.stop());
    this.list?.end();
  }
}

/** @type {Run | undefined} */
let run;

/** @param {() => Promise<import("./sources.js").Source>} open */
function begin(open) {
  run = new Run(open);
  run.begin();
}

/** @param {File | undefined} file */
function play(file) {
  if (file && (!run || run.over)) begin(() => openFile(file));
}

/** What is drawn has the colours and the width of the moment; nothing else draws it anew once the stream is over. */
const redraw = () => run?.lanes.forEach((lane) => lane.trace.draw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
addEventListener("resize", redraw);

byId("toggle").addEventListener("click", () => (!run || run.over ? begin(openMicrophone) : run.finish()));
byId("reconnect").addEventListener("click", () => begin(run.open));
byId("demo").addEventListener("click", () => begin(openDemo));
byId("play").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", ({ target }) => {
  play(target.files[0]);
  target.value = ""; // so that the same file can be chosen again
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  play(event.dataTransfer.files[0]);
});
