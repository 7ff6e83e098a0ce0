"""Generate text from a TSM artifact, on any CPU, in memory that does not grow with the text.

    python runtime/generate.py                                  # the model shipped beside this file
    python runtime/generate.py MODEL.onnx --prompt "JULIET:" --bytes 1000 --temperature 0.9
    tsm-generate --prompt-file - --stop ROMEO: --json < scene.txt
    tsm-generate --interactive --save-state evening.tsmstate

Only the generated text goes to standard output, as UTF-8, as it comes. The same model, prompt,
settings and seed give the same text on every run. docs/generation.md tells of every option. This
folder runs wherever it is copied, under Python 3.9 or newer with the compiled native/ or one
interpreter: `pip install ai-edge-litert` (or `onnxruntime`).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime.generation import main
else:
    from generation import main

if __name__ == "__main__":
    sys.exit(main())
