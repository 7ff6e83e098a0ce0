"""What is in a TSM artifact: verified first, then its own words, and what lies where.

    python runtime/describe.py                          # the model shipped beside this file
    tsm-describe mine-int4.onnx --json

Sizes are in bytes. Those of single tensors are known where the artifact tells their places, which
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

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime.artifact import (
        FORMAT_VERSION,
        JSON_BYTES_LIMIT,
        MARKER,
        Artifact,
        open_artifact,
    )
    from tsm.runtime.command import Parser, end
    from tsm.runtime.engines import SHIPPED_MODEL, kinds
    from tsm.runtime.native_engine import BITS, has_beams
else:
    from artifact import FORMAT_VERSION, JSON_BYTES_LIMIT, MARKER, Artifact, open_artifact
    from command import Parser, end
    from engines import SHIPPED_MODEL, kinds
    from native_engine import BITS, has_beams

FLOAT_BYTES = 4


def describe(path: str | Path) -> dict[str, Any]:
    """All that is known of the artifact at `path`. Raises ArtifactError or EngineError."""
    artifact = open_artifact(path)
    shapes = weight_shapes(artifact.spec)
    sizes = {
        name: _stored_bytes(artifact, name, shape)
        for name, shape in shapes.items()
        if name in artifact.places
    }
    weights_bytes = sum(sizes.values()) if sizes else None
    with open(artifact.path, "rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with data:
        container = "TFLite" if data[4:8] == b"TFL3" else "ONNX"
        file_bytes, metadata_bytes = len(data), _metadata_bytes(data)
        file_sha256 = hashlib.sha256(data).hexdigest()
    return {
        "path": str(path),
        "verified": True,  # else there is an error and no description
        "format": f"{container}, TSM artifact {FORMAT_VERSION}",
        "license": artifact.license,
        "quantization": artifact.quantization,
        "parameters": sum(map(math.prod, shapes.values())) or None,
        "engines": kinds(artifact),
        "prefill_block_bytes": artifact.prefill_tokens,
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
        "tensors": [
            {"name": name, "shape": list(shape), "bytes": sizes.get(name)}
            for name, shape in shapes.items()
        ],
    }


def weight_shapes(spec: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a model of beam splitters, in order of use; of another mixer, none: the table
    of every mixer is training/spec.py's, which a device does not have."""
    if not has_beams(spec):
        return {}
    width, channels = spec["width"], spec["heads"] * spec["value_width"]
    hidden = round(spec["mlp_ratio"] * width)
    layer = {
        "mixer.short": (spec["compression"], width),
        "mixer.radius": (channels,),
        "mixer.in": (3 * channels, width),
        "mixer.out": (width, channels),
        "mlp.in": (hidden, width),
        "mlp.out": (width, hidden),
    }
    ends = (spec["vocabulary"], width)
    blocks = {f"blocks.{i}.{n}": shape for i in range(spec["layers"]) for n, shape in layer.items()}
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


def shown(found: dict[str, Any]) -> str:
    """A line a fact, then the spec in one, then a table of the tensors."""

    def text(value: Any) -> str:
        if value is None:
            return "not known here"
        if isinstance(value, list):
            return ", ".join(map(str, value)) or "none here"
        if isinstance(value, dict):
            return ", ".join(f"{name} {part}" for name, part in value.items())
        return f"{value:,}" if type(value) is int else str(value)

    facts = {name: value for name, value in found.items() if name != "tensors"}
    lines = [f"{name:>19}  {text(value)}" for name, value in facts.items()]
    for tensor in found["tensors"]:
        shape = " x ".join(map(str, tensor["shape"]))
        lines.append(f"{tensor['name']:>23}  {shape:>10}  {text(tensor['bytes']):>14}")
    return "\n".join(lines)


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-describe", __doc__)
    parser.add_argument(
        "model",
        nargs="?",
        type=Path,
        default=SHIPPED_MODEL,
        help="a .tflite or .onnx artifact (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    arguments = _arguments(argv)

    def work() -> None:
        found = describe(arguments.model)
        print(json.dumps(found) if arguments.json else shown(found))

    return end("tsm-describe", work)


if __name__ == "__main__":
    sys.exit(main())
