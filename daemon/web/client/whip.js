/** A microphone over WebRTC by WHIP (RFC 9725); results come back over a data channel. */

import { MedusaError, Session, abortable, address, credential, parameters } from "./session.js";

const SDP = "application/sdp";
const FRAGMENT = "application/trickle-ice-sdpfrag";
/** From the offer to `session.created`. A network that lets no UDP through says nothing: it is only seen by waiting. */
const WITHIN_MS = 10_000;
/** One after the other, without a connection in between. */
const MAX_RESTARTS = 3;

class Publication extends Session {
  /** @param {import("./medusa.js").PublishOptions} options */
  constructor(options) {
    super("webrtc");
    this.options = options;
    this.peer = new RTCPeerConnection({ iceServers: options.iceServers ?? [], bundlePolicy: "max-bundle" });
    this.results = this.peer.createDataChannel("results");
    /** @type {URL | undefined} of the session, to be kept secret */
    this.resource = undefined;
    this.etag = "";
    /** @type {string[]} */
    this.candidates = [];
    this.telling = false;
    this.restarts = 0;
    this.over = false;
    /** @type {Promise<void>} */
    this.taken = new Promise((resolve, reject) => {
      this.opened = resolve;
      this.refuse = reject;
    });
    this.taken.catch(() => {}); // it may fail before anybody waits for it
    this.results.onmessage = ({ data }) => this.receive(JSON.parse(data));
    this.results.onclose = () => this.fail(new MedusaError("connection_lost", "the server closed the connection"));
    this.peer.onconnectionstatechange = () => {
      if (this.peer.connectionState === "connected") this.restarts = 0;
      if (this.peer.connectionState === "failed") this.mend();
    };
  }

  /** @param {MediaStream} stream */
  async open(stream) {
    const [track] = stream.getAudioTracks();
    if (!track) throw new MedusaError("no_audio", "the stream has no audio track");
    this.peer.addTransceiver(track, { direction: "sendonly", streams: [stream] });
    const offer = await this.peer.createOffer();
    const { answer, resource } = await this.post(offer.sdp ?? "");
    if (this.over) return void (await this.ask(resource, "DELETE")); // given up while the server answered
    // Only now: candidates are gathered with the servers that the answer named.
    this.peer.onicecandidate = ({ candidate }) => {
      this.candidates.push(candidate?.candidate ? `a=${candidate.candidate}` : "a=end-of-candidates");
      this.trickle();
    };
    await this.peer.setLocalDescription(offer);
    await this.peer.setRemoteDescription({ type: "answer", sdp: answer });
    const timer = setTimeout(() => {
      this.fail(new MedusaError("connection_lost", `no WebRTC connection within ${WITHIN_MS / 1000} s`));
    }, WITHIN_MS);
    return this.taken.finally(() => clearTimeout(timer));
  }

  /** @param {string} sdp @returns {Promise<{answer: string, resource: URL}>} */
  async post(sdp) {
    const url = address(this.options, "whip");
    const { channels } = this.options;
    url.search = new URLSearchParams({ ...parameters(this.options), ...(channels && { channels: String(channels) }) }).toString();
    const response = await this.ask(url, "POST", { "Content-Type": SDP }, sdp);
    const answer = await response.text();
    const resource = (this.resource = new URL(response.headers.get("Location") ?? "", url));
    this.etag = response.headers.get("ETag") ?? "";
    const iceServers = iceServersOf(response.headers.get("Link") ?? "");
    if (iceServers.length && !this.options.iceServers && !this.over) this.peer.setConfiguration({ iceServers });
    return { answer, resource };
  }

  /**
   * @param {URL} url @param {string} method @param {Record<string, string>} [headers] @param {string} [body]
   * @returns {Promise<Response>} one that is no error
   */
  async ask(url, method, headers = {}, body = undefined) {
    const token = await credential(this.options);
    if (token) headers.Authorization = `Bearer ${token}`;
    let response;
    try {
      response = await fetch(url, { method, headers, body, keepalive: method === "DELETE" });
    } catch {
      throw new MedusaError("connection_lost", `no answer from ${url.host}`);
    }
    if (response.ok) return response;
    const { code, message } = await response.json().catch(() => ({}));
    throw new MedusaError(code ?? "refused", message ?? `the server answered ${response.status}`, { status: response.status });
  }

  /** Tells the server our addresses, those found meanwhile together. */
  async trickle() {
    if (this.telling || !this.resource) return;
    this.telling = true;
    try {
      while (this.candidates.length && !this.over) {
        const headers = { "Content-Type": FRAGMENT, "If-Match": this.etag };
        await this.ask(this.resource, "PATCH", headers, this.fragment(this.candidates.splice(0)));
      }
    } catch {
      this.candidates = []; // the server also learns our address from our checks: if that fails too, it shows there
    }
    this.telling = false;
  }

  /** The way to the server is gone: the network may have changed. The session is still there, so another way is looked for. */
  async mend() {
    const problem = new MedusaError("connection_lost", "the WebRTC connection could not be made, or was lost");
    if (!this.latest || this.restarts >= MAX_RESTARTS) return this.fail(problem);
    this.restarts += 1;
    try {
      await this.restart();
    } catch {
      this.fail(problem);
    }
    return undefined;
  }

  /** Restarts ICE (RFC 9725, section 4.3.2): everything else of the connection stays. */
  async restart() {
    if (!this.resource || !this.peer.remoteDescription) return;
    this.telling = true; // candidates wait: they belong to the new credentials, which the server does not know yet
    await this.peer.setLocalDescription(await this.peer.createOffer({ iceRestart: true }));
    const headers = { "Content-Type": FRAGMENT, "If-Match": "*" };
    const response = await this.ask(this.resource, "PATCH", headers, this.fragment([]));
    const told = await response.text();
    this.etag = response.headers.get("ETag") ?? "";
    await this.peer.setRemoteDescription({ type: "answer", sdp: withFragment(this.peer.remoteDescription.sdp, told) });
    this.telling = false;
    if (this.candidates.length) await this.trickle();
  }

  /** @param {string[]} candidates @returns {string} RFC 8840 */
  fragment(candidates) {
    const sdp = this.peer.localDescription?.sdp ?? "";
    const line = (/** @type {string} */ name) => sdp.match(new RegExp(`^a=${name}:.*$`, "m"))?.[0].trim() ?? "";
    const media = sdp.match(/^m=audio .*$/m)?.[0].trim() ?? "";
    return `${[line("ice-ufrag"), line("ice-pwd"), media, line("mid"), ...candidates].join("\r\n")}\r\n`;
  }

  /** @param {string} type of a message without fields */
  say(type) {
    if (this.results.readyState === "open") this.results.send(JSON.stringify({ type }));
  }

  /** Ends open utterances; the stream goes on. */
  finalize() {
    this.say("finalize");
  }

  /** Asks for the rest: the last results and `session.closed` still come. */
  close() {
    this.say("close");
  }

  abandon() {
    if (!this.over && this.resource) this.ask(this.resource, "DELETE").catch(() => {}); // over already, or out of reach
    super.abandon();
  }

  /** @param {MedusaError} problem */
  fail(problem) {
    this.refuse?.(this.refusal ?? problem);
    super.fail(problem);
  }

  free() {
    this.over = true;
    this.results.onmessage = this.results.onclose = null;
    this.peer.onconnectionstatechange = this.peer.onicecandidate = null;
    this.peer.close();
  }
}

/**
 * @param {string} sdp of the server
 * @param {string} fragment of its restart
 * @returns {string} the same with new credentials and candidates
 */
function withFragment(sdp, fragment) {
  const told = (/** @type {string} */ name) => fragment.match(new RegExp(`^a=${name}:.*$`, "m"))?.[0].trim() ?? "";
  const candidates = fragment.match(/^a=candidate:.*$/gm)?.map((line) => line.trim()) ?? [];
  const lines = sdp.split(/\r\n/).flatMap((line) => {
    if (line.startsWith("a=ice-ufrag:")) return [told("ice-ufrag")];
    if (line.startsWith("a=ice-pwd:")) return [told("ice-pwd"), ...candidates];
    return line.startsWith("a=candidate:") ? [] : [line];
  });
  return lines.join("\r\n");
}

/** @param {string} header `Link` of the answer @returns {RTCIceServer[]} */
function iceServersOf(header) {
  const found = header.matchAll(/<([^>]+)>((?:\s*;\s*[\w-]+="(?:[^"\\]|\\.)*")*)/g);
  return [...found].flatMap(([, url, about]) => {
    const value = (/** @type {string} */ name) =>
      about.match(new RegExp(`;\\s*${name}="((?:[^"\\\\]|\\\\.)*)"`))?.[1].replace(/\\(.)/g, "$1");
    if (value("rel") !== "ice-server") return [];
    const [username, secret] = [value("username"), value("credential")];
    return [{ urls: url, ...(username !== undefined && { username, credential: secret }) }];
  });
}

/** @type {typeof import("./medusa.js").publish} */
export async function publish(stream, options = {}) {
  if (!globalThis.RTCPeerConnection) throw new MedusaError("no_webrtc", "this browser has no WebRTC");
  const session = new Publication(options);
  try {
    await abortable(session.open(stream), options.signal);
  } catch (error) {
    session.abandon();
    throw error;
  }
  return session;
}
