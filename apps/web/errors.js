/* What goes wrong, by a code and in one line. */

/** @import * as api from "./index.d.ts" */

export class TSMError extends Error {
  /** @param {api.ErrorCode} code @param {string} message @param {ErrorOptions} [options] */
  constructor(code, message, options) {
    super(message, options);
    this.code = code;
  }
  /** @type {"TSMError"} */
  get name() {
    return "TSMError";
  }
}

/** What an engine threw, as TSMError: anything else is a trap, after which it cannot be trusted.
 * @param {unknown} error @returns {TSMError} */
export function known(error) {
  if (error instanceof TSMError) return error;
  return new TSMError("crashed", `the engine has stopped: ${error}; load the model again`, { cause: error });
}
