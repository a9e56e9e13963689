/** What pages are made of. Text from outside goes in through textContent and attributes alone. */

const SVG = "http://www.w3.org/2000/svg";

/** @param {string} id @returns {HTMLElement} */
export const byId = (id) => document.getElementById(id);

/** @param {string} id of a template @returns {HTMLElement} */
export function fresh(id) {
  return byId(id).content.firstElementChild.cloneNode(true);
}

/** What is said to be 0% is not drawn either. */
export const LEAST_SHOWN = 0.005;

/** @param {HTMLElement} element @param {number} share 0..1 */
export function setWidth(element, share) {
  element.style.width = share < LEAST_SHOWN ? "0" : `${Math.min(100, share * 100).toFixed(1)}%`;
}

/** @param {string} name @param {Record<string, string | number>} attributes @param {string} [text] @returns {SVGElement} */
export function svg(name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
  if (text !== undefined) element.textContent = text;
  return element;
}

/** @param {string} name @param {string} className @param {string} [text] @returns {HTMLElement} */
export function make(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}
