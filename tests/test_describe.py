"""The command tsm-describe.

pytest tests/test_describe.py
"""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise

import pytest
from commands import ONNX, TFLITE, output

from tsm.runtime import describe, engines
from tsm.runtime.artifact import open_artifact
from tsm.training.spec import PRESETS, ModelSpec, parameter_count, weights


def test_describe_knows_the_table_of_weights():
    found = json.loads(output("describe", "--json"))
    spec = ModelSpec.from_json(json.dumps(found["spec"]))
    assert found["parameters"] == parameter_count(spec)
    shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in found["tensors"]}
    assert shapes == {name: weight.shape for name, weight in weights(spec).items()}
    assert list(shapes) == list(weights(spec))
    assert describe.weight_shapes({**found["spec"], "mixer": "mingru"}) == {}
    memory = PRESETS["memory"]
    shapes = describe.weight_shapes(memory.to_dict())
    assert list(shapes.items()) == [(name, w.shape) for name, w in weights(memory).items()]


@pytest.mark.parametrize(
    ("path", "kinds", "container"),
    [(TFLITE, ["native", "litert"], "TFLite"), (ONNX, ["native", "onnx"], "ONNX")],
)
def test_describe_tells_what_the_engines_and_the_file_are(path, kinds, container):
    found = describe.describe(path)
    engine = engines.open_engine(open_artifact(path))
    assert found["state_bytes"] == sum(map(len, engine.get_state().values()))
    assert found["engines"] == kinds and found["format"].startswith(container)
    assert found["file_bytes"] == path.stat().st_size
    parts = [found[f"{name}_bytes"] for name in ("weights", "metadata", "graph")]
    assert sum(parts) == found["file_bytes"] and min(parts) > 1000
    assert sum(tensor["bytes"] for tensor in found["tensors"]) == found["weights_bytes"]


@pytest.mark.parametrize(
    ("path", "tokens", "length"),
    [(TFLITE, "int32", "1 (decode) or 64 (prefill)"), (ONNX, "int64", "1 or more")],
)
def test_describe_shows_inputs_and_outputs(path, tokens, length):
    lines = [line.strip() for line in output("describe", path).decode().splitlines()]
    assert f"length  {length}" in lines
    assert "initial_state  zeros" in lines
    inputs, outputs = lines.index("inputs"), lines.index("outputs")
    assert inputs < lines.index(f"tokens  {tokens} 1 x length: bytes of the text, 0 to 255")
    for name, shape in open_artifact(path).state.items():
        row = f"{name}  float32 {' x '.join(map(str, shape))}: "
        [found] = [line for line in lines if line.startswith(row)]
        assert "zeros before the first byte" in found and inputs < lines.index(found) < outputs
        assert any(line.startswith(f"next_{row}") for line in lines[outputs:])
    assert any(line.startswith("logits  float32 1 x length x 256: ") for line in lines[outputs:])


@pytest.mark.parametrize("path", [TFLITE, ONNX])
def test_the_sizes_of_tensors_are_those_between_their_places(path):
    """Each part's size is at most what lies before the next part, and nearly all of it."""
    artifact, found = open_artifact(path), describe.describe(path)
    starts = sorted(int(place) for places in artifact.offsets.values() for place in places)
    room = dict(pairwise([*starts, found["file_bytes"]]))
    for tensor in found["tensors"]:
        if tensor["name"].endswith(("in", "out", "head")):  # codes are most of it, then scales
            start = int(artifact.offsets[tensor["name"]][0])
            codes = math.prod(tensor["shape"])
            assert tensor["bytes"] == codes + 4 * tensor["shape"][0]
            assert codes <= room[start]
        elif len(artifact.offsets[tensor["name"]]) == 1:
            assert tensor["bytes"] <= room[int(artifact.offsets[tensor["name"]][0])]


def test_describe_reads_well():
    lines = output("describe").decode().splitlines()
    assert re.fullmatch(r" +parameters +9,240,288", lines[5])
    assert sum(line.split()[0].startswith("blocks.0.") for line in lines) == 6
