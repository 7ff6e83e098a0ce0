"""A .onnx keeps its word in plain onnxruntime: what it declares holds, a block of any length is
read, and nothing is printed."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import ONNX
from specs import noisy_weights

from tsm.export import to_onnx
from tsm.export.tolerance import check
from tsm.export.verify import PASSAGE
from tsm.runtime import Sampling, load
from tsm.runtime.artifact import open_artifact, signature
from tsm.runtime.describe import describe
from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.spec import PRESETS, ModelSpec, state_shapes

SMALL = ModelSpec(width=32, layers=2, heads=2, key_width=16, value_width=16, chunk=16, context=32)
SPECS = {
    "beam": {"mixer": "beam", "rotation": False},
    "beam that turns": {"mixer": "beam"},
    "topological": {"mixer": "topological"},
    "topological with strides": {"mixer": "topological", "stride": 4},
    "attention": {"mixer": "attention"},
    "performer": {"mixer": "performer"},
    "linformer": {"mixer": "linformer"},
    "mingru": {"mixer": "mingru"},
    "seed": {"mixer": "seed"},
    "hybrid": {"mixer": "beam,attention", "rotation": False},
    "gpt2": {"mixer": "gpt2"},
}
LENGTHS = (1, 2, 5, 64, 1024)
TEXT = bytes(np.random.default_rng(2).integers(32, 122, max(LENGTHS), dtype=np.uint8))
TYPES = {"tensor(int64)": "int64", "tensor(float)": "float32"}


def random_weights(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Weights of a model whose every part matters: none zero."""
    random = np.random.default_rng(1)
    return {
        name: (
            value if value.any() else random.standard_normal(value.shape) * value.shape[-1] ** -0.5
        ).astype(np.float32)
        for name, value in model.initialise(spec, 0).items()
    }


@pytest.fixture(scope="module", params=SPECS)
def exported(request, tmp_path_factory) -> tuple[ModelSpec, Path]:
    spec = SMALL.replace(**SPECS[request.param])
    folder = tmp_path_factory.mktemp("onnx")
    source, out = folder / "model.safetensors", folder / "model.onnx"
    save_model(source, spec, random_weights(spec))
    assert to_onnx.main([str(source), "--quantize", "none", "--out", str(out)]) == 0
    return spec, out


class Plain:
    """A session of default options, what it says on standard error, and a state of zeros."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        with tempfile.TemporaryFile() as said:
            self._said = os.dup(said.fileno())
        self.session = self._listening(lambda: onnxruntime.InferenceSession(path))
        self.zeros = {
            tensor.name: np.zeros(tensor.shape, np.float32)
            for tensor in self.session.get_inputs()
            if tensor.name != "tokens"
        }

    def said(self) -> bytes:
        return os.pread(self._said, 10_000, 0)

    def _listening(self, work):
        before = os.dup(2)
        os.dup2(self._said, 2)
        try:
            return work()
        finally:
            os.dup2(before, 2)
            os.close(before)

    def read(self, data: bytes, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name."""
        tokens = np.frombuffer(data, np.uint8).astype(np.int64)[None]
        values = self._listening(lambda: self.session.run(None, {"tokens": tokens, **state}))
        names = [tensor.name for tensor in self.session.get_outputs()]
        return dict(zip(names, values, strict=True))

    def by_bytes(self, data: bytes) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
        """Logits (1, length, vocabulary), and the state after each byte."""
        state, rows, states = self.zeros, [], []
        for i in range(len(data)):
            outputs = self.read(data[i : i + 1], state)
            state = {name: outputs[f"next_{name}"] for name in state}
            rows.append(outputs["logits"])
            states.append(state)
        return np.concatenate(rows, axis=1), states

    def greedy(self, logits: np.ndarray, state: dict[str, np.ndarray], count: int) -> bytes:
        text = b""
        while len(text) < count:
            text += bytes([logits[0, -1].argmax()])
            outputs = self.read(text[-1:], state)
            logits, state = outputs["logits"], {n: outputs[f"next_{n}"] for n in state}
        return text


def test_a_block_is_its_bytes_one_by_one(exported):
    _, path = exported
    plain = Plain(path)
    wanted, states = plain.by_bytes(TEXT)
    for length in LENGTHS:
        block = plain.read(TEXT[:length], plain.zeros)
        check("block", block["logits"], wanted[:, :length])
        after = {name: block[f"next_{name}"] for name in plain.zeros}
        for name, value in states[length - 1].items():
            check("block", after[name], value)
        text = plain.greedy(block["logits"], after, 20)
        assert text == plain.greedy(wanted[:, :length], states[length - 1], 20)
    assert plain.said() == b""


def test_declared_shapes_are_those_of_a_run(exported):
    spec, path = exported
    plain = Plain(path)
    described = signature(state_shapes(spec), spec.vocabulary, "int64")
    for length in LENGTHS[:3]:
        outputs = plain.read(TEXT[:length], plain.zeros)
        for tensor in plain.session.get_outputs():
            shape = tuple(length if size == "length" else size for size in tensor.shape)
            assert outputs[tensor.name].shape == shape, tensor.name
            assert str(outputs[tensor.name].dtype) == TYPES[tensor.type]
    sides = {"inputs": plain.session.get_inputs(), "outputs": plain.session.get_outputs()}
    graph = onnx.load(path).graph
    meanings = {tensor.name: tensor.doc_string for tensor in (*graph.input, *graph.output)}
    for side, tensors in sides.items():
        found = [
            {"name": t.name, "type": TYPES[t.type], "shape": t.shape, "meaning": meanings[t.name]}
            for t in tensors
        ]
        assert found == described[side] == describe(path)[side]
    assert open_artifact(path).initial_state == "zeros"


def test_no_weight_and_no_branch_stands_twice(exported):
    spec, path = exported
    artifact = onnx.load(path)
    graphs = list(to_onnx._graphs(artifact.graph))
    assert not any(node.op_type == "If" for graph in graphs for node in graph.node)
    stored = [tensor for graph in graphs for tensor in graph.initializer]
    large = [tensor.raw_data for tensor in stored if len(tensor.raw_data) > 1000]
    assert len(large) == len(set(large))
    assert set(model.weights(spec)) <= {tensor.name for tensor in stored}


def test_the_shipped_model_reads_blocks_as_it_reads_bytes():
    """Prompts of 1 to 1,024 bytes of a play, and the greedy text after each."""
    plain = Plain(ONNX)
    passage = (PASSAGE * 3)[: max(LENGTHS)]
    wanted, states = plain.by_bytes(passage)
    for length in LENGTHS:
        block = plain.read(passage[:length], plain.zeros)
        check("int8 artifact", block["logits"], wanted[:, :length], logits=True)
        after = {name: block[f"next_{name}"] for name in plain.zeros}
        text = plain.greedy(block["logits"], after, 100)
        assert text == plain.greedy(wanted[:, :length], states[length - 1], 100)
    assert plain.said() == b""


@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
def test_a_loop_in_the_graph_writes_what_the_runtime_does(tmp_path, quantization):
    import onnxruntime

    source, plain, looped = (tmp_path / n for n in ("m.safetensors", "plain.onnx", "loop.onnx"))
    spec = PRESETS["tiny"].replace(width=72, heads=5, value_width=16, chunk=16)
    save_model(source, spec, noisy_weights(spec))
    options = [str(source), "--quantize", quantization, "--out"]
    assert to_onnx.main([*options, str(plain)]) == 0
    assert to_onnx.main([*options, str(looped), "--loop"]) == 0
    session = onnxruntime.InferenceSession(looped)
    meta = json.loads(session.get_modelmeta().custom_metadata_map["tsm_loop"])
    zeros = {name: np.zeros(shape, np.float32) for name, shape in meta["state"].items()}

    def generate(prompt: bytes, length: int, state, stop=-1, **settings):
        inputs = {"temperature": 0.8, "top_k": 0, "top_p": 1.0, "seed": 1, **settings}
        inputs |= {"length": length, "stop_byte": stop}
        feeds = {name: np.asarray(value) for name, value in inputs.items()}
        text, *after = session.run(
            None, {"prompt": np.frombuffer(prompt, np.uint8), **feeds, **state}
        )
        return text.tobytes(), dict(zip(state, after, strict=True))

    model = load(plain, engine="onnx")
    for settings in (
        {"seed": 2**63 - 1},
        {"temperature": 0.0},
        {"temperature": 1.7, "top_k": 3},
        {"temperature": 1.2, "top_p": 0.5},
        {"temperature": 1e-300, "top_p": 1e-9, "top_k": 1000},
    ):
        stream = model.stream(Sampling(**{"seed": 1, **settings}))
        stream.feed(b"ROMEO:\n")
        wanted = bytes(stream.generate_bytes(60))
        whole, _ = generate(b"ROMEO:\n", 60, zeros, **settings)
        assert whole == wanted
        ended, _ = generate(b"ROMEO:\n", 60, zeros, stop=wanted[20], **settings)
        assert ended == wanted[: wanted.index(wanted[20]) + 1]
    first, state = generate(b"ROMEO:\n", 30, zeros, temperature=0.0)
    rest, _ = generate(first[-1:], 30, state, temperature=0.0)
    assert first + rest == generate(b"ROMEO:\n", 60, zeros, temperature=0.0)[0]
    assert session.run(None, {**_feeds(session, meta), "length": np.asarray(0)})[0].size == 0


def _feeds(session, meta):
    """Some value for each input."""
    types = {"tensor(uint8)": np.uint8, "tensor(int64)": np.int64}
    types |= {"tensor(double)": np.float64, "tensor(float)": np.float32}
    shapes = {**meta["state"], "prompt": [3]}
    return {
        each.name: np.ones(shapes.get(each.name, []), types[each.type])
        for each in session.get_inputs()
    }
