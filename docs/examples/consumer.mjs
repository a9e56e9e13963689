/**
 * Reads the events of all calls from Redis as one of a group of consumers, each event by one of them, none lost.
 *
 *     npm install redis
 *     node consumer.mjs [redis://127.0.0.1:6390/0] [group] [consumer]
 *
 * What was read but not acknowledged before a crash comes again: first our own, then that of consumers that are gone for a
 * minute. So an event may come twice, with the same `event_id`. A Redis that goes away is waited for.
 */

import { ErrorReply, createClient } from "redis";

const STREAM = "medusa:events";
const COUNT = 64;
const BLOCK_MS = 2_000;
const ABANDONED_MS = 60_000;
const PAUSE_MS = 500;

const [url = "redis://127.0.0.1:6390/0", group = "example", consumer = "node-1"] = process.argv.slice(2);

/** Yours. What throws is not acknowledged, and comes again after a restart. */
function handle(event) {
  if (event.type === "emotion") console.log(event.call, event.role, event.top, event.confidence, event.text);
  else console.log(event.call, event.type);
}

/** Everything that is ours to handle: what was left over, then what comes. */
async function* entries(server) {
  try {
    await server.xGroupCreate(STREAM, group, "0", { MKSTREAM: true });
  } catch (error) {
    if (!error.message.startsWith("BUSYGROUP")) throw error; // the group exists: it goes on where it was
  }
  let after = "0"; // our own that we did not acknowledge; ">" is what nobody has had
  for (;;) {
    const batch = await server.xReadGroup(group, consumer, { key: STREAM, id: after }, { COUNT, BLOCK: BLOCK_MS });
    const found = batch?.[0]?.messages ?? [];
    yield* found;
    if (after !== ">") after = found.at(-1)?.id ?? ">";
    else if (found.length === 0) {
      const { messages } = await server.xAutoClaim(STREAM, group, consumer, ABANDONED_MS, "0", { COUNT });
      yield* messages.filter(Boolean);
    }
  }
}

let handling = false;

/** Until something breaks. */
async function consume() {
  const server = createClient({ url, socket: { reconnectStrategy: false } });
  server.on("error", () => {}); // the command that it breaks says so
  try {
    await server.connect();
    for await (const { id, message } of entries(server)) {
      handling = true;
      if (message) handle(message); // an entry that Redis has dropped since has no fields
      handling = false;
      await server.xAck(STREAM, group, id);
    }
  } finally {
    if (server.isOpen) server.destroy();
  }
}

/** Whether Redis was not reached, as opposed to Redis or `handle` saying no. */
const away = (error) => !handling && (!(error instanceof ErrorReply) || error.message.startsWith("LOADING"));

for (const signal of ["SIGTERM", "SIGINT"]) process.on(signal, () => process.exit(0));
for (;;) {
  try {
    await consume();
  } catch (error) {
    if (!away(error)) throw error;
    console.error(`Redis is away: ${error.message || error.code}`);
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
  }
}
