/* Sessions that follow a text as it is edited, of which what is the same stays read: one goes on with it, one
 * completes it. */

/** @import { CompleteOptions, Session, TSM } from "./tsm-runtime/index.js" */

const REWIND_BYTES = 4096; // 640 KB of snapshots; further back the text is read again
const FEED_BYTES = 256;
const encoder = new TextEncoder();

export class Reader {
  #tsm;
  /** @type {Session | undefined} */
  #session;
  /** @type {Promise<Session> | undefined} */
  #completing;
  /** @type {Uint8Array} */
  #read = new Uint8Array();
  /** @type {Promise<unknown>} what is done before the next turn */
  #last = Promise.resolve();

  /** @param {TSM} tsm */
  constructor(tsm) {
    this.#tsm = tsm;
  }

  /** What follows and forks does so in turn. @template T @param {() => Promise<T>} work @returns {Promise<T>} */
  turn(work) {
    const done = this.#last.then(work);
    this.#last = done.catch(() => {});
    return done;
  }

  /** Reads `text`, from where it differs; false: it was stale before that was done. The last piece may still be
   * under way, which what comes after it need not wait for.
   * @param {string} text @param {() => boolean} stale @param {(left: number) => void} [onLeft] */
  async follow(text, stale, onLeft) {
    const wanted = encoder.encode(text);
    let same = 0;
    while (same < this.#read.length && this.#read[same] === wanted[same]) same++;
    if (!this.#session || !(await this.#rewind(this.#read.length - same))) {
      this.#session?.close();
      this.#session = await this.#tsm.session({ rewind: REWIND_BYTES });
      same = 0;
    }
    for (;;) {
      this.#read = wanted.subarray(0, same);
      if (same === wanted.length) return true;
      if (stale()) return false;
      const piece = wanted.subarray(same, same + FEED_BYTES);
      same += piece.length;
      if (same < wanted.length) await this.#session.feed(piece);
      else this.#session.feed(piece).catch(() => (this.#session = undefined)); // to begin anew
      if (wanted.length - same > FEED_BYTES) onLeft?.(wanted.length - same);
    }
  }

  /** @param {number} bytes @returns {Promise<boolean>} false: that far back nothing is kept */
  async #rewind(bytes) {
    try {
      if (bytes) await this.#session?.rewind(bytes);
      return true;
    } catch (error) {
      if (/** @type {any} */ (error).code !== "argument") throw error;
      return false;
    }
  }

  /** Of what was followed. @returns {Promise<Session>} */
  fork() {
    return this.#followed.fork();
  }

  /** Of any text, with nothing to wait for. @param {string} before @param {CompleteOptions} options */
  async complete(before, options) {
    this.#completing ??= this.#tsm.session();
    return (await this.#completing).complete(before, options);
  }

  get #followed() {
    if (!this.#session) throw new Error("nothing was followed");
    return this.#session;
  }

  /** The state after `text`; undefined: it was stale before that was read.
   * @param {string} text @param {() => boolean} stale */
  async stateOf(text, stale) {
    return (await this.follow(text, stale)) ? this.#followed.save() : undefined;
  }

  /** Goes on from a state that ends with these bytes. @param {Uint8Array} state @param {Uint8Array} read */
  async restore(state, read) {
    const session = await this.#tsm.restore(state, { rewind: REWIND_BYTES });
    this.#session?.close();
    this.#session = session;
    this.#read = read;
    return session.settings;
  }
}
