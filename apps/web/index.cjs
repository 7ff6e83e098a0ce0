/* For require(): the package is of modules, which CommonJS loads when a model is. */

exports.TSM = {
  /** @param {Parameters<import("./index.d.ts").TSM.load>} given */
  load: async (...given) => (await import("./index.js")).TSM.load(...given),
};
