/** The dashboard: a list of calls, and the one whose name stands behind the # of the address. */

import { Detail } from "./calls-detail.js";
import { Feed, deleteCall, readCall } from "./calls-feed.js";
import { CallList } from "./calls-list.js";
import { byId } from "./parts.js";
import { Notices } from "./view.js";

const notices = new Notices(byId("notices"));
const list = new CallList(byId("calls"));

/** @type {Detail | undefined} */
let detail;
let wanted = "";
let problem = "";

/** @returns {string} the call that the address names */
function named() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

/** @param {string | null} words why nothing comes */
function tell(words) {
  if (words === problem) return;
  if (problem) notices.unsay(problem);
  problem = words ?? "";
  if (problem) notices.say("warning", problem);
  byId("connection").dataset.state = problem ? "connecting" : "live";
  byId("connection-words").textContent = problem ? "Reconnecting …" : "Live";
}

function leave() {
  detail?.close();
  detail?.element.remove();
  detail = undefined;
}

/** Reads the wanted call anew and shows it. */
async function load() {
  const call = wanted;
  if (!call) return;
  try {
    const read = await readCall(call);
    if (call !== wanted) return;
    if (detail?.call.call === call) {
      detail.call.reasons = read.reasons;
      detail.add(read);
      detail.update(read);
      return;
    }
    leave();
    detail = new Detail(read, () => remove(call));
    byId("detail").append(detail.element);
    detail.draw();
  } catch (error) {
    if (call !== wanted) return;
    if (error.status === 404) {
      leave();
      byId("detail-empty").textContent = `There is no call ${call}, or not any more.`;
      byId("detail-empty").hidden = false;
    } else notices.say("error", error.message);
  }
}

/** The address changed. */
function route() {
  const call = named();
  if (call === wanted && detail) return;
  wanted = call;
  leave();
  document.body.dataset.open = String(Boolean(call));
  document.title = call ? `${call} · MEDUSA-RT calls` : "MEDUSA-RT calls";
  byId("detail-empty").hidden = Boolean(call);
  byId("detail-empty").textContent = "Choose a call to see who said what, and how.";
  list.choose(call);
  // The call is read once the feed has begun, so that nothing is missed between the two.
  feed.watch(call);
  if (call) byId("detail").focus({ preventScroll: true });
  if (call) scrollTo({ top: 0 });
}

/** @param {string} call */
function remove(call) {
  const dialog = byId("confirm");
  byId("confirm-call").textContent = call;
  dialog.returnValue = "cancel";
  dialog.showModal();
  dialog.onclose = async () => {
    if (dialog.returnValue !== "delete") return;
    try {
      await deleteCall(call);
      list.remove(call);
      list.arrange(true);
      notices.say("note", `The call ${call} was deleted.`);
      location.hash = "";
    } catch (error) {
      notices.say("error", error.message);
    }
  };
}

const feed = new Feed({
  calls(calls) {
    list.replace(calls);
    list.choose(wanted);
    load();
  },
  changed(calls, gone) {
    for (const call of gone) list.remove(call);
    list.update(calls);
    if (gone.includes(wanted)) load();
    const mine = calls.find(({ call }) => call === wanted);
    if (!mine || !detail) return;
    const over = detail.call.status === "live" && mine.status !== "live";
    detail.update(mine);
    if (over) load();
  },
  said(news) {
    if (news.call !== wanted || !detail) return;
    detail.add(news);
    for (const alert of news.raised) byId("announcer").textContent = `Alert: ${alert.rule}, ${alert.role}.`;
  },
  problem: tell,
});

addEventListener("hashchange", route);
route();
