/* The writing pad: a text, and what the model would write next, in grey after the cursor. */

/** @import { Reader } from "./reader.js" */
/** @import { Completion, Generation } from "./tsm-runtime/index.js" */

import { at } from "./page.js";

const ANNOUNCE_MS = 700; // without a key, after which a screen reader is told what is suggested

export class Pad {
  #area = at("text", HTMLTextAreaElement);
  #frame = /** @type {HTMLElement} */ (this.#area.parentElement);
  #before = at("before");
  #ghost = at("ghost");
  #after = at("after");
  #take = [at("take-word", HTMLButtonElement), at("take-all", HTMLButtonElement)];
  #shown = "";
  #place = 0; // of the cursor, when that was shown
  #prefix = "";
  #edit = 0; // counts them: a suggestion for an earlier one is stale
  #timer = 0;
  /** @type {Generation<Completion> | undefined} what is under way */
  #completion;

  /** @type {Reader | undefined} */
  reader;
  threshold = 0.5;

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
    this.#insert(/^\s*\S+/.exec(this.#shown)?.[0] ?? this.#shown);
  }

  takeAll() {
    this.#insert(this.#shown);
  }

  hide() {
    this.#drop();
    if (this.#shown) this.#show("");
  }

  /** What is computed for the text as it was. */
  #drop() {
    this.#edit++;
    this.#completion?.cancel();
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

  /** By insertText, so that it can be undone. @param {string} text */
  #insert(text) {
    this.#area.focus({ preventScroll: true });
    if (document.execCommand("insertText", false, text)) return;
    this.#area.setRangeText(text, this.cursor, this.#area.selectionEnd, "end");
    this.#area.dispatchEvent(new InputEvent("input"));
  }

  /** @param {boolean} composing */
  #edited(composing) {
    const held = this.#prefix + this.#shown;
    const typed = this.prefix.length > this.#prefix.length && held.startsWith(this.prefix);
    this.#drop();
    this.#show(typed && !composing ? held.slice(this.prefix.length) : ""); // what was typed as suggested
    if (!composing) this.#suggest().catch((error) => this.page.failed(error));
  }

  /** @param {string} text after the cursor */
  #show(text) {
    const rest = this.text.slice(this.#area.selectionEnd);
    this.#shown = text;
    this.#place = this.cursor;
    this.#prefix = this.prefix;
    this.#before.textContent = this.#prefix;
    this.#ghost.textContent = text;
    this.#after.textContent = rest;
    this.#frame.classList.toggle("within", rest !== "" && !this.#area.readOnly);
    for (const button of this.#take) button.disabled = !text || this.#area.readOnly;
  }

  /** Shows what is likeliest as it comes, as long as the model is sure of all of it. */
  async #suggest() {
    const edit = this.#edit;
    const stale = () => edit !== this.#edit;
    const { reader, prefix, text } = this;
    if (!reader || this.#area.readOnly || !prefix || !/^(\n|$)/.test(text.slice(prefix.length))) return;
    await reader.turn(async () => {
      if (stale() || !(await reader.follow(prefix, stale)) || stale()) return;
      this.#completion = reader.complete({ threshold: this.threshold });
    });
    if (stale() || !this.#completion) return;
    let found = "";
    for await (const piece of this.#completion) {
      if (stale()) return;
      found += piece;
      if (found.length > this.#shown.length && found.trim()) this.#show(found);
    }
    if (!stale() && this.#shown)
      this.#timer = window.setTimeout(() => this.page.announce(`Suggested: ${this.#shown}`), ANNOUNCE_MS);
  }
}
