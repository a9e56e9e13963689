/** The native protocol v1 over a WebSocket: samples out, messages in. Knows no page and no audio device. */

import { MedusaError, Session, abortable, address, credential, parameters } from "./session.js";
import { Tape } from "./tape.js";

/** Bytes of one sample. */
const WIDTHS = { linear16: 2, float32: 4, mulaw: 1, alaw: 1 };
/** The server gives a silent client up; a suspended device sends nothing. */
const KEEP_ALIVE_MS = 20_000;
/** Codes of what another attempt may not meet. */
const PASSING = new Set(["connection_lost", "overloaded"]);
/** The server does not know the stream any more: it was restarted, or we came too late. */
const FORGOTTEN = "unknown_resume";
const NORMAL = 1000;
const LOST = 1006;

/**
 * A stream that may outlive its connections. One that is lost is resumed with the stream's token: audio goes on where the server
 * stopped hearing it, messages where we stopped. A server that has forgotten the stream gets another one, of the same call, with
 * the audio whose results were not settled: nothing is lost, but an utterance may be scored twice.
 */
class SocketSession extends Session {
  /** @param {import("./medusa.js").ConnectOptions} options */
  constructor(options) {
    super("websocket");
    const channels = options.channels ?? options.roles?.length ?? 1;
    this.options = { encoding: /** @type {const} */ ("linear16"), sampleRate: 16_000, ...options, channels };
    this.tape = new Tape(WIDTHS[this.options.encoding] * channels, this.options.sampleRate);
    /** @type {WebSocket | undefined} */
    this.socket = undefined;
    /** @type {string | null} for going on with the stream */
    this.ticket = null;
    /** Where on the tape the stream began, and where its results are sure up to. */
    this.base = this.settled = 0;
    /** How much of the tape a connection has had. */
    this.handed = 0;
    this.seq = -1;
    this.attempt = 0;
    this.ready = false;
    this.closing = false;
    this.gone = false;
    /** @type {(() => void) | undefined} ends a pause */
    this.wake = undefined;
    /** @type {ReturnType<typeof setInterval> | undefined} */
    this.pulse = undefined;
  }

  /** @returns {number} seconds of audio that the network or the server has not taken yet */
  get backlogS() {
    const { frameBytes, sampleRate, end } = this.tape;
    const waiting = this.ready ? (this.socket?.bufferedAmount ?? 0) : end - this.handed;
    return waiting / (frameBytes * sampleRate);
  }

  /** Connects, until the server took the stream, went on with it, or refused it. */
  async open() {
    const token = await credential(this.options);
    if (this.gone) throw new MedusaError("abandoned", "the session was abandoned before it began");
    const { ticket } = this;
    const socket = token ? new WebSocket(this.url(), ["bearer", token]) : new WebSocket(this.url());
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.refusal = undefined;
    await new Promise((resolve, reject) => {
      this.opened = () => resolve(undefined);
      socket.onopen = () => {
        if (ticket) socket.send(JSON.stringify({ type: "resume", resume: ticket, after: this.seq }));
      };
      socket.onmessage = ({ data }) => this.receive(JSON.parse(data));
      // `error` tells nothing that `close` does not: it always follows.
      socket.onclose = ({ code, reason }) => {
        const problem = this.refusal ?? new MedusaError("connection_lost", wordsOf(code, reason), { closeCode: code });
        problem.closeCode = code;
        if (this.ready) this.interrupted(problem).catch((error) => this.end(error));
        else reject(problem);
        this.ready = false;
      };
    });
  }

  /** @returns {URL} of the stream; without a query where it is resumed */
  url() {
    const url = address(this.options, "v1/stream");
    url.protocol = url.protocol.replace("http", "ws");
    if (this.ticket) return url;
    const { encoding, sampleRate, channels, onInterrupted } = this.options;
    url.search = new URLSearchParams({
      encoding,
      sample_rate: String(sampleRate),
      channels: String(channels),
      ...(onInterrupted && { resume: "true" }),
      ...parameters({ ...this.options, callId: this.latest?.call ?? this.options.callId }),
    }).toString();
    return url;
  }

  /** @param {import("./medusa.js").ServerMessage} message */
  receive(message) {
    const { tape } = this;
    if (message.type === "error" && message.code === FORGOTTEN) {
      this.ticket = null;
      return; // the close that follows leads to another stream
    }
    this.seq = message.seq;
    if (message.type === "session.created") {
      this.ticket = message.resume ?? null;
      this.base = this.settled;
      this.goOn(this.base);
    } else if (message.type === "session.resumed") {
      this.goOn(this.base + message.received * tape.frameBytes);
    } else if (message.type === "audio.settled") {
      this.settled = this.base + tape.at(message.settled_ms);
      tape.forget(this.settled);
    } else if (message.type === "session.closed" && message.reason === "going_away" && this.ticket && !this.closing) {
      // What it heard it finished; the rest is another server's.
      this.ticket = null;
      this.settled = this.base + tape.at(message.totals.received_ms);
      tape.forget(this.settled);
      this.inbox.put(message);
      return;
    }
    super.receive(message);
    if (message.type === "session.resumed") this.opened();
  }

  /** Sends what the server has not heard. @param {number} position on the tape */
  goOn(position) {
    this.attempt = 0;
    this.ready = true;
    for (const chunk of this.tape.after(position)) this.transmit(chunk);
    this.handed = this.tape.end;
    if (this.closing) this.say("close");
  }

  /** The connection ended, though the stream had not. @param {MedusaError} problem */
  async interrupted(problem) {
    const { onInterrupted } = this.options;
    while (!this.gone) {
      this.attempt += 1;
      const pause = PASSING.has(problem.code) && (await onInterrupted?.({ attempt: this.attempt, error: problem }));
      if (typeof pause !== "number") return this.fail(problem);
      await new Promise((resolve) => {
        this.wake = () => resolve(undefined);
        setTimeout(this.wake, pause);
      });
      try {
        if (!this.gone) return await this.open();
      } catch (error) {
        problem = /** @type {MedusaError} */ (error);
      }
    }
    return undefined;
  }

  /** @param {ArrayBuffer | ArrayBufferView} audio */
  send(audio) {
    if (this.gone) return;
    const bytes = ArrayBuffer.isView(audio) ? new Uint8Array(audio.buffer, audio.byteOffset, audio.byteLength) : new Uint8Array(audio);
    // A copy: the caller may fill its buffer anew.
    if (this.options.onInterrupted) this.tape.add(bytes.slice());
    if (!this.ready) return;
    this.transmit(bytes);
    this.handed = this.tape.end;
  }

  /** @param {Uint8Array} bytes */
  transmit(bytes) {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(/** @type {Uint8Array<ArrayBuffer>} */ (bytes));
  }

  /** @param {string} type of a message without fields */
  say(type) {
    if (this.ready && this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type }));
  }

  /** Ends open utterances; the stream goes on. */
  finalize() {
    this.say("finalize");
  }

  /** Asks for the rest: the last results and `session.closed` still come. */
  close() {
    this.closing = true;
    this.say("close");
  }

  free() {
    this.gone = true;
    clearInterval(this.pulse);
    this.wake?.();
    if (!this.socket) return;
    this.socket.onopen = this.socket.onmessage = this.socket.onclose = null;
    this.socket.close(NORMAL);
  }
}

/** @param {number} code @param {string} reason */
function wordsOf(code, reason) {
  if (code === LOST) return "the connection could not be made, or was lost";
  return `the server closed the connection (${code}${reason ? `, ${reason}` : ""})`;
}

/** @type {typeof import("./medusa.js").connect} */
export async function connect(options = {}) {
  const session = new SocketSession(options);
  try {
    await abortable(session.open(), options.signal);
  } catch (error) {
    session.free();
    throw error;
  }
  session.pulse = setInterval(() => session.say("keep_alive"), KEEP_ALIVE_MS);
  return session;
}
