"""Loss of a model on the held-out 10% of a corpus, or its accuracy on a recall task.

    python training/evaluate.py models/shakespeare.safetensors --data shakespeare
    python training/evaluate.py runtime/shakespeare-int8.tflite --stream-bytes 1048576
    python training/evaluate.py runtime/shakespeare-int8.onnx --task passkey --distances 16 64
    python training/evaluate.py mine-int8.tflite --against mine.safetensors
    python training/evaluate.py mine-int8.tflite --data my.txt --repeats

Scored is what train.py holds out, but of a corpus with a test part, enwik8, that part.
fresh: every window of 256 bytes starts without context (nanoGPT's protocol, but over the whole
split, so that nothing is drawn at random). streaming: one pass with the state carried along.
--stream-bytes N: loss by position. The held-out part is repeated up to N bytes as one stream with
the state carried along, and its first 10,000 bytes are scored again wherever about 10K, 100K and
1M bytes have been read. All bins hold the same text, so that only the length behind them differs.
The later meetings are re-readings: a model that could remember the first would do better there, so
they show whether a long stream harms, and do not measure what long new context is worth.
--against REFERENCE: what the model loses to another, its own unquantized weights above all, in one
stream with the state of each carried along: the difference in loss and the divergence of the
predictions, by how many bytes have been read.
--repeats: loss and accuracy of the last byte of 9-grams that stood before in the same text and
nowhere in the training part, by the distance to the last time, in one stream; at distance 0, where
they stand for the first time.
--task: a recall task of training/tasks.py, by distance; every example starts without context. An
example is right if each byte of its answer is the likeliest, the true ones before it given.
A .tflite or .onnx is run by the device's own engine, byte for byte what a user gets.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from ..runtime.command import Parser, needs, run_command

with needs("tsm-evaluate", "train"):
    import numpy as np
    from rich.progress import track

    from ..runtime.artifact import open_artifact
    from ..runtime.engines import open_engine
    from . import model
    from .checkpoint import load_model
    from .data import DataError, Text, fresh_windows, open_corpus
    from .spec import ModelSpec, SpecError
    from .tasks import TASKS, evaluation_examples
    from .threads import default_threads, prepare_threads

STREAM_BLOCK = 1024  # bytes a call when streaming; does not change the result
ROWS = 16  # fresh windows a call
PIECE = 10_000  # bytes that a stream meets again and again
MEETINGS = (10_000, 100_000, 1_000_000)  # bytes read, about, where the piece is scored
LONGEST_STREAM = 1 << 20  # bytes: the first length that holds a meeting at 1M of Tiny Shakespeare
CARRIED = (1_000, 10_000, 100_000)  # bytes read, between which two models are compared
NGRAM = 9  # bytes: eight, and the one that came after them
REPEATS = (256, 1_000, 10_000, 100_000)  # bytes since the last time, the bounds of the rows
SEARCHED = 1 << 22  # bytes of the training part, at a time
DISTANCES = (16, 64, 256, 1024)  # bytes
EXAMPLES = 50  # of each distance

# (tokens (rows, L), state or None) -> (logits (rows, L, vocabulary), state)
Scorer = Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        arguments = _parse(argv)
        found = measure(arguments)
        print(json.dumps(found) if arguments.json else shown(found))

    return run_command("tsm-evaluate", work, DataError, SpecError)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    names = {"model": str(arguments.model)}
    if arguments.task:
        score = scorer(arguments.model)
        return names | recall(score, arguments.task, arguments.distances, arguments.examples)
    corpus = open_corpus(arguments.data, arguments.window, column=arguments.column)
    part, held_out, start = "held-out", corpus.validation, len(corpus.train)
    if len(corpus.test):
        part, held_out, start = "test", corpus.test, start + len(corpus.validation)
    data = np.asarray(held_out[: arguments.limit])
    place = f"bytes {start:,} to {start + len(data):,}"
    names["text"] = f"{corpus.name}, its {part} part: {place}"
    if arguments.repeats:
        return names | repeats(scorer(arguments.model), data, corpus.train)
    if arguments.against:
        names["reference"] = str(arguments.against)
        return names | against(scorer(arguments.model), scorer(arguments.against), data)
    return names | evaluate(arguments.model, data, arguments.window, arguments.stream_bytes)


def shown(found: dict[str, Any]) -> str:
    """A line a figure; under them, a table of the rows of a list."""

    def text(value: Any) -> str:
        return f"{value:.5g}" if isinstance(value, float) else str(value)

    lines = []
    for name, value in found.items():
        if isinstance(value, list):
            lines += ["  ".join(row) for row in value[:1]]  # none: a stream that ended early
            lines += ["  ".join(text(v).rjust(len(n)) for n, v in row.items()) for row in value]
        else:
            lines.append(f"{name:>27}  {text(value)}")
    return "\n".join(lines)


def evaluate(
    path: str | Path, data: np.ndarray, window: int, stream_bytes: int | None = None
) -> dict[str, Any]:
    """Both figures of the model at `path` over all of `data` (bytes); by position if asked."""
    score = scorer(path)
    by_position = {} if stream_bytes is None else stream(score, data, stream_bytes)
    fresh, streaming = _fresh(score, data, window), _streaming(score, data)
    return {
        "bytes": len(data),
        "window": window,
        "fresh_nats_per_byte": fresh,
        "streaming_nats_per_byte": streaming,
        "fresh_bits_per_byte": fresh / math.log(2),
        "streaming_bits_per_byte": streaming / math.log(2),
        **by_position,
    }


def stream(score: Scorer, data: np.ndarray, size: int) -> dict[str, Any]:
    """Loss on the first PIECE bytes of `data` (of all, if shorter) where they are met nearest to
    each of MEETINGS in a stream of `size` bytes, `data` over and over; bytes read are counted to
    the piece's end. Its first byte, which nothing precedes at the first meeting, never counts.

    The stream ends early at a logit that is not finite; meetings that were whole are kept."""
    piece = min(PIECE, len(data))
    if not piece <= size <= LONGEST_STREAM:
        raise DataError(f"stream of {size} bytes, wanted {piece} to {LONGEST_STREAM}")
    tokens = np.resize(np.asarray(data), size).astype(np.int64)  # repeats `data`
    ends = np.arange(piece, size + 1, len(data))  # bytes read at the end of every meeting
    totals, read = np.zeros(len(ends)), 1
    for start, logits in _carried(score, tokens, "stream"):
        if not np.isfinite(logits).all():
            break
        meeting, place = np.divmod(start + 1 + np.arange(len(logits)), len(data))  # of the targets
        scored = (place > 0) & (place < piece) & (meeting < len(ends))
        targets = tokens[start + 1 : start + 1 + len(logits)]
        np.add.at(totals, meeting[scored], losses(logits, targets)[scored])
        read = start + 1 + len(logits)
    whole = ends[ends <= read]
    nearest = {int(np.abs(whole - wanted).argmin()) for wanted in MEETINGS if len(whole)}
    return {
        "stream_bytes": read,
        "stream_finite": read == size,
        "stream_piece_bytes": piece,
        "stream": [
            {"bytes_read": int(whole[i]), "nats_per_byte": float(totals[i] / (piece - 1))}
            for i in sorted(nearest)
        ],
    }


def against(score: Scorer, reference: Scorer, data: np.ndarray) -> dict[str, Any]:
    """Loss of the one less that of the other, and the mean KL divergence of the first's
    predictions from the second's, in nats a byte, over stretches of one stream that end at CARRIED
    and at the end of `data`."""
    tokens, gaps, divergences = np.asarray(data).astype(np.int64), [], []
    streams = _carried(score, tokens, "against"), _carried(reference, tokens)
    for (start, found), (_, wanted) in zip(*streams, strict=True):
        targets = tokens[start + 1 : start + 1 + len(found)]
        gaps.append(losses(found, targets) - losses(wanted, targets))
        found, wanted = log_softmax(found), log_softmax(wanted)
        divergences.append((np.exp(wanted) * (wanted - found)).sum(axis=-1))
    bounds = [0, *(bound for bound in CARRIED if bound < len(tokens) - 1), len(tokens) - 1]
    rows = []
    for start, stop in itertools.pairwise(bounds):
        gap, divergence = (np.concatenate(x)[start:stop].mean() for x in (gaps, divergences))
        row = {"bytes_read": stop, "nats_per_byte_more": float(gap), "kl_nats": float(divergence)}
        rows.append(row)
    return {"bytes": len(tokens), "against": rows}


def repeats(score: Scorer, data: np.ndarray, train: Text) -> dict[str, Any]:
    """By distance, of `data` in one stream: how many n-grams stood there before and nowhere in
    `train`, and the loss and accuracy of their last bytes. Distance 0: where they stand for the
    first time."""
    tokens = np.asarray(data).astype(np.int64)
    unique, inverse = np.unique(_ngram_hashes(data), return_inverse=True)
    in_train = np.zeros(len(unique), bool)
    for start in range(0, len(train), SEARCHED):
        piece = np.asarray(train[start : start + SEARCHED + NGRAM - 1])
        in_train |= np.isin(unique, _ngram_hashes(piece))
    order = np.argsort(inverse, kind="stable")  # equal n-grams side by side, as they stand
    again = np.diff(inverse[order]) == 0
    distance = np.full(len(inverse), -1)  # of an n-gram that stands once
    distance[order[:-1][again]] = 0
    distance[order[1:][again]] = np.diff(order)[again]
    distance[in_train[inverse]] = -1
    nats, right = [], []
    for start, logits in _carried(score, tokens, "repeats"):
        targets = tokens[start + 1 : start + 1 + len(logits)]
        nats.append(losses(logits, targets))
        right.append(logits.argmax(axis=-1) == targets)
    ends = slice(NGRAM - 2, None)  # the first target is the second byte
    all_nats, all_right = np.concatenate(nats)[ends], np.concatenate(right)[ends]
    rows = []
    for low, high in itertools.pairwise((-1, 0, *REPEATS, len(tokens))):
        chosen = (low < distance) & (distance <= high)
        if chosen.any():
            row = {"distance": high, "count": int(chosen.sum())}
            row |= {"nats_per_byte": float(all_nats[chosen].mean())}
            rows.append(row | {"accuracy": float(all_right[chosen].mean())})
    return {"bytes": len(tokens), "repeats": rows}


def _ngram_hashes(data: np.ndarray) -> np.ndarray:
    """A hash of each NGRAM bytes that follow each other, (len(data) - NGRAM + 1,) uint64."""
    count, found = max(0, len(data) - NGRAM + 1), np.uint64(0)
    for i in range(NGRAM):  # a polynomial modulo 2^64
        found = found * np.uint64(0x9E3779B97F4A7C15) + data[i : i + count].astype(np.uint64)
    return np.broadcast_to(found, count)


def recall(score: Scorer, task: str, distances: list[int], examples: int) -> dict[str, Any]:
    """Accuracy (all bytes of an answer greedily right), the part of single bytes that are right,
    and nats per answer byte, by distance in bytes; and the chance level of each: a guess among
    the bytes that an answer is made of."""
    rows = []
    for distance in distances:
        right, nats = [], []  # (examples, answer bytes)
        drawn = evaluation_examples(task, distance, examples)
        for example in track(drawn, f"distance {distance}", disable=not sys.stderr.isatty()):
            tokens = np.frombuffer(example.text, np.uint8).astype(np.int64)
            places = np.array(example.answers) - 1
            logits = np.concatenate(
                [
                    block[places[(start <= places) & (places < start + len(block))] - start]
                    for start, block in _carried(score, tokens)
                ]
            )
            answers = tokens[places + 1]
            right.append(logits.argmax(axis=-1) == answers)
            nats.append(losses(logits, answers))
        rows.append(
            {
                "distance": distance,
                "accuracy": float(np.all(right, axis=1).mean()),
                "byte_accuracy": float(np.mean(right)),
                "nats_per_answer_byte": float(np.mean(nats)),
            }
        )
    return {
        "task": task,
        "examples": examples,
        "chance_accuracy": TASKS[task].chance_accuracy,
        "chance_byte_accuracy": 1 / TASKS[task].alphabet,
        "chance_nats_per_answer_byte": TASKS[task].chance_nats_per_byte,
        "distances": rows,
    }


def scorer(path: str | Path) -> Scorer:
    """The function that a model file computes, whatever its format."""
    if Path(path).suffix not in (".tflite", ".onnx"):
        return weights_scorer(*load_model(path))

    engine = open_engine(open_artifact(path))

    def score_one(tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        rows = []
        for row in tokens:
            if state is None:
                engine.reset()
            logits = engine.logits_of(row.astype(np.uint8).tobytes())
            rows.append(np.array(logits, np.float32).reshape(len(row), -1))
        return np.stack(rows), engine

    return score_one


def weights_scorer(spec: ModelSpec, arrays: dict[str, np.ndarray]) -> Scorer:
    """The function of weights in memory, by PyTorch."""
    prepare_threads(default_threads(spec))
    with needs("tsm-evaluate", "train"):  # the extra train-jax brings the rest
        import array_api_compat.torch as xp
        import torch

    weights = {name: torch.from_numpy(array) for name, array in arrays.items()}

    @torch.inference_mode()
    def score(tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
        state = state or model.initial_state(xp, spec, len(tokens))
        logits, state = model.forward(xp, spec, weights, torch.from_numpy(tokens), state)
        return logits.numpy(), state

    return score


def losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats of each target (..., L), in double precision; logits (..., L, vocabulary)."""
    return -np.take_along_axis(log_softmax(logits), targets[..., None], axis=-1)[..., 0]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return model.log_softmax(np, logits.astype(np.float64))


def _fresh(score: Scorer, data: np.ndarray, window: int) -> float:
    rows, rest = fresh_windows(data, window)
    pieces = [rows[i : i + ROWS] for i in range(0, len(rows), ROWS)]
    if rest.shape[1] > 1:
        pieces.append(rest)
    total = 0.0
    for piece in track(pieces, "fresh windows", disable=not sys.stderr.isatty()):
        total += losses(score(piece[:, :-1], None)[0], piece[:, 1:]).sum()
    return float(total / (len(data) - 1))


def _streaming(score: Scorer, data: np.ndarray) -> float:
    tokens, total = np.asarray(data).astype(np.int64), 0.0
    for start, logits in _carried(score, tokens, "streaming"):
        total += losses(logits, tokens[start + 1 : start + 1 + len(logits)]).sum()
    return float(total / (len(data) - 1))


def _carried(
    score: Scorer, tokens: np.ndarray, shown: str | None = None
) -> Iterator[tuple[int, np.ndarray]]:
    """One pass over `tokens` (L,) with the state carried: where each block starts, and its logits
    (block, vocabulary) of the bytes one further. The last byte is only predicted, not read.
    shown: the name of a progress bar, if there is to be one."""
    state = None
    starts = range(0, len(tokens) - 1, STREAM_BLOCK)
    hidden = shown is None or not sys.stderr.isatty()
    for start in track(starts, shown or "", disable=hidden):
        block = tokens[None, start : min(start + STREAM_BLOCK, len(tokens) - 1)]
        logits, state = score(block, state)
        yield start, logits[0]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("tsm-evaluate", __doc__)
    parser.add_argument(
        "model",
        nargs="?",
        default="models/shakespeare.safetensors",
        help="a .safetensors, .tflite or .onnx",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        default=["shakespeare"],
        metavar="PATH",
        help="what train.py was given: the part that it holds out is scored (default: shakespeare)",
    )
    parser.add_argument("--column", metavar="NAME", help="of tables, as for train.py")
    parser.add_argument(
        "--window",
        type=int,
        default=256,
        help="bytes that are scored together, from no context",
    )
    parser.add_argument("--limit", type=int, help="only the first LIMIT bytes of the held-out part")
    parser.add_argument(
        "--stream-bytes",
        type=int,
        metavar="N",
        help=f"loss by position in a stream of N bytes, at most {LONGEST_STREAM} (default: off)",
    )
    parser.add_argument(
        "--against", type=Path, metavar="REFERENCE", help="another model to compare with"
    )
    parser.add_argument(
        "--repeats", action="store_true", default=None, help="loss on what stood in the text before"
    )
    parser.add_argument(
        "--task", choices=TASKS, help="a recall task, in place of the loss on --data"
    )
    parser.add_argument(
        "--distances",
        type=int,
        nargs="+",
        default=list(DISTANCES),
        metavar="BYTES",
        help=f"of --task (default: {' '.join(map(str, DISTANCES))})",
    )
    parser.add_argument(
        "--examples",
        type=int,
        default=EXAMPLES,
        help="of --task, at each distance",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.window < 1 or (arguments.limit is not None and arguments.limit < 2):
        parser.error("--window wants at least 1, --limit at least 2")
    if arguments.examples < 1:
        parser.error("--examples wants at least 1")
    chosen = ("--task", "--stream-bytes", "--against", "--repeats")
    given = [n for n in chosen if getattr(arguments, n[2:].replace("-", "_")) is not None]
    if len(given) > 1:
        parser.error(f"{' and '.join(given)} exclude each other: each is an evaluation of its own")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
