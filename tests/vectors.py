"""What every binding reproduces: settings, and the text, logits and state that they give.

    python tests/vectors.py          # writes tests/vectors.json with the shipped model

Of each vector, after `prompt` has been read and `bytes` have been generated, or fewer by `stops`:
`text` is what was given out, `state_crc32` the CRC-32 of the saved state, `logits_crc32` that of
the 256 floats of the byte after it. Seeds are text, for they have 64 bits; so is "-Infinity".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

from tsm.runtime import Model, Sampling, load
from tsm.runtime.engines import SHIPPED_MODEL

PATH = Path(__file__).with_name("vectors.json")
LONGEST_SEED = str(2**64 - 1)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"prompt": "", "bytes": 40},
    {"temperature": 0.0, "bytes": 600},
    {"seed": LONGEST_SEED, "temperature": 1.0},
    {"temperature": 0.3333333333333333, "top_k": 5},
    {"temperature": 1.2, "top_p": 0.9, "seed": "1"},
    {"temperature": 1.5, "min_p": 0.05, "seed": "2"},
    {"temperature": 1.1, "typical_p": 0.7, "seed": "3"},
    {"top_k": 40, "typical_p": 0.95, "top_p": 0.95, "min_p": 1e-05, "seed": "4"},
    {"repetition_penalty": 1.3, "penalty_window": 200, "seed": "5"},
    {"presence_penalty": 0.5, "frequency_penalty": -0.25, "bytes": 300, "seed": "6"},
    {"logit_bias": {"101": "-Infinity", "32": -1.7, "10": 0.1}, "seed": "7"},
    {"stops": ["\n\n", "KING"], "bytes": 1000, "seed": "8"},
    {"prompt": "Sœur é日本🎭:\n", "temperature": 4.0, "bytes": 200, "seed": "9"},  # no UTF-8
    {"temperature": 1e300, "bytes": 64, "seed": "10"},
    {"prompt": "All the world's a stage. " * 200, "bytes": 50, "seed": "11"},
]


def vectors(model: Model) -> list[dict[str, Any]]:
    return [_vector(model, dict(settings)) for settings in SETTINGS]


def _vector(model: Model, settings: dict[str, Any]) -> dict[str, Any]:
    prompt = settings.pop("prompt", "ROMEO:\n")
    count, stops = settings.pop("bytes", 100), settings.pop("stops", [])
    seed = settings.pop("seed", "0")
    bias = {int(byte): float(value) for byte, value in settings.get("logit_bias", {}).items()}
    sampling = Sampling(**{**settings, "logit_bias": bias}, seed=int(seed))
    stream = model.stream(sampling)
    stream.feed(prompt)
    text = "".join(stream.generate(count, stops=stops))
    state = stream.to_bytes()
    return {
        "prompt": prompt,
        "bytes": count,
        "stops": stops,
        "settings": {**settings, "seed": seed},
        "text": text,
        "finish_reason": stream.finish_reason,
        "position": stream.position,
        "state_bytes": len(state),
        "state_crc32": f"{crc32(state):08x}",
        "logits_crc32": f"{crc32(stream.logits().tobytes()):08x}",
    }


def main() -> None:
    with load(engine="native") as model:
        content = {
            "model": Path(SHIPPED_MODEL).name,
            "sha256": model.engine.artifact.sha256,
            "vectors": vectors(model),
        }
    PATH.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
