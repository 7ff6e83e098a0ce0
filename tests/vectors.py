"""What every binding reproduces: settings, and the text, logits and state that they give.

    python tests/vectors.py    # writes vectors.json and completions.json with the shipped model

Of each vector, after `prompt` has been read and `bytes` have been generated, or fewer by `stops`:
`text` is what was given out, `state_crc32` the CRC-32 of the saved state, `logits_crc32` that of
the 256 floats of the byte after it. Seeds are text, for they have 64 bits; so is "-Infinity".

completions.json has a passage that the model has not learned, and what is offered as it is typed
by one completer, with errors, deletions and jumps: of each step the text before the cursor,
`passage[begin:end] + typed`, how to complete it, and the completions, with their probability and
how many characters they replace.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zlib import crc32

from tsm.runtime import Model, Sampling, load
from tsm.runtime.complete import Completer
from tsm.runtime.engines import SHIPPED_MODEL

PATH = Path(__file__).with_name("vectors.json")
COMPLETIONS = Path(__file__).with_name("completions.json")
STEPS = 60
BEYOND = ("é", "naïve", "— “", "日本語", "🎭 ", "नमस्ते", "\r\n\t", "x" * 70)
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


def steps(passage: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Texts before a cursor, each after a key or a few, and how to complete them."""
    rng = random.Random(seed)
    words = [word.span() for word in re.finditer(r"[A-Za-z]{4,}", passage)]
    begin, end = 0, 300
    for _ in range(count):
        typed = ""
        what = rng.choices(("type", "error", "delete", "jump", "beyond"), (8, 8, 2, 1, 2))[0]
        if what == "type":
            end += rng.randrange(1, 4)
        elif what == "error":
            start, stop = next((span for span in words if span[0] > end), words[9])
            at = rng.randrange(start + 1, stop - 1)
            a, b = passage[at], passage[at + 1]
            begin, end = min(begin, at), at
            typed = rng.choice((b + a, "z" + b, a + a + b, b)) + passage[at + 2 : stop]
        elif what == "delete":
            end = max(begin, end - rng.randrange(90))
        elif what == "jump":
            begin = rng.randrange(len(passage) - 100)
            end = rng.randrange(begin, len(passage) - 50)
        else:
            typed = rng.choice(BEYOND)
        how = {
            "to": rng.choice(("word", "word", "line")),
            "count": rng.choice((1, 1, 3)),
            "max_bytes": rng.choice((48, 48, 48, 5)),
            "threshold": rng.choice((0.55, 0.55, 0.1, 0.1, 0.02, 0.9)),
        }
        yield {"begin": begin, "end": end, "typed": typed, **how}


def completions(model: Model, passage: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """The steps, and what Python completes there."""
    with Completer(model) as completer:
        for step in steps(passage, count, seed):
            completer.follow(passage[step["begin"] : step["end"]] + step["typed"])
            completer.threshold = step["threshold"]
            found = completer.complete(step["to"], step["count"], step["max_bytes"])
            yield {**step, "completions": [asdict(one) for one in found]}


def main() -> None:
    with load(engine="native") as model:
        content = {
            "model": Path(SHIPPED_MODEL).name,
            "sha256": model.engine.artifact.sha256,
            "vectors": vectors(model),
        }
        passage = json.loads(COMPLETIONS.read_text("utf-8"))["passage"]
        each = [json.dumps(one) for one in completions(model, passage, STEPS, seed=0)]
    PATH.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    head = f'{{"passage": {json.dumps(passage)},\n"steps": [\n'
    COMPLETIONS.write_text(head + ",\n".join(each) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
