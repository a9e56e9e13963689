/** What the page knows of calls: server-sent events, and the API's answers. Knows no page. */

import { authorized, fetchAuthorized } from "./access.js";

const RETRY_MS = 1_000;

/** An answer that is none. */
export class ApiError extends Error {
  /** @param {number} status 0 where nobody answered @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * Beside this page, so that it also works behind a proxy's prefix.
 * @param {string} path
 */
const address = (path) => new URL(`api/${path}`, document.baseURI);

/** @param {string} path @param {RequestInit} [options] */
async function ask(path, options) {
  let answer;
  try {
    answer = await fetchAuthorized(address(path), options);
  } catch (error) {
    throw new ApiError(0, error instanceof TypeError ? "The server does not answer." : error.message);
  }
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new ApiError(answer.status, body.error ?? `The server answered ${answer.status}.`);
  return body;
}

/** @param {string} call */
export const readCall = (call) => ask(`calls/${encodeURIComponent(call)}`);

/** @param {string} call */
export const deleteCall = (call) => ask(`calls/${encodeURIComponent(call)}`, { method: "DELETE" });

/**
 * @typedef {object} Listener
 * @property {(calls: any[]) => void} calls all of them, at the beginning and after every interruption
 * @property {(calls: any[], gone: string[]) => void} changed
 * @property {(news: any) => void} said of the watched call
 * @property {(problem: string | null) => void} problem why nothing comes; null when it does
 */

/** One stream of news, reconnected for as long as the page is open. */
export class Feed {
  /** @param {Listener} on */
  constructor(on) {
    this.on = on;
    this.call = "";
    this.open();
  }

  /** @param {string} call to be told everything of; "" for none */
  watch(call) {
    if (call === this.call) return;
    this.call = call;
    this.open();
  }

  open() {
    clearTimeout(this.retry);
    this.source?.close();
    const url = address("calls/stream");
    if (this.call) url.searchParams.set("call", this.call);
    const source = (this.source = new EventSource(url));
    const hear = (name, take) => source.addEventListener(name, ({ data }) => take(JSON.parse(data)));
    const later = () => {
      if (this.source === source) this.retry = setTimeout(() => this.open(), RETRY_MS);
    };
    hear("calls", ({ calls, problem }) => {
      this.on.problem(problem);
      this.on.calls(calls);
    });
    hear("changed", ({ calls, gone }) => this.on.changed(calls, gone));
    hear("said", (news) => this.on.said(news));
    hear("problem", ({ problem }) => this.on.problem(problem));
    source.onerror = () => {
      this.on.problem("The server does not answer.");
      // After an answer that is an error, a browser does not try again by itself; a key may be what is missing.
      if (source.readyState === EventSource.CLOSED) authorized().then(later, later);
    };
  }
}
