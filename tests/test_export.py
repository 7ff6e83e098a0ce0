"""The artifacts compute the model's function, are built of builtin parts, and come out the same."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from ai_edge_litert.interpreter import Interpreter
from specs import SMALL

from tsm.export import command, verify
from tsm.export.tolerance import TOLERANCES, ToleranceError, check
from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines import open_engine
from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.spec import parameter_count, weights

ROOT = Path(__file__).parents[1]
SPEC = SMALL
FORMATS = {"tflite": "to_tflite", "onnx": "to_onnx"}
KINDS = {"fp32": "none", "int8": "int8", "int4": "int4"}
FP32, INT8, INT4 = ([f"{kind}.tflite", f"{kind}.onnx"] for kind in KINDS)
ROWS = {kind: f"{kind} artifact" for kind in KINDS}


def random_weights(seed: int = 1) -> dict[str, np.ndarray]:
    """Weights of a model whose every part matters: none zero."""
    random = np.random.default_rng(seed)
    return {
        name: (
            value if value.any() else random.standard_normal(value.shape) * value.shape[-1] ** -0.5
        ).astype(np.float32)
        for name, value in model.initialise(SPEC, 0).items()
    }


def run_exporter(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"export/{script}.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="session")
def values() -> dict[str, np.ndarray]:
    return random_weights()


@pytest.fixture(scope="session")
def folder(tmp_path_factory, values) -> Path:
    """fp32, int8 and int4 of both formats, as `fp32.tflite` and so on."""
    folder = tmp_path_factory.mktemp("artifacts")
    save_model(folder / "model.safetensors", SPEC, values)
    for suffix, script in FORMATS.items():
        for kind, quantization in KINDS.items():
            out = folder / f"{kind}.{suffix}"
            made = run_exporter(
                script, folder / "model.safetensors", "--quantize", quantization,
                "--out", out, "--json",
            )  # fmt: skip
            assert made.returncode == 0, made.stderr
            warning = f"tsm-to-{suffix}: warning: {kind} costs "  # of random weights
            assert all(line.startswith(warning) for line in made.stderr.splitlines())
            assert json.loads(made.stdout)["file_bytes"] == out.stat().st_size
    return folder


def engine_of(path: Path):
    return open_engine(open_artifact(path))


def greedy(feed, count: int) -> bytes:
    text = bytearray([np.argmax(feed(b"ROMEO:"))])
    while len(text) < count:
        text.append(np.argmax(feed(bytes(text[-1:]))))
    return bytes(text)


def logits_of(engine, data: bytes, piece: int) -> np.ndarray:
    engine.reset()
    pieces = [engine.logits_of(data[i : i + piece]) for i in range(0, len(data), piece)]
    return np.concatenate([np.asarray(p, np.float32).reshape(-1, 256) for p in pieces])


@pytest.mark.parametrize("piece", [1, 10**6])
@pytest.mark.parametrize("name", FP32 + INT8 + INT4)
def test_artifact_is_the_oracle(folder, values, name, piece):
    """By single bytes and by blocks with a tail, with the state carried along."""
    wanted, state = verify.run_oracle(SPEC, values, verify.PASSAGE)
    engine, row = engine_of(folder / name), ROWS[name[:4]]
    check(row, logits_of(engine, verify.PASSAGE, piece), wanted, logits=True)
    for part, value in engine.get_state().items():
        found = np.frombuffer(value, np.float32).reshape(state[part].shape)
        check(row, found, state[part])


@pytest.mark.parametrize("name", FP32 + INT8 + INT4)
def test_prefill_is_a_chain_of_decodes(folder, name):
    engine = engine_of(folder / name)
    text = verify.PASSAGE[: 3 * SPEC.chunk + 5]
    by_bytes = logits_of(engine, text, 1)
    check(ROWS[name[:4]], logits_of(engine, text, len(text)), by_bytes, logits=True)


@pytest.mark.parametrize("names", [INT8, INT4])
def test_formats_agree_when_quantized(folder, names):
    """Both quantize alike: per row of weights, per token of activations."""
    one, other = (logits_of(engine_of(folder / name), verify.PASSAGE, 10**6) for name in names)
    check("int8 artifact", one, other, logits=True)


@pytest.mark.parametrize("position", [0, 5, SPEC.chunk - 1, SPEC.chunk, 2 * SPEC.chunk + 3])
@pytest.mark.parametrize("name", FP32 + INT8 + INT4)
def test_no_logit_sees_a_later_byte(folder, name, position):
    """Exactly: a scale of activations shared by a block would let later bytes leak into it."""
    engine, text = engine_of(folder / name), bytearray(verify.PASSAGE[: 3 * SPEC.chunk])
    before = logits_of(engine, bytes(text), len(text))
    text[position] ^= 0x80
    after = logits_of(engine, bytes(text), len(text))
    assert np.array_equal(before[:position], after[:position])
    assert not np.array_equal(before[position], after[position])


def test_greedy_text_is_the_same_everywhere(folder, values):
    def oracle(data: bytes) -> np.ndarray:
        nonlocal state
        logits, state = verify.run_oracle(SPEC, values, data, state)
        return logits[-1]

    state = None
    wanted = greedy(oracle, 500)
    for name in FP32:
        assert greedy(engine_of(folder / name).feed, 500) == wanted, name


@pytest.mark.parametrize("name", FP32 + INT8 + INT4)
def test_metadata(folder, name):
    artifact = open_artifact(folder / name)
    assert artifact.spec == SPEC.to_dict()
    assert artifact.quantization == KINDS[name[:4]]
    assert (artifact.license, artifact.prefill_tokens) == ("Apache-2.0", SPEC.chunk)
    assert str(ROOT).encode() not in (folder / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_tflite_has_builtin_operators_and_two_entries(folder, kind):
    interpreter = Interpreter(str(folder / f"{kind}.tflite"))
    inputs, state = ["history", "memory", "tokens"], ["next_history", "next_memory"]
    entry = {"inputs": inputs, "outputs": ["logits", *state]}
    assert interpreter.get_signature_list() == {"decode": entry, "prefill": entry}
    for operator in interpreter._get_ops_details():
        assert operator["op_name"] not in ("CUSTOM", "DELEGATE"), operator
        assert not operator["op_name"].startswith("Flex"), operator


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_has_standard_operators_only(folder, kind):
    """But in int4, whose product the standard does not have."""
    made = onnx.load(folder / f"{kind}.onnx")
    onnx.checker.check_model(made, full_check=True)
    graphs, domains, own = [made.graph], set(), set()
    for graph in graphs:
        for node in graph.node:
            domains.add(node.domain)
            own |= {node.op_type} if node.domain else set()
            graphs += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    assert own == ({"MatMulNBits"} if kind == "int4" else set())
    assert domains == ({"", "com.microsoft"} if kind == "int4" else {""})
    assert not any(tensor.external_data for graph in graphs for tensor in graph.initializer)


@pytest.mark.parametrize("name", FP32 + INT8 + INT4)
def test_each_weight_stands_once(folder, name):
    """Half the projections again would not fit in what the graphs themselves may take."""
    table, graphs_bytes = weights(SPEC), 160_000
    quantized = sum(np.prod(w.shape) for w in table.values() if w.quantized)
    assert quantized > 0.8 * parameter_count(SPEC)
    saved = {"fp32": 0, "int8": 3, "int4": 3.3}[name[:4]] * quantized
    most = 4 * parameter_count(SPEC) - saved + graphs_bytes
    assert (folder / name).stat().st_size < most


@pytest.mark.parametrize("name", INT8)
def test_only_the_projections_are_quantized(folder, name):
    shapes = {w.shape for w in weights(SPEC).values() if w.quantized}
    shapes |= {shape[::-1] for shape in shapes}
    if name.endswith("onnx"):
        stored = onnx.load(folder / name).graph.initializer
        found = [tuple(t.dims) for t in stored if t.data_type == onnx.TensorProto.UINT8 and t.dims]
    else:
        details = Interpreter(str(folder / name)).get_tensor_details()
        found = [tuple(t["shape"]) for t in details if t["dtype"] is np.int8]
    assert set(found) <= shapes
    assert len(found) == sum(w.quantized for w in weights(SPEC).values())


@pytest.mark.parametrize("suffix", FORMATS)
def test_export_gives_the_same_bytes_again(folder, tmp_path, suffix):
    out = tmp_path / f"again.{suffix}"
    made = run_exporter(FORMATS[suffix], folder / "model.safetensors", "--out", out)
    assert made.returncode == 0, made.stderr
    assert out.read_bytes() == (folder / f"int8.{suffix}").read_bytes()


def test_an_artifact_that_computes_otherwise_is_not_written(folder, tmp_path, capfd):
    """A build that returns other weights' artifact: refused, and what stood there still stands."""
    from tsm.runtime.artifact import MARKER

    other = onnx.load(folder / "fp32.onnx")
    tensor = max(other.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    changed = onnx.numpy_helper.to_array(tensor) * np.float32(1.01)
    tensor.CopyFrom(onnx.numpy_helper.from_array(changed, tensor.name))

    def build(spec, values, quantization, metadata):
        assert metadata.encode().startswith(MARKER)
        del other.metadata_props[:]
        other.metadata_props.add(key="tsm", value=metadata)
        return other.SerializeToString()

    out = tmp_path / "model.onnx"
    out.write_bytes(b"what stood there")
    arguments = [str(folder / "model.safetensors"), "--quantize", "none", "--out", str(out)]
    assert command.export_main("tsm-to-onnx", "", ".onnx", build, arguments) == 1
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "max_relative" in said
    assert "wanted at most 0.0001" in said
    assert out.read_bytes() == b"what stood there"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("script", FORMATS.values())
@pytest.mark.parametrize("bad", ["missing", "directory", "text", "no spec", "wrong spec"])
def test_bad_input_is_one_line(tmp_path, values, script, bad, capfd):
    path = tmp_path / "model.safetensors"
    if bad == "directory":
        path.mkdir()
    elif bad == "text":
        path.write_text("To be, or not to be")
    elif bad == "no spec":
        from safetensors.numpy import save_file

        save_file(values, path)
    elif bad == "wrong spec":
        from tsm.training.checkpoint import write_arrays

        write_arrays(path, values, {"spec": SPEC.replace(layers=3).to_json()})
    out = tmp_path / "out"
    main = importlib.import_module(f"tsm.export.{script}").main
    assert main([str(path), "--out", str(out)]) == 2
    said = capfd.readouterr()
    assert said.err.count("\n") == 1
    assert str(path) in said.err
    assert said.out == ""
    assert not out.exists()


@pytest.mark.parametrize("out", ["", "no such folder/model.tflite"])
def test_an_unusable_place_is_one_line(folder, tmp_path, out):
    """Refused before the work, as a script is run."""
    made = run_exporter("to_tflite", folder / "model.safetensors", "--out", tmp_path / out)
    assert made.returncode == 2
    assert made.stderr.count("\n") == 1
    assert "wanted a file in an existing folder" in made.stderr


def test_bf16_weights_are_read_exactly(tmp_path):
    import ml_dtypes

    rounded = {n: v.astype(ml_dtypes.bfloat16) for n, v in random_weights().items()}
    save_model(tmp_path / "bf16.safetensors", SPEC, random_weights(), dtype="BF16")
    from tsm.training.checkpoint import load_model

    _, found = load_model(tmp_path / "bf16.safetensors")
    for name, value in rounded.items():
        assert np.array_equal(found[name], value.astype(np.float32)), name


@pytest.mark.parametrize("row", TOLERANCES)
def test_tolerances_refuse(row):
    wanted = np.linspace(-1, 1, 512).reshape(2, 256)
    check(row, wanted, wanted, logits=True)
    for found in (wanted + 1.01 * TOLERANCES[row].max_relative, wanted * np.nan):
        with pytest.raises(ToleranceError, match=f"^{row}: max_relative .* wanted at most"):
            check(row, found, wanted)
    with pytest.raises(ToleranceError, match="shape"):
        check(row, wanted[:1], wanted)
