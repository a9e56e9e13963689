/** One call: who says what, how, and what comes of it. */

import { badge, feeling, times } from "./calls-list.js";
import { Replay } from "./calls-replay.js";
import { summarise } from "./calls-summary.js";
import { Timeline } from "./calls-timeline.js";
import { fresh, make } from "./parts.js";
import { clock, percent, shortClock } from "./words.js";

const REASONS = {
  client_closed: "the client closed it",
  client_gone: "the connection was lost",
  going_away: "the server shut down",
  idle: "no audio came for too long",
  lost: "its server was killed",
  model_failed: "a model failed",
  server_error: "the server had an internal error",
};

/** The open call. */
export class Detail {
  /** @param {any} call as the API tells it @param {() => void} remove asks for its deletion */
  constructor(call, remove) {
    this.element = fresh("detail-template");
    this.part = (name) => this.element.querySelector(`.${name}`);
    /** @type {Map<string, any>} */
    this.said = new Map();
    /** @type {Map<string, any>} */
    this.raised = new Map();
    /** @type {Map<string, HTMLElement>} */
    this.turns = new Map();
    this.call = call;
    this.part("detail-name").textContent = call.call;
    this.part("truncated").hidden = !call.truncated;
    this.part("delete").addEventListener("click", remove);
    this.replay = new Replay((ms) => this.moved(ms));
    this.timeline = new Timeline(this.part("timeline"), (ms) => this.seek(ms));
    this.wire();
    this.add(call);
    this.update(call);
    this.replay.follow();
  }

  wire() {
    const { replay } = this;
    this.part("play").addEventListener("click", () => {
      if (replay.running) replay.stop();
      else replay.start();
      this.buttons();
    });
    this.part("scrub").addEventListener("input", ({ target }) => this.seek(Number(target.value)));
    this.part("speed").addEventListener("change", ({ target }) => (replay.speed = Number(target.value)));
    this.part("follow").addEventListener("click", () => {
      replay.follow();
      this.buttons();
    });
    this.part("zoom-in").addEventListener("click", () => this.timeline.zoomBy(1));
    this.part("zoom-out").addEventListener("click", () => this.timeline.zoomBy(-1));
  }

  /** The page is another call's. */
  close() {
    this.replay.stop();
  }

  /** @param {number} ms */
  seek(ms) {
    this.replay.seek(ms);
    this.timeline.reveal();
    this.buttons();
  }

  /** @param {{said: any[], raised: any[], analysis: any}} news */
  add({ said, raised, analysis }) {
    for (const one of said) this.said.set(one.key, one);
    for (const alert of raised) this.raised.set(alert.event_id, alert);
    this.call.said = [...this.said.values()].sort((a, b) => a.start_ms - b.start_ms);
    this.call.raised = [...this.raised.values()].sort((a, b) => a.at_ms - b.at_ms);
    this.call.analysis = analysis;
    this.transcript();
    this.alerts();
    this.draw();
  }

  /** @param {any} row as in the list */
  update(row) {
    Object.assign(this.call, row, { said: this.call.said, raised: this.call.raised, alerts: row.alerts });
    badge(this.part("badge"), row.status);
    this.part("delete").disabled = row.status === "live";
    this.part("delete").title = row.status === "live" ? "It can be deleted once it is over." : "";
    const reasons = [...new Set(this.call.reasons ?? [])].map((reason) => REASONS[reason] ?? reason);
    const parties = this.call.sessions > 1 ? [`${this.call.sessions} streams`] : [];
    const metadata = Object.entries(this.call.metadata ?? {}).map(([name, value]) => `${name}: ${value}`);
    const facts = [times(row), `attention ${Math.round(row.attention)}`, ...parties, ...reasons, ...metadata];
    this.part("facts").textContent = facts.join(" · ");
    this.draw();
  }

  draw() {
    this.part("scrub").max = String(Math.ceil(this.call.duration_ms));
    this.timeline.show(this.call);
    summarise(this.part("summary"), this.call, (ms) => this.seek(ms));
    this.replay.extend(this.call.duration_ms);
    this.buttons();
  }

  buttons() {
    const { running, following } = this.replay;
    const live = this.call.status === "live";
    this.part("play").textContent = running ? "Pause" : "Replay";
    this.part("play").disabled = !this.call.said.length;
    this.part("follow").hidden = !live || following;
  }

  transcript() {
    const list = this.part("transcript");
    this.part("silent").hidden = this.said.size > 0;
    for (const one of this.call.said) {
      if (this.turns.has(one.key)) continue;
      const turn = fresh("turn-template");
      const part = (name) => turn.querySelector(`.${name}`);
      turn.dataset.side = String(this.call.roles.findIndex(({ role }) => role === one.role) % 2);
      part("when").textContent = clock(one.start_ms);
      part("when").setAttribute("aria-label", `${clock(one.start_ms)}, go there`);
      part("when").addEventListener("click", () => this.seek(one.start_ms));
      part("who").textContent = one.role;
      feeling(part("feeling"), one);
      part("text").textContent = one.text || "(no words)";
      if (!one.text_trusted) {
        turn.dataset.trusted = "false";
        part("text").title = "The words may be wrong: the recogniser was not sure of them.";
      }
      this.turns.set(one.key, turn);
    }
    const order = this.call.said.map(({ key }) => this.turns.get(key));
    if (order.some((turn, i) => list.children[i] !== turn)) list.replaceChildren(...order);
  }

  alerts() {
    this.part("raised").replaceChildren(
      ...this.call.raised.map((alert) => {
        const item = make("li", "alert");
        const when = make("button", "when", clock(alert.at_ms));
        when.addEventListener("click", () => this.seek(alert.start_ms));
        const words = ` ${alert.rule}: ${alert.role} ${alert.emotions.join(" or ")} ${percent(alert.score)} since ${clock(alert.start_ms)}`;
        item.append(make("span", "alert-sign", "▲ alert"), when, make("span", "", words));
        return item;
      }),
    );
  }

  /** Shows the call as it was. @param {number} ms */
  moved(ms) {
    this.part("scrub").value = String(ms);
    this.part("scrub").setAttribute("aria-valuetext", clock(ms));
    this.part("clock").textContent = `${shortClock(ms)} / ${shortClock(this.call.duration_ms)}`;
    this.timeline.moveTo(ms);
    const { following, running } = this.replay;
    if (running || following) this.timeline.reveal();
    let current;
    for (const one of this.call.said) {
      const turn = this.turns.get(one.key);
      const state = following || one.end_ms <= ms ? "past" : one.start_ms <= ms ? "now" : "future";
      if (turn.dataset.state !== state) turn.dataset.state = state;
      if (state !== "future") current = turn;
    }
    // Within its own frame alone: the page stays where the reader has it.
    const list = this.part("transcript");
    if (current && (running || following))
      list.scrollTop = current.offsetTop - list.clientHeight + current.clientHeight;
    this.now(ms);
    if (!running && this.part("play").textContent === "Pause") this.buttons();
  }

  /** How each role was at that time. @param {number} ms */
  now(ms) {
    const live = this.replay.following && this.call.status === "live";
    const shown = this.call.roles.map(({ role, now }) => {
      const before = this.call.said.filter((one) => one.role === role && one.start_ms <= ms);
      const speaking = this.replay.following ? live && now?.final === false : before.some((one) => one.end_ms > ms);
      const { top, confidence, abstained } = (live ? now : before.at(-1)) ?? {};
      return { role, speaking, felt: top ? { top, confidence, abstained } : null };
    });
    const key = JSON.stringify(shown);
    if (key === this.shownNow) return;
    this.shownNow = key;
    this.part("lanes-now").replaceChildren(...shown.map(laneNow));
  }
}

/** @param {{role: string, speaking: boolean, felt: any}} shown */
function laneNow({ role, speaking, felt }) {
  const lane = make("div", "lane-now");
  const feels = make("span", "feeling");
  const swatch = make("span", "swatch");
  swatch.setAttribute("aria-hidden", "true");
  feels.append(swatch, make("b", "label"), make("span", "sure"));
  feeling(feels, felt);
  lane.append(make("span", "party-role", role), feels, make("span", "soft", speaking ? "speaking" : ""));
  return lane;
}
