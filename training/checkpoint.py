"""Files of weights: `model.safetensors` (what exporters read) and a run's `checkpoint.safetensors`.

Both are safetensors, no pickle; both are written beside their place and renamed into it, so that
a reader, or a run killed at any moment, finds the old file or the new one and never half of one.

    python training/checkpoint.py runs/mine/model.safetensors mine.safetensors   # in bf16: half

The record of how the weights were made, a .json beside the file, goes along.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from ..runtime.command import Parser, needs, run_command
from ..runtime.files import written

with needs("checkpoint", "train"):
    import ml_dtypes
    import numpy as np
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save

    from .spec import ModelSpec, SpecError, check_weights

DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16)}


def write_arrays(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save({n: np.ascontiguousarray(a) for n, a in arrays.items()}, metadata)
    with written(path) as file:  # safetensors' own save_file makes a file that is private
        file.write(data)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Every array of a safetensors file and its metadata; one line of SpecError if it is none."""
    if not path.is_file():
        found = "a directory" if path.is_dir() else "no such file"
        raise SpecError(f"{path}: {found}, wanted a safetensors file")
    try:
        with safe_open(path, framework="numpy") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise SpecError(f"{path}: not a readable safetensors file ({error})") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Of a safetensors file, whose arrays stay unread. Raises SpecError."""
    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise SpecError(f"{path}: not a readable safetensors file ({error})") from None


def save_model(
    path: Path,
    spec: ModelSpec,
    weights: dict[str, np.ndarray],
    dtype: str = "F32",
    record: dict[str, Any] | None = None,
) -> None:
    """`model.safetensors`: fp32 or bf16 weights and their spec. How they were made stands beside
    it, in `model.json`: the same weights give the same bytes, whatever their history."""
    check_weights(spec, weights, str(path))
    arrays = {n: w.astype(DTYPES[dtype]) for n, w in weights.items()}
    write_arrays(path, arrays, {"spec": spec.to_json()})
    if record is not None:
        with written(path.with_suffix(".json")) as file:
            file.write((json.dumps(record, indent=2) + "\n").encode())


def load_model(path: str | Path) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """(spec, fp32 weights) of a `model.safetensors` in fp32 or bf16. Raises SpecError."""
    path = Path(path)
    arrays, metadata = read_arrays(path)
    if "step" in metadata:
        raise SpecError(f"{path}: a checkpoint, wanted the model.safetensors beside it")
    if "spec" not in metadata:
        raise SpecError(f"{path}: no spec in its metadata, wanted a file written by training")
    try:
        spec = ModelSpec.from_json(metadata["spec"])
    except SpecError as error:
        raise SpecError(f"{path}: {error}") from None
    check_weights(spec, arrays, str(path))
    for name, array in arrays.items():
        if array.dtype not in DTYPES.values():
            raise SpecError(f"{path}: {name} is {array.dtype}, wanted float32 or bfloat16")
        if not np.isfinite(array.astype(np.float32)).all():
            raise SpecError(f"{path}: {name} has values that are not finite")
    return spec, {name: array.astype(np.float32) for name, array in arrays.items()}


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        parser = Parser("checkpoint", __doc__)
        parser.add_argument("model", type=Path, help="a model.safetensors")
        parser.add_argument("out", type=Path, help="the file to write")
        parser.add_argument("--dtype", choices=DTYPES, default="BF16", help="of its weights")
        arguments = parser.parse_args(argv)
        spec, weights = load_model(arguments.model)
        beside = arguments.model.with_suffix(".json")
        try:
            record = json.loads(beside.read_bytes()) if beside.is_file() else None
        except ValueError as error:
            raise SpecError(f"{beside}: not JSON ({error})") from None
        save_model(arguments.out, spec, weights, arguments.dtype, record)

    return run_command("checkpoint", work, SpecError)


if __name__ == "__main__":
    sys.exit(main())
