"""Generate text from a TSM artifact, on any CPU, in memory that does not grow with the text.

    python runtime/generate.py                                  # the model shipped beside this file
    python runtime/generate.py MODEL.onnx --prompt "JULIET:" --bytes 1000 --temperature 0.9
    tsm-generate --prompt-file - --stop ROMEO: --json < scene.txt

Only the generated text goes to standard output, as UTF-8, as it comes. The same model, prompt,
settings and seed give the same text on every run. This folder runs wherever it is copied, under
Python 3.9 or newer with the compiled native/ or one interpreter: `pip install ai-edge-litert` (or
`onnxruntime`).
"""

from __future__ import annotations

import argparse
import codecs
import json
import math
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime.artifact import ArtifactError, open_artifact
    from tsm.runtime.engines import ENGINES, Engine, EngineError, open_engine
else:
    from artifact import ArtifactError, open_artifact
    from engines import ENGINES, Engine, EngineError, open_engine

SHIPPED_MODEL = Path(__file__).with_name("shakespeare-int8.tflite")
EMPTY_PROMPT = b"\n"  # what is read when the prompt is empty: the start of a line
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


def load(path: str | Path = SHIPPED_MODEL, engine: str = "") -> Engine:
    """Verifies the artifact and opens it; engine: one of ENGINES, by default the best that is
    here. Raises ArtifactError or EngineError."""
    return open_engine(open_artifact(path), engine)


def sample(
    logits: Sequence[float], random: Random, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> int:
    """Draws a byte. Temperature 0 takes the likeliest; `top_k` keeps that many bytes (0: all),
    and `top_p` then the fewest whose probabilities reach it together."""
    if temperature == 0:
        return max(range(len(logits)), key=logits.__getitem__)
    kept = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)[: top_k or None]
    best = logits[kept[0]]
    sums = list(accumulate(math.exp((logits[i] - best) / temperature) for i in kept))
    if top_p < 1:
        last = next(i for i, total in enumerate(sums) if total >= top_p * sums[-1])
        del sums[last + 1 :]
    return kept[min(bisect_right(sums, random.random() * sums[-1]), len(sums) - 1)]


def generate_bytes(
    engine: Engine,
    prompt: bytes,
    count: int,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Reads the prompt and yields `count` bytes, one as soon as it is drawn."""
    random = Random(seed)
    data = prompt or EMPTY_PROMPT
    for _ in range(count):
        byte = sample(engine.feed(data), random, temperature, top_k, top_p)
        yield byte
        data = bytes([byte])


def decode_text(source: Iterable[int], stops: Sequence[str] = ()) -> Iterator[str]:
    """Bytes to text as it comes: never part of a character, nor any of a stop string, before
    which the text ends. Bytes that are not UTF-8 become U+FFFD."""
    decoder, held = codecs.getincrementaldecoder("utf-8")("replace"), ""
    for byte in source:
        held += decoder.decode(bytes([byte]))
        found = [at for at in map(held.find, stops) if at >= 0]
        if found:
            yield held[: min(found)]
            return
        safe = len(held) - _stop_begun(held, stops)
        if safe:
            yield held[:safe]
            held = held[safe:]
    yield held + decoder.decode(b"", final=True)


def _stop_begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of `text` may turn out to begin a stop string."""
    longest = min(len(text), max(map(len, stops), default=1) - 1)
    return next(
        (n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in stops)), 0
    )


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held, or None where the system does not say."""
    try:
        # Not getrusage on Linux: a child starts with its parent's peak there.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform != "darwin":
            return None
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:  # one line, where argparse adds its usage
        self.exit(BAD_INPUT, f"{self.prog}: {message}\n")


def _number(kind: type, low: float, high: float, wanted: str) -> Any:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # also false for nan
            raise argparse.ArgumentTypeError(f"found {text!r}, wanted {wanted}")
        return value

    return parse


def _file_bytes(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise argparse.ArgumentTypeError(f"{path}: {reason}, wanted a readable file") from None


def _stop(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("found an empty string, wanted one character or more")
    return text


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    whole = _number(int, 0, math.inf, "a whole number, 0 or more")
    parser = _Parser(
        prog="tsm-generate",
        description="Generate text from a TSM model.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("model", nargs="?", type=Path, default=SHIPPED_MODEL, help="a .tflite or .onnx artifact")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt",
        type=os.fsencode,  # the very bytes typed, in any locale
        default="ROMEO:\n",
        help="text to continue",
    )
    prompts.add_argument(
        "--prompt-file",
        type=_file_bytes,
        dest="prompt",
        metavar="FILE",
        default=argparse.SUPPRESS,
        help="file to continue; - is standard input",
    )
    add("--bytes", type=whole, default=500, metavar="N", help="bytes to generate")
    add(
        "--temperature",
        type=_number(float, 0, sys.float_info.max, "a finite number, 0 or more"),
        default=0.8,
        metavar="T",
        help="0 always takes the likeliest byte; 1 draws as the model predicts",
    )
    add("--top-k", type=whole, default=0, metavar="K", help="draw from the K likeliest; 0: all")
    add(
        "--top-p",
        type=_number(float, sys.float_info.min, 1, "a number above 0, at most 1"),
        default=1.0,
        metavar="P",
        help="draw from the fewest bytes of this total probability",
    )
    seeds = _number(int, -math.inf, math.inf, "a whole number")
    add("--seed", type=seeds, default=0, metavar="S", help="same seed, same text")
    add("--stop", type=_stop, action="append", default=[], help="end before it; repeatable")
    add("--engine", choices=ENGINES, default="", help="what computes; by default the best here")
    add("--json", action="store_true", help="print one JSON object, at the end")
    return parser.parse_args(argv)


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8"))  # in any locale
    sys.stdout.buffer.flush()


def _run(arguments: argparse.Namespace) -> None:
    engine = load(arguments.model, arguments.engine)
    started = time.perf_counter()
    count = 0

    def counted() -> Iterator[int]:
        nonlocal count
        for byte in generate_bytes(
            engine,
            arguments.prompt,
            arguments.bytes,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
        ):
            count += 1
            yield byte

    pieces = decode_text(counted(), arguments.stop)
    if not arguments.json:
        for piece in pieces:
            _write(piece)
        if sys.stdout.isatty():
            _write("\n")  # the shell's prompt begins a line of its own
        return
    text = "".join(pieces)
    seconds = time.perf_counter() - started
    report = {
        "text": text,
        "bytes": count,
        "prompt": arguments.prompt.decode("utf-8", "replace"),
        "seed": arguments.seed,
        "seconds": seconds,  # reading the prompt and generating; not loading
        "bytes_per_second": count / seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    _write(json.dumps(report) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    try:
        _run(_arguments(argv))
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except (ArtifactError, EngineError) as error:
        print(f"tsm-generate: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # writing: a reader that has had enough, or a full disk
        # What is left in the buffer must not be tried, and reported, again as Python shuts down.
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 0
        print(f"tsm-generate: standard output: {error.strerror}", file=sys.stderr)
        return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
