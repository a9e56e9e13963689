// @ts-self-types="./medusa.d.ts"
/**
 * The browser's client of MEDUSA-RT: an ES module, no dependency, no build step.
 *
 *     import { publish } from "https://medusa.example.org/client/medusa.js";
 *
 *     const microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
 *     const session = await publish(microphone, { roles: ["customer"] });
 *     for await (const message of session) {
 *       if (message.type === "emotion" && message.final) console.log(message.top, message.text);
 *     }
 *
 * `publish` sends a microphone over WebRTC, `connect` sends samples over a WebSocket; both give a session that is iterated
 * in the same way. medusa.d.ts describes every option and every message.
 */

export { connect } from "./socket.js";
export { MedusaError } from "./session.js";
export { publish } from "./whip.js";
