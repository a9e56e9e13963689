/** What the page says: numbers, endings and announcements as words. Pure functions. */

const REASONS = {
  client_closed: "finished",
  client_gone: "connection lost",
  going_away: "the server is shutting down",
  idle: "no audio came for too long",
  model_failed: "a model failed on the server",
  server_error: "the server had an internal error",
};

const END_WORDS = {
  going_away: "The server is shutting down. Reconnect when it is back.",
  server_error: "The server had an internal error and ended the stream.",
};

/** @param {number} p @returns {string} never `100%`: no model is that sure */
export const percent = (p) => (p >= 0.995 ? ">99%" : `${Math.round(p * 100)}%`);

/** @param {number} ms @returns {string} `1:04.2` */
export function clock(ms) {
  const tenths = Math.round(ms / 100);
  const seconds = String(Math.floor(tenths / 10) % 60).padStart(2, "0");
  return `${Math.floor(tenths / 600)}:${seconds}.${tenths % 10}`;
}

/** @param {number} ms @returns {string} `0:42`, for a clock that runs */
export function shortClock(ms) {
  const seconds = Math.floor(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/** @param {number} ms */
export const duration = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

/** @param {number} count @param {string} noun */
const counted = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

/** @param {{reason: string, totals: any}} message `session.closed` */
export function totals({ reason, totals: sums }) {
  const dropped = sums.dropped_interims ? ` (${sums.dropped_interims} skipped)` : "";
  return [
    REASONS[reason] ?? reason,
    `${duration(sums.received_ms)} of audio`,
    counted(sums.finals, "utterance"),
    counted(sums.interims, "interim result") + dropped,
  ].join(" · ");
}

/** @param {string} host */
export const awayWords = (host) => `No answer from the server at ${host}. Is it running?`;

/** @param {string} reason of `session.closed` */
export const endWords = (reason) => END_WORDS[reason] ?? `The server ended the stream: ${REASONS[reason] ?? reason}.`;

/**
 * @param {import("./client/medusa.js").MedusaError} error
 * @param {boolean} begun whether the server had taken the stream
 * @param {string} host
 */
export function lostWords({ code, message }, begun, host) {
  if (code !== "connection_lost") return `The server ${begun ? "ended" : "refused"} the stream: ${message}`;
  if (!begun) return awayWords(host);
  return `The connection was lost: ${message}. What the server had received is still scored and published.`;
}

/** @param {"websocket" | "webrtc"} transport */
export const transportWords = (transport) => ({ websocket: "over WebSocket", webrtc: "over WebRTC" })[transport];

/** @param {Record<string, number>} latency `latency_ms` of a result @returns {number} ms from the end of the utterance */
export const sinceEnd = ({ endpoint, total: work }) => endpoint + work;

/** @param {Record<string, number>} latency `latency_ms` of a result */
export function latencyWords(latency) {
  return (
    `after the end of the utterance: waited for the pause ${duration(latency.endpoint)}; work, most of it done in that pause: queue ${duration(latency.queue)}, ` +
    `words ${duration(latency.asr)}, encoders ${duration(latency.encoders)}, ensemble ${duration(latency.fusion)}`
  );
}

/** What the modalities of the recipes that we ship listen to; others go by their own names. */
const HEARD_IN = {
  whisper: "voice",
  prosody: "voice",
  functionals: "voice",
  wavlm: "voice",
  hubert: "voice",
  emotion: "voice",
  text: "words",
  roberta: "words",
  modernbert: "words",
  bert: "words",
  interaction: "both together",
};

/** @param {Record<string, number>} shares `modality_share` @returns {string} `76% voice · 14% words · 10% both together` */
export function shareWords(shares) {
  const sums = new Map();
  for (const [name, share] of Object.entries(shares)) {
    const where = HEARD_IN[name] ?? name;
    sums.set(where, (sums.get(where) ?? 0) + share);
  }
  return [...sums].map(([where, share]) => `${percent(share)} ${where}`).join(" · ");
}

/** @param {Record<string, number>} shares `modality_share` */
export function shareTitle(shares) {
  const each = Object.entries(shares).map(([name, share]) => `${name} ${percent(share)}`);
  return `what the fused vector is made of, the mean over the members that tell it: ${each.join(", ")}`;
}

/** @param {any} emotion a final @param {boolean} withRole */
export function announcement(emotion, withRole) {
  const who = withRole ? `${emotion.role}: ` : "";
  const unsure = emotion.abstained ? ", unsure" : "";
  return `${who}${emotion.top}, ${percent(emotion.confidence)}${unsure}. ${emotion.text || "No words."}`;
}
