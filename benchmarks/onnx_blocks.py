"""A prompt in blocks against byte by byte, in plain onnxruntime on one thread.

    python benchmarks/onnx_blocks.py                       # the .onnx of models/
    python benchmarks/onnx_blocks.py FILE.onnx --lengths 1 64 1024 --repeats 9 --json

The lengths run in turns. Prints medians: microseconds a byte, by the clock and of the processor's
time, and how many times as fast a byte is as in the first length, by the processor's time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import onnxruntime

SHIPPED = Path(__file__).parent.parent / "models/shakespeare-int8.onnx"
CALLS = 64  # single bytes of one turn


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", default=SHIPPED, help="default: %(default)s")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="+",
        default=[1, 64, 1024],
        help="bytes a call, the first to compare with (default: 1 64 1024)",
    )
    parser.add_argument("--repeats", type=int, default=9, help="turns (default: 9)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    rows = measure(arguments.model, arguments.lengths, arguments.repeats)
    if arguments.json:
        print(json.dumps({"model": arguments.model.name, "lengths": rows}))
        return
    print(f"{'bytes a call':>12}{'us/byte':>10}{'cpu us/byte':>13}{'times as fast':>15}")
    for row in rows:
        print(
            f"{row['length']:>12,}{row['us_per_byte']:>10,.0f}"
            f"{row['cpu_us_per_byte']:>13,.0f}{row['times_as_fast']:>15.1f}"
        )


def measure(model: Path, lengths: list[int], repeats: int) -> list[dict[str, float]]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options)
    state = {
        tensor.name: np.zeros(tensor.shape, np.float32)
        for tensor in session.get_inputs()
        if tensor.name != "tokens"
    }
    text = np.random.default_rng(0).integers(32, 122, max(lengths))
    turns = []
    for _ in range(repeats + 1):  # the first one warms up
        turn = {}
        for length in lengths:
            values = {"tokens": text[None, :length], **state}
            calls = max(1, CALLS // length)
            clock, cpu = time.perf_counter(), time.thread_time()
            for _ in range(calls):
                session.run(None, values)
            elapsed = time.perf_counter() - clock, time.thread_time() - cpu
            turn[length] = [1e6 * seconds / calls / length for seconds in elapsed]
        turns.append(turn)
    first = lengths[0]
    return [
        {
            "length": length,
            "us_per_byte": statistics.median(turn[length][0] for turn in turns[1:]),
            "cpu_us_per_byte": statistics.median(turn[length][1] for turn in turns[1:]),
            "times_as_fast": statistics.median(
                turn[first][1] / turn[length][1] for turn in turns[1:]
            ),
        }
        for length in lengths
    ]


if __name__ == "__main__":
    main()
