/** What a stream is on either transport: messages to iterate, and one end, good or bad. */

/** More messages than this wait for nobody who reads them. The server has the same rule. */
const MAX_WAITING = 4096;

/** Why a stream could not begin, or did not end well. */
export class MedusaError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   * @param {{status?: number, closeCode?: number}} [about]
   */
  constructor(code, message, { status = 0, closeCode = 0 } = {}) {
    super(message);
    this.name = "MedusaError";
    this.code = code;
    this.status = status;
    this.closeCode = closeCode;
  }
}

/**
 * @typedef {import("./medusa.js").ServerMessage} ServerMessage
 * @typedef {{resolve: (result: IteratorResult<ServerMessage, undefined>) => void, reject: (problem: Error) => void}} Taker
 */

/** Messages between the one who receives and the one who iterates. */
export class Inbox {
  constructor() {
    /** @type {ServerMessage[]} */
    this.waiting = [];
    /** @type {Taker[]} */
    this.takers = [];
    this.over = false;
    /** @type {Error | undefined} */
    this.problem = undefined;
  }

  /** @param {ServerMessage} message @returns {boolean} false if nobody reads and no more fits */
  put(message) {
    if (this.over) return true;
    const taker = this.takers.shift();
    if (taker) taker.resolve({ done: false, value: message });
    else this.waiting.push(message);
    return this.waiting.length <= MAX_WAITING;
  }

  /** Nothing comes any more. What waits can still be read. @param {Error} [problem] thrown behind it */
  end(problem) {
    if (this.over) return;
    this.over = true;
    this.problem = problem;
    for (const taker of this.takers.splice(0)) this.finish(taker);
  }

  /** @param {Taker} taker */
  finish({ resolve, reject }) {
    if (this.problem) reject(this.problem);
    else resolve({ done: true, value: undefined });
  }

  /** @returns {Promise<IteratorResult<ServerMessage, undefined>>} */
  next() {
    const message = this.waiting.shift();
    if (message) return Promise.resolve({ done: false, value: message });
    return new Promise((resolve, reject) => {
      if (this.over) this.finish({ resolve, reject });
      else this.takers.push({ resolve, reject });
    });
  }
}

/** A stream of messages that ends behind `session.closed`, or with a MedusaError. */
export class Session {
  /** @param {"websocket" | "webrtc"} transport */
  constructor(transport) {
    this.transport = transport;
    this.inbox = new Inbox();
    /** @type {import("./medusa.js").SessionCreated | undefined} */
    this.latest = undefined;
    /** @type {MedusaError | undefined} */
    this.refusal = undefined;
  }

  /** @returns {import("./medusa.js").SessionCreated} what the server said when it took the stream */
  get created() {
    if (!this.latest) throw new MedusaError("not_open", "the session has not begun");
    return this.latest;
  }

  /** @returns {AsyncIterator<ServerMessage, undefined>} */
  [Symbol.asyncIterator]() {
    return {
      next: () => this.inbox.next(),
      return: () => {
        this.abandon();
        return Promise.resolve({ done: true, value: undefined });
      },
    };
  }

  /** @param {ServerMessage} message */
  receive(message) {
    if (message.type === "session.created") this.latest = message;
    if (message.type === "error") this.refusal = new MedusaError(message.code, message.message);
    if (!this.inbox.put(message)) this.fail(new MedusaError("slow_reader", `${MAX_WAITING} messages wait and none is read`));
    else if (message.type === "session.created") this.opened();
    else if (message.type === "session.closed") this.end(this.refusal);
  }

  /** The server took the stream. */
  opened() {}

  /** Frees the transport. */
  free() {}

  /** @param {Error} [problem] none where all went well */
  end(problem) {
    this.free();
    this.inbox.end(problem);
  }

  /** @param {MedusaError} problem what broke; the server's own word for it goes first */
  fail(problem) {
    this.end(this.refusal ?? problem);
  }

  /** Ends at once; the server still scores and publishes what it has. */
  abandon() {
    this.end();
  }
}

/**
 * @param {import("./medusa.js").StreamOptions} options
 * @returns {Record<string, string>} as the server's query wants them
 */
export function parameters({ roles, language, interimMs, callId, metadata }) {
  /** @type {Record<string, string>} */
  const query = {};
  if (roles) query.roles = roles.join(",");
  if (language) query.language = language;
  if (interimMs !== undefined) query.interim_ms = String(interimMs);
  if (callId) query.call_id = callId;
  if (metadata) query.metadata = JSON.stringify(metadata);
  return query;
}

/**
 * @param {import("./medusa.js").StreamOptions} options
 * @param {string} path of a resource, seen from the server's root, which may lie behind a proxy's prefix
 */
export function address({ url }, path) {
  const root = new URL(url ?? new URL("..", import.meta.url), globalThis.document?.baseURI);
  if (!root.pathname.endsWith("/")) root.pathname += "/";
  return new URL(path, root);
}

/** @param {import("./medusa.js").StreamOptions} options @returns {Promise<string | undefined>} asked anew each time: tokens may be short-lived */
export async function credential({ token }) {
  return (typeof token === "function" ? await token() : token) || undefined;
}

/**
 * @template T
 * @param {Promise<T>} work
 * @param {AbortSignal} [signal]
 * @returns {Promise<T>} its result, or why it was not waited for
 */
export async function abortable(work, signal) {
  if (!signal) return work;
  signal.throwIfAborted();
  /** @type {() => void} */
  let forget = () => {};
  const aborted = new Promise((_, reject) => {
    const tell = () => reject(signal.reason);
    signal.addEventListener("abort", tell);
    forget = () => signal.removeEventListener("abort", tell);
  });
  work.catch(() => {}); // once nobody waits for it, its failure is nobody's
  return Promise.race([work, aborted]).finally(forget);
}
