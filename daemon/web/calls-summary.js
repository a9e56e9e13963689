/** What a call comes to: how the time was shared, where it is heading, where it turned. */

import { fresh, make } from "./parts.js";
import { clock, duration, percent, shortClock } from "./words.js";

const LEAST_SHOWN = 0.005;
const UNSURE = "unsure";
const LONG_MS = 60_000;

/** @param {number} ms */
const length = (ms) => (ms < LONG_MS ? duration(ms) : shortClock(ms));

/** @param {HTMLElement} list @param {[string, string][]} pairs */
function define(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([name, words]) => {
      const pair = make("div", "pair");
      pair.append(make("dt", "", name), make("dd", "", words));
      return pair;
    }),
  );
}

/** @param {string} measure @param {number} change @returns {string} its size, without a sign */
function size(measure, change) {
  if (measure === "negativity") return `${Math.round(Math.abs(change) * 100)} points`;
  return Math.abs(change).toFixed(1);
}

/** @param {string} measure @param {any} trend */
function trendWords(measure, { mean, slope, low, high }) {
  const average = `${measure === "negativity" ? percent(mean) : mean.toFixed(1)} on average`;
  if (slope === null) return average;
  // An interval that holds 0 leaves open whether it rises or falls.
  if (low <= 0 && high >= 0) return `${average}, no clear trend`;
  return `${average}, ${slope > 0 ? "rising" : "falling"} ${size(measure, slope)} a minute`;
}

/** @param {HTMLElement} element @param {Record<string, number>} shares @param {string} role */
function stack(element, shares, role) {
  const shown = Object.entries(shares).filter(([, share]) => share >= LEAST_SHOWN);
  element.setAttribute(
    "aria-label",
    `${role}: ${shown.map(([name, share]) => `${name} ${percent(share)}`).join(", ")}`,
  );
  element.replaceChildren(
    ...shown.map(([name, share]) => {
      const piece = make("span", "");
      piece.dataset.emotion = name;
      piece.style.width = `${(share * 100).toFixed(1)}%`;
      return piece;
    }),
  );
}

/** @param {Record<string, number>} all */
function shareItems(all) {
  const shown = Object.entries(all).filter(([, share]) => share >= LEAST_SHOWN);
  shown.sort(([, one], [, other]) => other - one);
  return shown.map(([name, share]) => {
    const item = make("li", "share");
    item.dataset.emotion = name;
    item.dataset.unsure = String(name === UNSURE);
    const swatch = make("span", "swatch");
    swatch.setAttribute("aria-hidden", "true");
    item.append(swatch, make("span", "share-name", name), make("span", "share-value", percent(share)));
    return item;
  });
}

/** @param {any} role of the analysis @param {(ms: number) => void} seek */
function roleSummary(role, seek) {
  const element = fresh("role-template");
  const part = (name) => element.querySelector(`.${name}`);
  part("role-name").textContent = role.role;
  if (!role.utterances) {
    element.replaceChildren(part("role-name"), make("p", "soft", "Said nothing."));
    return element;
  }
  stack(part("stack"), role.shares, role.role);
  part("shares").replaceChildren(...shareItems(role.shares));
  const trends = Object.entries(role.trends).filter(([, trend]) => trend !== null);
  define(part("numbers"), [
    ["speech", `${length(role.speech_ms)}, ${percent(role.talk_share)} of all speech`],
    ...trends.map(([measure, trend]) => [measure, trendWords(measure, trend)]),
  ]);
  part("points").replaceChildren(
    ...role.turning_points.map((point) => {
      const item = make("li", "");
      const button = make("button", "when", clock(point.at_ms));
      button.addEventListener("click", () => seek(point.at_ms));
      const words = point.before === point.after ? `still ${point.after}` : `${point.before} → ${point.after}`;
      const way = point.change >= 0 ? "up" : "down";
      item.append(
        button,
        make("span", "", ` turned: ${words}, ${point.measure} ${way} ${size(point.measure, point.change)}`),
      );
      return item;
    }),
  );
  return element;
}

/** @param {HTMLElement} section @param {any} call @param {(ms: number) => void} seek */
export function summarise(section, call, seek) {
  const { overlap_ms: overlap, silence_share: silence, roles } = call.analysis;
  define(section.querySelector(".whole"), [
    ["length", length(call.duration_ms)],
    ["both speak", length(overlap)],
    ["silence", percent(silence)],
    ["alerts", String(call.raised.length)],
  ]);
  section.querySelector(".roles").replaceChildren(...roles.map((role) => roleSummary(role, seek)));
}
