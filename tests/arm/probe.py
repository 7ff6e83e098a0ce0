"""What an engine computes, as one JSON array on standard output; runs in a copy of runtime/.

python probe.py MODEL native     # one object for each kind of instructions that is asked for
python probe.py MODEL litert
python probe.py MODEL feed N     # nothing: reads N bytes, one by one
"""

from __future__ import annotations

import json
import sys
from array import array
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from .artifact import open_artifact
from .engines import open_engine
from .engines.native import NativeEngine

PASSAGE = b"To be, or not to be, that is the question:\n"
ALONE = 3  # bytes that are read one by one, after the others as a block


def passage_logits(engine: Any) -> array[float]:
    logits = engine.logits_of(PASSAGE[:-ALONE])
    for byte in PASSAGE[-ALONE:]:
        logits += engine.logits_of(bytes([byte]))
    return logits


def denormals(size: int) -> bytes:
    """Floats below the least normal one, 0x00800000 as an integer: none may be taken for 0."""
    return array("I", (i * 7919 % 0x800000 for i in range(size // 4))).tobytes()


def report(artifact: Any, simd: int) -> dict[str, Any]:
    engine, other = NativeEngine(artifact, simd), NativeEngine(artifact, simd)
    logits = passage_logits(engine)
    state = engine.get_state()
    other.set_state(state)
    after = other.logits_of(b"W")
    assert after == engine.logits_of(b"W") and other.get_state() == engine.get_state()
    other.set_state({name: denormals(len(value)) for name, value in state.items()})
    small = other.logits_of(b"W")
    return {
        "simd": engine.simd,
        "logits": logits.tobytes().hex(),
        "state": {name: value.hex() for name, value in state.items()},
        "frequencies": engine.frequencies(after).tolist(),
        "after denormals": small.tobytes().hex(),
        "state after denormals": {n: value.hex() for n, value in other.get_state().items()},
    }


def main() -> None:
    artifact, what = open_artifact(sys.argv[1]), sys.argv[2]
    if what == "feed":
        engine = NativeEngine(artifact)
        for _ in range(int(sys.argv[3])):
            engine.feed(b"a")
    elif what == "litert":
        logits = passage_logits(open_engine(artifact, "litert"))
        print(json.dumps([{"logits": logits.tobytes().hex()}]))
    else:
        print(json.dumps([report(artifact, simd) for simd in range(3)]))


if __name__ == "__main__":
    main()
