/** Types of medusa.js, the browser's client of MEDUSA-RT. */

/** The classes of every result; those that the server's bundle never learned have probability 0. */
export type Emotion = "angry" | "sad" | "happy" | "surprise" | "fear" | "disgust" | "contempt" | "neutral";

/** What every message has: a number, counting from 0 in the order of sending. */
interface Numbered {
  seq: number;
}

/** The stream was taken. It comes again where a lost connection led to another stream of the same call. */
export interface SessionCreated extends Numbered {
  type: "session.created";
  session: string;
  call: string;
  /** Id of the bundle that scores. */
  model: string;
  /** Of the channels, in their order. */
  roles: string[];
  trained_classes: Emotion[];
  trained_attributes: ("arousal" | "valence" | "dominance")[];
  /** A secret, with which `connect` goes on after a lost connection; null where that was not asked for. */
  resume: string | null;
  resume_window_ms: number;
}

/** The stream goes on with another connection, behind the messages that had come. */
export interface SessionResumed extends Numbered {
  type: "session.resumed";
  session: string;
  /** Samples per channel that the server had. */
  received: number;
  /** Messages that it does not keep any more; finals among them are in Redis. */
  missed: number;
}

/** Whatever becomes of the server, audio before this is not needed again. */
export interface AudioSettled extends Numbered {
  type: "audio.settled";
  settled_ms: number;
}

/** Somebody began to speak. */
export interface SpeechStarted extends Numbered {
  type: "speech.started";
  channel: number;
  role: string;
  /** Times are milliseconds of audio since the stream began. */
  start_ms: number;
}

/** One utterance: as it stands while somebody speaks, or complete (`final`). */
export interface EmotionResult extends Numbered {
  type: "emotion";
  final: boolean;
  event_id: string;
  utterance: number;
  channel: number;
  role: string;
  start_ms: number;
  end_ms: number;
  /** Together 1. */
  probabilities: Record<Emotion, number>;
  top: Emotion;
  confidence: number;
  /** 1 to 7; null if the bundle never learned it. */
  arousal: number | null;
  valence: number | null;
  dominance: number | null;
  /** 0 to 1: how much the members disagree. */
  uncertainty: number;
  /** What the bundle's modalities hold of what was heard, by their names; together 1. Only where the bundle tells it. */
  modality_share?: Record<string, number>;
  /** Names of the bundle's members that were asked, where the server had not time for all of them. */
  members_used?: string[];
  /** 0 to 1: how far the channel was known before. */
  adaptation: number;
  /** The confidence is too low: better treated as not known. */
  abstained: boolean;
  /** Null in interim results; "" where no words were heard. */
  text: string | null;
  language: string | null;
  text_trusted: boolean | null;
  model: string;
  latency_ms: Record<"endpoint" | "queue" | "asr" | "encoders" | "fusion" | "total", number>;
}

/** A rule of the server's configuration was met. */
export interface Alert extends Numbered {
  type: "alert";
  event_id: string;
  rule: string;
  utterance: number;
  channel: number;
  role: string;
  start_ms: number;
  end_ms: number;
  emotions: Emotion[];
  above: number;
  score: number;
  speech_ms: number;
  utterances: number;
}

/** Audio did not arrive; silence stands in its place. */
export interface Gap extends Numbered {
  type: "gap";
  channels: number[];
  start_ms: number;
  end_ms: number;
  duration_ms: number;
  reason: "lost" | "paused" | "dropped";
}

/** Something was off, the stream goes on. */
export interface Warning extends Numbered {
  type: "warning";
  code: string;
  message: string;
}

/** The stream ends because of this. */
export interface StreamError extends Numbered {
  type: "error";
  code: string;
  message: string;
}

/** The last message. */
export interface SessionClosed extends Numbered {
  type: "session.closed";
  reason: string;
  totals: Record<"received_ms" | "utterances" | "finals" | "interims" | "dropped_interims", number>;
}

/** A newer server may also send types that are not listed here: ignore what you do not know. */
export type ServerMessage =
  | SessionCreated
  | SessionResumed
  | AudioSettled
  | SpeechStarted
  | EmotionResult
  | Alert
  | Gap
  | Warning
  | StreamError
  | SessionClosed;

/** What both ways of streaming take. */
export interface StreamOptions {
  /** Where the server is, as a page's address: https://medusa.example.org/. Default: where this module came from. */
  url?: string | URL;
  /** A key or token; a function is asked before each request, for tokens that expire soon. Never part of a URL. */
  token?: string | (() => string | undefined | Promise<string | undefined>);
  /** Who speaks on each channel. Default: customer, then agent. */
  roles?: string[];
  /** ISO 639-1. Default: it is recognised. */
  language?: string;
  /** How often results come while somebody speaks; 0 for never. */
  interimMs?: number;
  /** Groups the streams of one call. Default: a new call. */
  callId?: string;
  /** Kept with the call's events. */
  metadata?: Record<string, string>;
  /** 1 or 2. Default: as many as roles, else 1. */
  channels?: number;
  /** Gives the opening up. What is open is ended with `close` or `abandon`. */
  signal?: AbortSignal;
}

/** A connection that ended before the stream did. */
export interface Interruption {
  /** Counts from 1 since the connection last stood. */
  attempt: number;
  error: MedusaError;
}

/** Options of `connect`. */
export interface ConnectOptions extends StreamOptions {
  /** Default: linear16. Channels are interleaved. */
  encoding?: "linear16" | "float32" | "mulaw" | "alaw";
  /** Hz. Default: 16000. */
  sampleRate?: number;
  /**
   * Asked when the connection is lost: milliseconds after which it is made anew, anything else to give up. Audio that the server
   * may need again is kept, and follows. The iteration goes on with `session.resumed`; or, where the server has forgotten the
   * stream, with a `session.created` of the same call, times counting from its begin, and maybe an utterance for a second time.
   */
  onInterrupted?: (interruption: Interruption) => number | false | undefined | Promise<number | false | undefined>;
}

/** Options of `publish`. */
export interface PublishOptions extends StreamOptions {
  /** Default: those that the server names. */
  iceServers?: RTCIceServer[];
}

/**
 * One stream. Iterate it once: every message comes, the last one is `session.closed`. It throws a MedusaError where the stream
 * ends otherwise. Leaving the loop early ends the stream.
 */
export interface Session extends AsyncIterable<ServerMessage> {
  readonly transport: "websocket" | "webrtc";
  /** What the server said when it took the stream; it is also the first message of the iteration. */
  readonly created: SessionCreated;
  /** Ends open utterances; the stream goes on. */
  finalize(): void;
  /** Asks for the rest: the last results and `session.closed` still come. */
  close(): void;
  /** Ends at once; the server still scores and publishes what it has. */
  abandon(): void;
}

/** A stream of samples that the page sends itself. */
export interface SampleSession extends Session {
  /** Whole frames of the encoding that was asked for. */
  send(audio: ArrayBuffer | ArrayBufferView): void;
  /** Seconds of audio that the network or the server has not taken yet. */
  readonly backlogS: number;
}

/** Why a stream could not begin, or did not end well. */
export class MedusaError extends Error {
  /** The server's code, or connection_lost, no_webrtc, no_audio, slow_reader, refused, abandoned, not_open. */
  code: string;
  /** HTTP status, 0 if there is none. */
  status: number;
  /** Of the WebSocket, 0 if there is none. */
  closeCode: number;
  constructor(code: string, message: string, about?: { status?: number; closeCode?: number });
}

/**
 * Opens a stream of samples over a WebSocket.
 * @throws {MedusaError} if the server refuses it, or cannot be reached
 */
export function connect(options?: ConnectOptions): Promise<SampleSession>;

/**
 * Publishes the audio of a MediaStream over WebRTC (WHIP).
 * @throws {MedusaError} if the server refuses it, or no connection can be made; `connect` may still work then
 */
export function publish(stream: MediaStream, options?: PublishOptions): Promise<Session>;
