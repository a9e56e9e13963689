/**
 * What a page needs where the server asks for a key: `authorized()` before it begins, `fetchAuthorized` instead of `fetch`,
 * `token()` for what takes no cookie. The key is asked for once and kept nowhere: the server gives a session for it, in a cookie
 * that no script can read, and that EventSource and WebSocket send by themselves.
 */

/** Seconds that a token must still last to be handed out again. */
const SPARE_S = 15;

/** @type {Promise<void> | undefined} of the dialog that is open: several requests wait for one answer */
let asking;

/** @type {{text: string, until: number} | undefined} */
let minted;

/** Beside this page, so that it also works behind a proxy's prefix. @param {string} path */
const address = (path) => new URL(path, document.baseURI);

/**
 * What the server says of us.
 * @returns {Promise<{required: boolean, roles: string[]}>}
 */
export async function access() {
  const answer = await fetch(address("v1/session"), { cache: "no-store" });
  if (!answer.ok) throw new Error(`The server answered ${answer.status}.`);
  return answer.json();
}

/**
 * Asks for a key, if the server needs one and has not had it; EventSource and WebSocket to it work afterwards.
 * @returns {Promise<void>} rejected where nobody gives a key
 */
export async function authorized() {
  const { required, roles } = await access();
  if (required && roles.length === 0) await signIn();
}

/**
 * `fetch`, which asks for a key where the server wants one, and then tries again.
 * @param {string | URL} input @param {RequestInit} [init]
 * @returns {Promise<Response>}
 */
export async function fetchAuthorized(input, init) {
  const answer = await fetch(input, init);
  if (answer.status !== 401) return answer;
  await signIn();
  return fetch(input, init);
}

/**
 * A short-lived token that streams and reads, for what shows it itself; "" where the server asks for none.
 * @returns {Promise<string>}
 */
export async function token() {
  if (minted && minted.until - SPARE_S * 1000 > performance.now()) return minted.text;
  if (!(await access()).required) return "";
  const answer = await fetchAuthorized(address("v1/token"), { method: "POST" });
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.message ?? `The server answered ${answer.status}.`);
  minted = { text: body.token, until: performance.now() + body.expires_in * 1000 };
  return minted.text;
}

/** Ends the session. */
export async function signOut() {
  minted = undefined;
  await fetch(address("v1/session"), { method: "DELETE" });
}

/** Asks for a key until one is good. @returns {Promise<void>} rejected where the dialog is dismissed */
function signIn() {
  asking ??= dialog().finally(() => (asking = undefined));
  return asking;
}

/** @returns {Promise<void>} */
function dialog() {
  const box = document.createElement("dialog");
  box.className = "access";
  box.setAttribute("aria-labelledby", "access-title");
  const title = Object.assign(document.createElement("h2"), { id: "access-title", textContent: "This server needs a key" });
  const label = Object.assign(document.createElement("label"), { textContent: "Key or token" });
  const field = Object.assign(document.createElement("input"), { type: "password", required: true, autocomplete: "off" });
  field.spellcheck = false;
  label.append(" ", field);
  const problem = document.createElement("p");
  problem.setAttribute("role", "alert");
  const go = Object.assign(document.createElement("button"), { type: "submit", textContent: "Sign in" });
  const leave = Object.assign(document.createElement("button"), { type: "button", textContent: "Cancel" });
  const form = document.createElement("form");
  form.append(title, label, problem, go, " ", leave);
  box.append(form);
  document.body.append(box);
  box.showModal();
  return new Promise((resolve, reject) => {
    leave.onclick = () => box.close();
    // Escape closes it too.
    box.onclose = () => {
      box.remove();
      reject(new Error("This server needs a key, and none was given."));
    };
    form.onsubmit = async (event) => {
      event.preventDefault();
      go.disabled = true;
      problem.textContent = await refusal(field.value.trim());
      go.disabled = false;
      if (problem.textContent) {
        field.select();
        return;
      }
      resolve();
      box.close();
    };
  });
}

/** Begins a session. @param {string} key @returns {Promise<string>} why the server refuses it; "" if it does not */
async function refusal(key) {
  try {
    const headers = new Headers({ Authorization: `Bearer ${key}` });
    const answer = await fetch(address("v1/session"), { method: "POST", headers });
    if (answer.ok) return "";
    const body = await answer.json().catch(() => ({}));
    return body.message ?? `The server answered ${answer.status}.`;
  } catch (error) {
    // Headers take no letters beyond Latin-1, and no server may mean no network.
    return error instanceof TypeError && /[^\x21-\x7e]/.test(key) ? "This is no key." : "The server does not answer.";
  }
}
