"""A graph that generates by itself (to_onnx.py --loop) against a loop in Python, on one thread.

    python export/to_onnx.py --loop --out build/loop.onnx
    python benchmarks/onnx_loop.py build/loop.onnx

Both write the same bytes, in turns. Prints medians, in bytes a second.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

from tsm.runtime import Sampling, load

SHIPPED = Path(__file__).parent.parent / "models/shakespeare-int8.onnx"
PROMPT, BYTES = b"ROMEO:\n", 300


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("loop", type=Path, help="made by to_onnx.py --loop")
    parser.add_argument("plain", type=Path, nargs="?", default=SHIPPED, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="turns (default: 5)")
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(arguments.loop, options)
    state = {
        tensor.name: np.zeros(tensor.shape, np.float32)
        for tensor in session.get_inputs()
        if tensor.type == "tensor(float)"
    }
    settings = {"length": BYTES, "temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 1}
    feeds = {name: np.asarray(value) for name, value in settings.items()} | state
    feeds |= {"stop_byte": np.asarray(-1), "prompt": np.frombuffer(PROMPT, np.uint8)}
    turns = []
    with load(arguments.plain, engine="onnx") as model:
        for _ in range(arguments.repeats + 1):  # the first one warms up
            started = time.perf_counter()
            text = session.run(["text"], feeds)[0].tobytes()
            between = time.perf_counter()
            stream = model.stream(Sampling(seed=1))
            stream.feed(PROMPT)
            assert bytes(stream.generate_bytes(BYTES)) == text
            turns.append((BYTES / (between - started), BYTES / (time.perf_counter() - between)))
    loop, python = (statistics.median(figures) for figures in zip(*turns[1:], strict=True))
    print(f"in the graph {loop:,.0f} bytes/s, in Python {python:,.0f}: {loop / python:.2f} times")


if __name__ == "__main__":
    main()
