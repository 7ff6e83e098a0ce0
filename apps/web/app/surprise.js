/* How unlikely the model finds each character of a text: a heat-map, its legend and a table. */

/** @import { TSM } from "./tsm-runtime/index.js" */

import { at, element } from "./page.js";

const MOST_BYTES = 20000; // some seconds, and as many elements
const SCORE_BYTES = 64;
const STEPS = [0.5, 1, 2, 4, 7]; // nats per byte: 7 is one in a thousand
const encoder = new TextEncoder();

export class Surprise {
  #area = at("scored", HTMLTextAreaElement);
  #heat = at("heat");
  #table = at("table");
  #details = at("table-details", HTMLDetailsElement);
  #mean = at("mean");
  #edit = 0;
  /** @type {TSM | undefined} */
  tsm;

  /** @param {{ failed(error: unknown): void, announce(text: string): void }} page */
  constructor(page) {
    this.page = page;
    this.#area.addEventListener("input", () => this.measure());
    this.#details.addEventListener("toggle", () => this.measure());
    const from = [0, ...STEPS];
    at("legend").append(
      ...from.map((least, i) => element("li", { className: `h${i}` }, i < STEPS.length ? `${least}–${STEPS[i]}` : `${least} nats per byte and more`)),
    );
  }

  measure() {
    this.#measure().catch((error) => this.page.failed(error));
  }

  async #measure() {
    const edit = ++this.#edit;
    const text = this.#area.value;
    const all = encoder.encode(text);
    const bytes = all.subarray(0, MOST_BYTES);
    this.#heat.replaceChildren();
    this.#table.replaceChildren();
    this.#details.hidden = !text;
    this.#mean.textContent = "";
    if (!this.tsm || !text) return;
    const session = await this.tsm.session();
    try {
      /** @type {number[]} */
      const nats = [];
      const characters = text[Symbol.iterator]();
      let read = 0; // bytes whose characters are shown
      let sum = 0;
      while (nats.length < bytes.length) {
        nats.push(...(await session.score(bytes.subarray(nats.length, nats.length + SCORE_BYTES))));
        if (edit !== this.#edit) return;
        for (let next; read < nats.length; read += next.length) {
          const { value = "" } = characters.next();
          next = encoder.encode(value);
          if (read + next.length > nats.length && nats.length < bytes.length) {
            // A character whose last bytes come with the next piece.
            nats.push(...(await session.score(bytes.subarray(nats.length, read + next.length))));
            if (edit !== this.#edit) return;
          }
          const own = nats.slice(read, read + next.length);
          this.#add(value, next, own.reduce((a, b) => a + b, 0) / own.length);
        }
        sum = nats.reduce((a, b) => a + b, 0);
        const mean = sum / nats.length;
        const cut = all.length > bytes.length ? `, the first ${bytes.length} of ${all.length}` : "";
        this.#mean.textContent = `${mean.toFixed(2)} nats per byte on average (${(mean / Math.LN2).toFixed(2)} bits); ${nats.length} bytes${cut}`;
      }
      this.page.announce(this.#mean.textContent ?? "");
    } finally {
      session.close();
    }
  }

  /** @param {string} character @param {Uint8Array} bytes @param {number} nats per byte */
  #add(character, bytes, nats) {
    const step = STEPS.filter((least) => nats >= least).length;
    const figure = nats.toFixed(2);
    this.#heat.append(element("span", { className: `h${step}`, title: `${figure} nats` }, character === "\n" ? "⏎\n" : character));
    if (!this.#details.open) return;
    const name = { " ": "space", "\n": "new line", "\t": "tab" }[character] ?? character;
    const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
    this.#table.append(element("tr", {}, element("td", {}, name), element("td", {}, hex), element("td", {}, figure)));
  }
}
