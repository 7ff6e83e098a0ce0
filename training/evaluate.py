"""Nats per byte of a model on the held-out 10% of a corpus.

    python training/evaluate.py models/shakespeare.safetensors --data shakespeare
    python training/evaluate.py runtime/shakespeare-int8.tflite

fresh: every window of 256 bytes starts without context (nanoGPT's protocol, but over the whole
split, so that nothing is drawn at random). streaming: one pass with the state carried along.
A .tflite or .onnx is run by the device's own engine, byte for byte what a user gets.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from tsm.runtime.artifact import ArtifactError, open_artifact
from tsm.runtime.engines import EngineError, open_engine
from tsm.training import model
from tsm.training.checkpoint import load_model
from tsm.training.data import DataError, fresh_windows, open_corpus
from tsm.training.spec import SpecError

STREAM_BLOCK = 1024  # bytes a call when streaming; does not change the result
ROWS = 16  # fresh windows a call

# (tokens (rows, L), state or None) -> (logits (rows, L, vocabulary), state)
Scorer = Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]


def main(argv: list[str] | None = None) -> int:
    arguments = _parse(argv)
    try:
        corpus = open_corpus(arguments.data, arguments.window)
        found = evaluate(arguments.model, corpus.validation[: arguments.limit], arguments.window)
    except (ArtifactError, DataError, EngineError, SpecError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if arguments.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            shown = f"{value:.4f}" if isinstance(value, float) else value
            print(f"{name:>24}  {shown}")
    return 0


def evaluate(path: str | Path, data: np.ndarray, window: int) -> dict[str, Any]:
    """Both figures of the model at `path` over all of `data` (bytes)."""
    score = scorer(path)
    return {
        "model": str(path),
        "bytes": len(data),
        "window": window,
        "fresh_nats_per_byte": _fresh(score, data, window),
        "streaming_nats_per_byte": _streaming(score, data),
    }


def scorer(path: str | Path) -> Scorer:
    """The function that a model file computes, whatever its format."""
    if Path(path).suffix not in (".tflite", ".onnx"):
        import array_api_compat.torch as xp
        import torch

        spec, arrays = load_model(path)
        weights = {name: torch.from_numpy(array) for name, array in arrays.items()}

        @torch.inference_mode()
        def score(tokens: np.ndarray, state: Any) -> tuple[np.ndarray, Any]:
            state = state or model.initial_state(xp, spec, len(tokens))
            logits, state = model.forward(xp, spec, weights, torch.from_numpy(tokens), state)
            return logits.numpy(), state

        return score

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


def losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Nats of each target (rows, L), in double precision."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]
    return np.log(np.exp(shifted).sum(axis=-1)) - chosen


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
    tokens, state, total = np.asarray(data).astype(np.int64)[None], None, 0.0
    starts = range(0, len(data) - 1, STREAM_BLOCK)
    for start in track(starts, "streaming", disable=not sys.stderr.isatty()):
        piece = tokens[:, start : start + STREAM_BLOCK + 1]
        logits, state = score(piece[:, :-1], state)
        total += losses(logits, piece[:, 1:]).sum()
    return float(total / (len(data) - 1))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model",
        nargs="?",
        default="models/shakespeare.safetensors",
        help="a .safetensors, .tflite or .onnx (default: %(default)s)",
    )
    parser.add_argument(
        "--data", default="shakespeare", help="a file, or `shakespeare` (default: %(default)s)"
    )
    parser.add_argument("--window", type=int, default=256, help="bytes (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="only the first LIMIT bytes of the held-out part")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.window < 1 or (arguments.limit is not None and arguments.limit < 2):
        parser.error("--window wants at least 1, --limit at least 2")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
