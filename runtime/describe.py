"""What is in a TSM artifact: verified first, its SHA-256 too, then its own words, and what lies
where.

    python runtime/describe.py                          # the model shipped beside this file
    tsm-describe mine-int4.onnx --json

Sizes are in bytes. Those of single tensors are known where the artifact tells their offsets, which
is for the native engine; graph_bytes is then what is left: graph and alignment.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import sys
from collections.abc import Sequence
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from .artifact import (
    FORMAT_VERSION,
    JSON_BYTES_LIMIT,
    MARKER,
    Artifact,
    check_sha256,
    open_artifact,
    signature,
)
from .command import Parser, open_output, run_command
from .engines import SHIPPED_MODEL, VOCABULARY, kinds
from .engines.native import BITS, has_known_mixers, layer_mixers
from .text import printable

FLOAT_BYTES = 4


def describe(path: str | Path) -> dict[str, Any]:
    """All that is known of the artifact at `path`. Raises ArtifactError or EngineError."""
    artifact = open_artifact(path)
    check_sha256(artifact)
    shapes = weight_shapes(artifact.spec)
    sizes = {
        name: _stored_bytes(artifact, name, shape)
        for name, shape in shapes.items()
        if name in artifact.offsets
    }
    weights_bytes = sum(sizes.values()) if sizes else None
    with open(artifact.path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with data:
        tflite = data[4:8] == b"TFL3"
        file_bytes, metadata_bytes = len(data), _metadata_bytes(data)
        file_sha256 = hashlib.sha256(data).hexdigest()
    return {
        "path": str(path),
        "verified": ["length", "CRC-32", "SHA-256"],  # else there is an error and no description
        "format": f"{'TFLite' if tflite else 'ONNX'}, TSM artifact {FORMAT_VERSION}",
        "license": artifact.license,
        "quantization": artifact.quantization,
        "parameters": sum(map(math.prod, shapes.values())) or None,
        "engines": kinds(artifact),
        "prefill_block_bytes": artifact.prefill_tokens,
        "initial_state": artifact.initial_state,
        "state_bytes": FLOAT_BYTES * sum(map(math.prod, artifact.state.values())),
        "file_bytes": file_bytes,
        "weights_bytes": weights_bytes,
        "metadata_bytes": metadata_bytes,
        "graph_bytes": weights_bytes and file_bytes - weights_bytes - metadata_bytes,
        "sealed_sha256": artifact.sha256,  # of the file with these digits in it set to 0
        "file_sha256": file_sha256,  # what sha256sum prints
        "source_sha256": artifact.source_sha256,
        "state": artifact.state,
        "spec": artifact.spec,
        "length": f"1 (decode) or {artifact.prefill_tokens} (prefill)" if tflite else "1 or more",
        **signature(
            artifact.state,
            artifact.spec.get("vocabulary", VOCABULARY),
            "int32" if tflite else "int64",
        ),
        "tensors": [
            {"name": name, "shape": list(shape), "bytes": sizes.get(name)}
            for name, shape in shapes.items()
        ],
    }


def weight_shapes(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a model of beam splitters, in order of use; of another mixer, none: the table
    of every mixer is training/spec.py's, which a device does not have."""
    if not has_known_mixers(spec):
        return {}
    width, heads, taps = spec["width"], spec["heads"], spec["compression"]
    channels, hidden = heads * spec["value_width"], round(spec["mlp_ratio"] * width)
    projected = 2 * heads * spec["key_width"] + channels  # queries, keys and values
    mixers = {
        "beam": {"short": (taps, width), "radius": (channels,), "in": (3 * channels, width)},
        "addressed": {
            "short": (taps, projected),
            "encoder": (3 * heads, width),
            **{f"encoder.{angle}": (heads,) for angle in ("delta", "radius", "decay")},
            "in": (projected + channels, width),
        },
    }
    blocks = {}
    for i, mixer in enumerate(layer_mixers(spec)):
        weights = {**mixers[mixer], "out": (width, channels)}
        blocks |= {f"blocks.{i}.mixer.{name}": shape for name, shape in weights.items()}
        blocks[f"blocks.{i}.mlp.in"] = (hidden, width)
        blocks[f"blocks.{i}.mlp.out"] = (width, hidden)
    ends = (spec["vocabulary"], width)
    return {"embed": ends, **blocks, "head": ends}


def _stored_bytes(artifact: Artifact, name: str, shape: tuple[int, ...]) -> int:
    """Codes and one scale a row of a projection, else floats."""
    if not name.endswith((".in", ".out", "head")):
        return FLOAT_BYTES * math.prod(shape)
    bits = 8 if name == "head" else BITS[artifact.quantization]
    return math.prod(shape) * bits // 8 + FLOAT_BYTES * shape[0]


def _metadata_bytes(data: mmap.mmap) -> int:
    """The length of the JSON object in a verified file."""
    start = data.find(MARKER)
    text = data[start : start + JSON_BYTES_LIMIT].decode("utf-8", "replace")
    return json.JSONDecoder().raw_decode(text)[1]


def shown(facts: dict[str, Any]) -> str:
    """A line a fact, then the spec in one, then tables of the inputs and outputs, and of the
    weights."""

    def text(value: Any) -> str:
        if value is None:
            return "not known here"
        if isinstance(value, list):
            return ", ".join(map(str, value)) or "none here"
        if isinstance(value, dict):
            return ", ".join(f"{name} {part}" for name, part in value.items())
        return f"{value:,}" if type(value) is int else str(value)

    tables = ("inputs", "outputs", "tensors")
    single_facts = {name: value for name, value in facts.items() if name not in tables}
    lines = [f"{name:>19}  {text(value)}" for name, value in single_facts.items()]
    for side in ("inputs", "outputs"):
        lines.append(f"{side:>19}")
        for tensor in facts[side]:
            shape = " x ".join(map(str, tensor["shape"]))
            lines.append(f"{tensor['name']:>23}  {tensor['type']} {shape}: {tensor['meaning']}")
    for tensor in facts["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        lines.append(f"{tensor['name']:>23}  {shape:>10}  {text(tensor['bytes']):>14}")
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-describe", __doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, default=SHIPPED_MODEL, help="a .tflite or .onnx artifact"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def _run(arguments: Namespace) -> None:
    write = open_output()
    facts = describe(arguments.model)
    text = json.dumps(facts) if arguments.json else shown(facts)
    write((printable(text) if sys.stdout.isatty() else text) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command("tsm-describe", lambda: _run(_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
