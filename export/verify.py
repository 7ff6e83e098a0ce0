"""What both exporters share: read the weights, and let no artifact out that computes otherwise.

The artifact is written beside its place, opened by the runtime's own engine (what is verified is
what users run), held against the NumPy oracle of `training/model.py` on a passage of text, block
by block and byte by byte, and renamed into its place only if it is within `tolerance.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import array_api_compat.numpy as np_xp
import numpy as np

from tsm.export.silent import without_silent
from tsm.export.tolerance import ToleranceError, check
from tsm.runtime import native_engine
from tsm.runtime.artifact import metadata_json, open_artifact, seal
from tsm.runtime.command import Parser, end
from tsm.runtime.engines import Engine, kinds, open_engine
from tsm.training import model
from tsm.training.checkpoint import load_model
from tsm.training.spec import ModelSpec, SpecError, parameter_count, state_shapes, weights

# As You Like It, act 2, scene 7 (public domain), set as the corpus sets its plays.
PASSAGE = b"""JAQUES:
All the world's a stage,
And all the men and women merely players:
They have their exits and their entrances;
And one man in his time plays many parts,
His acts being seven ages. At first the infant,
Mewling and puking in the nurse's arms.
And then the whining school-boy, with his satchel
And shining morning face, creeping like snail
Unwillingly to school.
"""
GREEDY_BYTES = 64
NO_PLACE = "0" * 12  # an offset in a file, in digits: the width does not depend on its value
ALIGNMENT_BYTES = 64  # of a cache line: a vector register then loads from one, not two

Weights = dict[str, np.ndarray]
Build = Callable[[ModelSpec, Weights, str, str], bytes]


class ExportError(ValueError):
    """Weights that cannot become an artifact: found and wanted, in one line."""


def bits(spec: ModelSpec, quantization: str) -> dict[str, int]:
    """The matrices that are stored in few bits, and in how many: in int4 all but the head."""
    names = [name for name, weight in weights(spec).items() if weight.quantized]
    if quantization == "none":
        return {}
    return {n: 4 if quantization == "int4" and n != "head" else 8 for n in names}


# What ai-edge-quantizer takes a row for whose values are all smaller. Training has such rows: what
# a weight decay has shrunk since its unit went silent.
LEAST_OF_A_ROW = np.float32(1e-9)


def few_bits(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (out, in) as both formats store it and runtime/native reads it: bytes (out, in), or
    of int4 two codes a byte, the first in the low half; and scales (out,)."""
    greatest = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(matrix).max(axis=1), LEAST_OF_A_ROW) / np.float32(greatest)
    codes = np.rint(matrix / scales[:, None]).astype(np.int8)
    if bits == 4:
        codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
        codes = (codes[:, 0::2] & 15) | codes[:, 1::2] << 4
    return codes.view(np.uint8), scales


def pieces(spec: ModelSpec, values: Weights, quantization: str) -> dict[str, list[bytes]]:
    """Each weight as runtime/native wants to find it in the file: fp32 whole, the short
    convolution tap by tap, a projection's codes and scales. Empty: not a model that it computes."""
    if not native_engine.computes(asdict(spec), quantization):
        return {}
    count, made = bits(spec, quantization), {}
    for name, value in values.items():
        if name in count:
            parts = few_bits(value, count[name])
        else:
            parts = value if name.endswith(".short") else [value]
        made[name] = [np.ascontiguousarray(part).tobytes() for part in parts]
    return made


def export_main(
    name: str,
    about: str | None,
    suffix: str,
    build: Build,
    argv: Any,
    prefill_tokens: Callable[[ModelSpec], int] = lambda spec: spec.chunk,
) -> int:
    """The command line of an exporter. `build` makes the file's bytes from (spec, weights,
    quantization, metadata), still to be sealed."""
    arguments = _parse(name, about, suffix, argv)

    def work() -> None:
        how = arguments.quantize, arguments.keep_silent, build, prefill_tokens
        found = export(arguments.model, arguments.out, *how)
        print(json.dumps(found) if arguments.json else _shown(found))

    try:
        return end(name, work, ExportError, SpecError)
    except ToleranceError as error:
        print(f"{name}: {arguments.out}: not written: {error}", file=sys.stderr)
        return 1


def _shown(found: dict[str, Any]) -> str:
    lines = [
        f"{found['artifact']}: {found['file_bytes']:,} bytes, {found['quantization']}, verified"
    ]
    if found["parameters"] < found["parameters_given"]:
        counts = f"{found['parameters']:,} of {found['parameters_given']:,}"
        lines.append(f"  {counts} parameters: training has silenced the units of the others")
    for entry in ("prefill", "decode"):
        figures = ", ".join(f"{n} {v:.3g}" for n, v in found[entry].items())
        lines.append(f"  {entry} against the oracle: {figures}")
    same = f"{found['greedy_same_bytes']} of {GREEDY_BYTES}"
    return "\n".join([*lines, f"  greedy bytes as the oracle's: {same}"])


def export(
    source: Path,
    out: Path,
    quantization: str,
    keep_silent: bool,
    build: Build,
    prefill_tokens: Callable[[ModelSpec], int],
) -> dict[str, Any]:
    """Writes the artifact of the weights at `source` to `out`, verified; returns the figures."""
    given = spec, weights = load_model(source)
    if not keep_silent:
        spec, weights = without_silent(*given)
        found, wanted = run_oracle(spec, weights, PASSAGE)[0], run_oracle(*given, PASSAGE)[0]
        try:
            check("silent", found, wanted, logits=True)
        except ToleranceError as error:
            raise ToleranceError(f"{error}; --keep-silent leaves no unit out") from None
    if out.is_dir() or not out.parent.is_dir():
        raise ExportError(f"{out}: wanted a file in an existing folder")
    wanted = pieces(spec, weights, quantization)
    unknown = {name: [NO_PLACE] * len(parts) for name, parts in wanted.items()}
    metadata = metadata_json(
        {
            "places": unknown,
            "spec": asdict(spec),
            "quantization": quantization,
            "license": "Apache-2.0",
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "prefill_tokens": prefill_tokens(spec),
            "state": {n: list(shape) for n, shape in state_shapes(spec).items()},
        }
    )
    data = build(spec, weights, quantization, metadata)
    data = seal(tell_places(data, wanted, unknown) if wanted else data)
    beside = out.with_name(out.name + ".partial")
    try:
        beside.write_bytes(data)
        figures = verify(beside, spec, weights)
        os.replace(beside, out)
    finally:
        beside.unlink(missing_ok=True)
    counts = {"parameters": parameter_count(spec), "parameters_given": parameter_count(given[0])}
    return {"artifact": str(out), "file_bytes": len(data), **counts, **figures}


def tell_places(
    data: bytes, wanted: dict[str, list[bytes]], unknown: dict[str, list[str]]
) -> bytes:
    """`data` with the offset of each piece in it in place of NO_PLACE."""
    places = {name: [_place(data, part, name) for part in parts] for name, parts in wanted.items()}
    before, after = (json.dumps(x, sort_keys=True).encode() for x in (unknown, places))
    return data.replace(before, after, 1)


def _place(data: bytes, part: bytes, name: str) -> str:
    """The first one that fp32 can be read from."""
    place = data.find(part)
    while place % 4 and place >= 0:
        place = data.find(part, place + 1)
    if place < 0:
        raise ExportError(f"{name}: not found in the file, wanted it as it was given")
    return f"{place:0{len(NO_PLACE)}d}"


def verify(path: Path, spec: ModelSpec, weights: Weights) -> dict[str, Any]:
    """Holds the artifact against the oracle, on every engine that is here; the figures are those
    of the best. Raises ToleranceError."""
    artifact = open_artifact(path)
    found = [verify_engine(open_engine(artifact, kind), spec, weights) for kind in kinds(artifact)]
    return found[0] if found else verify_engine(open_engine(artifact), spec, weights)


def verify_engine(engine: Engine, spec: ModelSpec, weights: Weights) -> dict[str, Any]:
    artifact = engine.artifact
    row = (
        "fp32 artifact" if artifact.quantization == "none" else f"{artifact.quantization} artifact"
    )
    wanted, state = run_oracle(spec, weights, PASSAGE)

    figures = {"prefill": check(row, _rows(engine.logits_of(PASSAGE)), wanted, logits=True)}
    for name in state:
        remembered = np.frombuffer(engine.get_state()[name], np.float32)
        check(row, remembered.reshape(state[name].shape), state[name])
    engine.reset()
    by_bytes = [engine.logits_of(PASSAGE[i : i + 1]) for i in range(len(PASSAGE))]
    figures["decode"] = check(
        row, np.concatenate([_rows(r) for r in by_bytes]), wanted, logits=True
    )

    continued = greedy(engine, PASSAGE, GREEDY_BYTES)
    oracle = greedy_oracle(spec, weights, PASSAGE, GREEDY_BYTES)
    same = next((i for i in range(GREEDY_BYTES) if continued[i] != oracle[i]), GREEDY_BYTES)
    return {"quantization": artifact.quantization, **figures, "greedy_same_bytes": same}


def run_oracle(
    spec: ModelSpec, weights: Weights, data: bytes, state: Any = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(logits (len(data), vocabulary), state) by NumPy."""
    tokens = np.frombuffer(data, np.uint8).astype(np.int64)[None]
    state = state or model.initial_state(np_xp, spec)
    logits, state = model.forward(np_xp, spec, weights, tokens, state)
    return logits[0], state


def greedy_oracle(spec: ModelSpec, weights: Weights, prompt: bytes, count: int) -> bytes:
    logits, state = run_oracle(spec, weights, prompt)
    made = bytearray([logits[-1].argmax()])
    while len(made) < count:
        logits, state = run_oracle(spec, weights, bytes(made[-1:]), state)
        made.append(logits[-1].argmax())
    return bytes(made)


def greedy(engine: Engine, prompt: bytes, count: int) -> bytes:
    engine.reset()
    made = bytearray([np.argmax(engine.feed(prompt))])
    while len(made) < count:
        made.append(np.argmax(engine.feed(bytes(made[-1:]))))
    return bytes(made)


def _rows(logits: Any) -> np.ndarray:
    return np.asarray(logits, np.float32).reshape(-1, 256)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters log to the process's own streams, past Python's; errors they raise still show."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(stream) for stream in (1, 2)]
    with open(os.devnull, "w") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)


def _parse(name: str, about: str | None, suffix: str, argv: Any) -> argparse.Namespace:
    parser = Parser(name, about).whole()
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        default=Path("models/shakespeare.safetensors"),
        help="model.safetensors written by training (default: %(default)s)",
    )
    parser.add_argument(
        "--quantize", choices=["none", "int8", "int4"], default="int8", help="default: int8"
    )
    parser.add_argument(
        "--out", type=Path, help=f"default: runtime/MODEL-int8{suffix}; -int4, -fp32"
    )
    parser.add_argument(
        "--keep-silent", action="store_true", help="leave no unit out, those of no effect either"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        kind = "fp32" if arguments.quantize == "none" else arguments.quantize
        arguments.out = Path("runtime") / f"{arguments.model.stem}-{kind}{suffix}"
    return arguments
