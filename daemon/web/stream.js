/** The native protocol v1 from the browser's side: one WebSocket, one session. Knows no page and no audio device. */

const BYTES_PER_SAMPLE = 2;

/**
 * @typedef {object} Ending how a stream ended
 * @property {number} code close code of the WebSocket
 * @property {boolean} created whether `session.created` had come
 * @property {boolean} finished whether `session.closed` had come
 */

/** One stream to `/v1/stream`. */
export class EmotionStream {
  /**
   * @param {{sampleRate: number, roles: string[], interimMs: number}} audio
   * @param {{message: (message: any) => void, closed: (ending: Ending) => void}} on
   */
  constructor(audio, on) {
    this.bytesPerSecond = audio.sampleRate * audio.roles.length * BYTES_PER_SAMPLE;
    this.created = false;
    this.finished = false;
    this.socket = new WebSocket(streamUrl(audio));
    this.socket.binaryType = "arraybuffer";
    this.socket.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      this.created ||= message.type === "session.created";
      this.finished ||= message.type === "session.closed";
      on.message(message);
    };
    // `error` tells nothing that `close` does not: it always follows.
    this.socket.onclose = ({ code }) => on.closed({ code, created: this.created, finished: this.finished });
  }

  /** @returns {number} seconds of audio that the network or the server has not taken yet */
  get backlogS() {
    return this.socket.bufferedAmount / this.bytesPerSecond;
  }

  /** @param {ArrayBuffer} pcm interleaved linear16 */
  send(pcm) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(pcm);
  }

  /** Holds an idle stream open: an unmuted but suspended device sends nothing. */
  keepAlive() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send('{"type":"keep_alive"}');
  }

  /** Asks for the rest: the last results and `session.closed` still come. */
  close() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send('{"type":"close"}');
    else this.socket.close();
  }

  /** Ends at once; the server still scores and publishes what it has. */
  abandon() {
    this.socket.onmessage = this.socket.onclose = null;
    this.socket.close();
  }
}

/**
 * The stream's address beside this page, so that the page also works behind a proxy's prefix.
 * @param {{sampleRate: number, roles: string[], interimMs: number}} audio
 */
function streamUrl(audio) {
  const url = new URL("v1/stream", document.baseURI);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  url.search = new URLSearchParams({
    encoding: "linear16",
    sample_rate: String(audio.sampleRate),
    channels: String(audio.roles.length),
    roles: audio.roles.join(","),
    interim_ms: String(audio.interimMs),
  }).toString();
  return url;
}
