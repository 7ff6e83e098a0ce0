/* The writing pad: a text, and what the model would write next, in grey after the cursor. */

/** @import { Reader } from "./reader.js" */

import { at } from "./page.js";

const CANDIDATES = 3; // among which what is shown may stand on as it is typed
const ANNOUNCE_MS = 700; // without a key, after which a screen reader is told what is suggested

export class Pad {
  #area = at("text", HTMLTextAreaElement);
  #frame = /** @type {HTMLElement} */ (this.#area.parentElement);
  #before = at("before");
  #ghost = at("ghost");
  #after = at("after");
  #take = [at("take-word", HTMLButtonElement), at("take-all", HTMLButtonElement)];
  #shown = "";
  #replaced = 0; // before the cursor, for which that stands: a typing error
  #place = 0; // of the cursor, when that was shown
  #prefix = "";
  #edit = 0; // counts them: a suggestion for an earlier one is stale
  #timer = 0;

  /** @type {Reader | undefined} */
  reader;
  threshold = 0.55;

  /** @param {{ edited(): void, failed(error: unknown): void, announce(text: string): void }} page */
  constructor(page) {
    this.page = page;
    const area = this.#area;
    area.addEventListener("input", (event) => {
      const composing = event instanceof InputEvent && event.isComposing;
      this.#edited(composing);
      page.edited();
    });
    area.addEventListener("compositionstart", () => this.hide());
    area.addEventListener("compositionend", () => this.#edited(false));
    area.addEventListener("blur", () => this.hide());
    document.addEventListener("selectionchange", () => {
      if (this.#shown && !(this.#collapsed && area.selectionStart === this.#place)) this.hide();
    });
    area.addEventListener("keydown", (event) => {
      const { key, isComposing, shiftKey, ctrlKey, altKey, metaKey } = event;
      if (!this.#shown || isComposing || shiftKey || ctrlKey || altKey || metaKey) return;
      if (key === "Escape") this.hide();
      else if (key === "Tab") this.takeWord();
      else if (key === "ArrowRight") this.takeAll();
      else return;
      event.preventDefault();
    });
    this.#take[0].addEventListener("click", () => this.takeWord());
    this.#take[1].addEventListener("click", () => this.takeAll());
    for (const button of this.#take) button.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps the focus
  }

  get text() {
    return this.#area.value;
  }

  get cursor() {
    return this.#area.selectionStart;
  }

  get prefix() {
    return this.text.slice(0, this.cursor);
  }

  get #collapsed() {
    return this.#area.selectionStart === this.#area.selectionEnd;
  }

  /** @param {string} text @param {number} cursor */
  open(text, cursor = text.length) {
    this.hide();
    this.#area.value = text;
    this.#area.setSelectionRange(cursor, cursor);
    this.#show("");
  }

  takeWord() {
    this.#insert(/^\s*\S+/.exec(this.#shown)?.[0] ?? this.#shown, this.#replaced);
  }

  takeAll() {
    this.#insert(this.#shown, this.#replaced);
  }

  hide() {
    this.#drop();
    if (this.#shown) this.#show("");
  }

  /** What is computed for the text as it was. */
  #drop() {
    this.#edit++;
    clearTimeout(this.#timer);
  }

  /** While a text is generated it is shown, and nothing can be typed; in the end it is inserted, as a single
   * step to undo. @param {(grow: (piece: string) => void) => Promise<unknown>} generate */
  async going(generate) {
    this.hide();
    this.#area.readOnly = true;
    this.#frame.classList.add("going");
    let text = "";
    try {
      await generate((piece) => this.#show((text += piece)));
    } finally {
      this.#frame.classList.remove("going");
      this.#area.readOnly = false;
      this.#show("");
      const active = document.activeElement;
      if (text) this.#insert(text);
      this.hide();
      if (active instanceof HTMLElement && active !== document.body) active.focus({ preventScroll: true });
    }
  }

  /** By insertText, so that it can be undone. @param {string} text @param {number} [replaced] before the cursor */
  #insert(text, replaced = 0) {
    this.#area.focus({ preventScroll: true });
    if (replaced) this.#area.setSelectionRange(this.cursor - replaced, this.cursor);
    if (document.execCommand("insertText", false, text)) return;
    this.#area.setRangeText(text, this.cursor, this.#area.selectionEnd, "end");
    this.#area.dispatchEvent(new InputEvent("input"));
  }

  /** @param {boolean} composing */
  #edited(composing) {
    const kept = this.#prefix.slice(0, this.#prefix.length - this.#replaced);
    const held = kept + this.#shown;
    const typed = this.prefix.length > kept.length && held.startsWith(this.prefix);
    this.#drop();
    this.#show(typed && !composing ? held.slice(this.prefix.length) : ""); // what was typed as suggested
    if (!composing) this.#suggest().catch((error) => this.page.failed(error));
  }

  /** @param {string} text after the cursor @param {number} [replaced] */
  #show(text, replaced = 0) {
    const rest = this.text.slice(this.#area.selectionEnd);
    this.#shown = text;
    this.#replaced = replaced;
    this.#place = this.cursor;
    this.#prefix = this.prefix;
    this.#before.textContent = this.#prefix;
    this.#ghost.textContent = text;
    this.#ghost.classList.toggle("meant", replaced > 0);
    this.#after.textContent = rest;
    this.#frame.classList.toggle("within", rest !== "" && !this.#area.readOnly);
    for (const button of this.#take) button.disabled = !text || this.#area.readOnly;
  }

  /** Shows how the line most probably goes on, or what its last word was to be. */
  async #suggest() {
    const edit = this.#edit;
    const { reader, prefix, text, threshold } = this;
    if (!reader || this.#area.readOnly || !prefix || !/^(\n|$)/.test(text.slice(prefix.length))) return;
    const found = await reader.complete(prefix, { to: "line", count: CANDIDATES, threshold });
    if (edit !== this.#edit) return; // stale
    const best = found.find(({ text, replaced }) => !replaced && text.startsWith(this.#shown)) ?? found[0];
    if (best && !this.#shown.startsWith(best.text)) this.#show(best.text, best.replaced); // never less than before
    if (!this.#shown) return;
    const instead = this.#replaced ? ` instead of ${prefix.slice(-this.#replaced)}` : "";
    this.#timer = window.setTimeout(() => this.page.announce(`Suggested: ${this.#shown}${instead}`), ANNOUNCE_MS);
  }
}
