/* What every part of the page uses of it. */

/** @template {HTMLElement} [T=HTMLElement] @param {string} id @param {new () => T} [type] @returns {T} */
export function at(id, type) {
  const element = document.getElementById(id);
  if (!(element instanceof (type ?? HTMLElement))) throw new Error(`#${id} is missing`);
  return /** @type {T} */ (element);
}

/** @template {keyof HTMLElementTagNameMap} K @param {K} name @param {Partial<HTMLElementTagNameMap[K]>} [values]
 * @param {(Node | string)[]} children */
export function element(name, values = {}, ...children) {
  const made = Object.assign(document.createElement(name), values);
  made.append(...children);
  return made;
}

/** @param {string} id @param {() => unknown} act */
export function onClick(id, act) {
  at(id).addEventListener("click", act);
}
