import type { LoadOptions, Source, TSM as Model } from "./index.js" with { "resolution-mode": "import" };
export type * from "./index.js" with { "resolution-mode": "import" };

/** As of the module; its errors are told by `error.name === "TSMError"` and their code. */
export declare const TSM: { load(source: Source, options?: LoadOptions): Promise<Model> };
