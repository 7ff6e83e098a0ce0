"""The .onnx that generates by itself: loop and sampler inside the graph, one call for a whole text.

    prompt uint8 (bytes), length int64, temperature float64, top_k int64, top_p float64, seed int64,
    stop_byte int64, channels, history -> text uint8 (generated), next_channels, next_history

The text is that of `generate.py` for the seed, temperature, top-k and top-p. The model's graph is
the body of an ONNX Loop: its first turn reads the prompt, every other one the byte that was drawn.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.artifact import Artifact
from ..runtime.sampling import Sampling
from ..runtime.stream import Model, load
from .layout import ExportError
from .verify import PASSAGE

_FLOAT, _UINT8, _INT64, _BOOL, _DOUBLE, _UINT64 = 1, 2, 7, 9, 11, 13  # TensorProto's numbers
_SETTINGS = [  # inputs: name, type, meaning
    ("length", _INT64, "bytes to generate, at most"),
    ("temperature", _DOUBLE, "0: the likeliest byte, always"),
    ("top_k", _INT64, "draw from so many of the likeliest bytes; 0: from all"),
    ("top_p", _DOUBLE, "draw from the likeliest bytes that reach this share, above 0, at most 1"),
    ("seed", _INT64, "the same one gives the same text"),
    ("stop_byte", _INT64, "ends the text, and is its last byte; -1: none does"),
]
_METADATA = ["spec", "quantization", "license", "source_sha256", "state", "initial_state"]
_TRIED = [(1, 0.8, 0, 1.0), (2**63 + 5, 1.1, 40, 0.9), (3, 0.0, 0, 1.0)]
# splitmix64, as runtime/sampling.py's `uniform`: the numbers of 64 bits, in two's complement.
_GOLDEN, _FIRST, _SECOND = (
    int(np.uint64(n).astype(np.int64))
    for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)
_CONSTANTS: dict[str, Any] = {
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "last": np.array([-1], np.int64),
    "vocabulary": np.array([256], np.int64),
    "true": np.array(True),
    "golden": np.array([_GOLDEN], np.int64),
    "first": np.array([_FIRST], np.int64),
    "second": np.array([_SECOND], np.int64),
    "ulp": np.array([2.0**-53]),
    "axis": np.array(0, np.int64),
    "ranks": np.arange(256),
    "row": np.array([1, -1], np.int64),
    "none": np.array([0.0]),
    "unit": np.array([1.0]),
    **{f"shift{n}": np.array([n], np.uint64) for n in (30, 27, 31, 11)},
}


def generating(path: Path) -> bytes:
    """The file of an artifact that generates by itself. Raises ExportError where it writes another
    text than the runtime."""
    with load(path, engine="onnx") as model:
        data = looped(path.read_bytes(), model.engine.artifact)
        check_loop(data, model)
    return data


def looped(data: bytes, artifact: Artifact) -> bytes:
    """The file of an artifact, generating by itself."""
    import onnx
    from onnx import helper, numpy_helper

    plain = onnx.load_from_string(data)
    graph, state = plain.graph, artifact.state
    fixed = {tensor.name for tensor in graph.initializer} | {""}
    outside, inside = [], []
    for node in graph.node:  # what depends on no input is computed once, as the file is loaded
        if {*node.input, *_captured(node)} <= fixed:
            outside.append(node)
            fixed |= {*node.output}
        else:
            inside.append(node)
    # Names within a loop may not be those around it.
    _rename(inside, {"tokens": "loop/read", **{n: f"loop/{n}" for n in state}})
    _rename(inside, {f"next_{n}": f"loop/next_{n}" for n in state})
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [*inside, *_sampler()],
        "one_byte",
        [
            info("loop/turn", _INT64, []),
            info("loop/go_on", _BOOL, []),
            info("loop/read", _INT64, [1, "read"]),
            *(info(f"loop/{name}", _FLOAT, shape) for name, shape in state.items()),
        ],
        [
            info("loop/goes_on", _BOOL, []),
            info("loop/tokens", _INT64, [1, 1]),
            *(info(f"loop/next_{name}", _FLOAT, shape) for name, shape in state.items()),
            info("loop/byte", _UINT8, [1]),
        ],
    )
    after = ["loop/last_tokens", *(f"next_{name}" for name in state), "loop/bytes"]
    nodes = [
        *outside,
        helper.make_node("Cast", ["prompt"], ["loop/whole"], to=_INT64),
        helper.make_node("Reshape", ["loop/whole", "loop/row"], ["loop/prompt"]),
        helper.make_node("Loop", ["length", "loop/true", "loop/prompt", *state], after, body=body),
        helper.make_node("Reshape", ["loop/bytes", "loop/last"], ["text"]),
    ]
    begins = "zeros before a text, then next_{} of the call before"
    inputs = [
        info("prompt", _UINT8, ["bytes"], "what to read, one byte at least"),
        *(info(name, kind, [], meaning) for name, kind, meaning in _SETTINGS),
        *(info(name, _FLOAT, shape, begins.format(name)) for name, shape in state.items()),
    ]
    unread = (
        "what was generated; the state has not read its last byte: begin the next prompt with it"
    )
    outputs = [
        info("text", _UINT8, ["generated"], unread),
        *(info(f"next_{name}", _FLOAT, shape) for name, shape in state.items()),
    ]
    own = [numpy_helper.from_array(v, f"loop/{n}") for n, v in _CONSTANTS.items()]
    whole = helper.make_model(
        helper.make_graph(nodes, "tsm_loop", inputs, outputs, [*graph.initializer, *own]),
        opset_imports=plain.opset_import,
        ir_version=plain.ir_version,
    )
    said = {name: getattr(artifact, name) for name in _METADATA}
    whole.metadata_props.add(key="tsm_loop", value=json.dumps(said))
    return whole.SerializeToString(deterministic=True)


def _captured(node: Any) -> set[str]:
    """The names that the bodies of a node take from around it."""
    names: set[str] = set()
    for attribute in node.attribute:
        if attribute.HasField("g"):
            known = {value.name for value in attribute.g.input}
            known |= {tensor.name for tensor in attribute.g.initializer}
            for inner in attribute.g.node:
                names |= ({*inner.input} | _captured(inner)) - known
                known |= {*inner.output}
    return names


def _rename(nodes: Any, names: dict[str, str]) -> None:
    """In place, in the bodies of nodes too."""
    for node in nodes:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g.node, names)


def _sampler() -> list[Any]:
    """From `logits` to loop/byte: runtime/sampling.py's `draw`, of temperature, top-k and top-p."""
    from onnx import helper

    rows: list[tuple[str, str, str, dict[str, Any]]] = [
        # The last byte's logits, likeliest first, equals by value.
        ("Gather", "logits last", "of_last", {"axis": 1}),
        ("Reshape", "of_last last", "flat", {}),
        ("Cast", "flat", "exact", {"to": _DOUBLE}),
        ("TopK", "exact vocabulary", "sorted order", {}),
        ("Gather", "sorted zero", "best", {}),
        # exp((logit - best) / temperature), of which top_k count.
        ("Equal", "temperature none", "greedy", {}),
        ("Where", "greedy unit temperature", "divisor", {}),
        ("Sub", "sorted best", "below", {}),
        ("Div", "below divisor", "powers", {}),
        ("Exp", "powers", "weights", {}),
        ("Equal", "top_k zero", "unlimited", {}),
        ("Where", "unlimited vocabulary top_k", "asked", {}),
        ("Where", "greedy one asked", "most", {}),
        ("Min", "most vocabulary", "count", {}),
        ("Less", "ranks count", "counts", {}),
        ("Where", "counts weights none", "kept", {}),
        ("CumSum", "kept axis", "sums", {}),
        # top_p: up to the first sum that reaches its share of all.
        ("Gather", "sums last", "total", {}),
        ("Mul", "total top_p", "share", {}),
        ("Less", "sums share", "short", {}),
        ("Cast", "short", "shorts", {"to": _INT64}),
        ("ReduceSum", "shorts", "reaching", {"keepdims": 0}),
        ("Reshape", "reaching one", "end", {}),  # the index of the last that is kept
        ("Gather", "sums end", "all", {}),
        # The first sum beyond a random share of theirs.
        ("Add", "turn one", "index", {}),
        ("Mul", "index golden", "steps", {}),
        ("Add", "seed steps", "z0", {}),
        *_mixed("z0", 30, "z1", "first"),
        *_mixed("z1", 27, "z2", "second"),
        *_mixed("z2", 31, "z3", ""),
        ("Cast", "z3", "bits", {"to": _UINT64}),
        ("BitShift", "bits shift11", "high", {"direction": "RIGHT"}),
        ("Cast", "high", "real", {"to": _DOUBLE}),
        ("Mul", "real ulp", "uniform", {}),
        ("Mul", "uniform all", "goal", {}),
        ("LessOrEqual", "sums goal", "passed", {}),
        ("Cast", "passed", "passes", {"to": _INT64}),
        ("ReduceSum", "passes", "beyond", {"keepdims": 0}),
        ("Min", "beyond end", "rank", {}),
        ("Gather", "order rank", "token", {}),
        ("Cast", "token", "byte", {"to": _UINT8}),
        ("Reshape", "token row", "tokens", {}),
        ("Equal", "token stop_byte", "stops", {}),
        ("Not", "stops", "goes", {}),
        ("Squeeze", "goes", "goes_on", {}),
    ]
    settings = {"logits", *(name for name, _, _ in _SETTINGS)}

    def named(names: str) -> list[str]:
        return [name if name in settings else f"loop/{name}" for name in names.split()]

    return [helper.make_node(op, named(ins), named(outs), **more) for op, ins, outs, more in rows]


def _mixed(z: str, shift: int, out: str, factor: str) -> list[tuple[str, str, str, dict[str, Any]]]:
    """out = (z ^ (z >> shift)) * factor, of 64 bits."""
    return [
        ("Cast", z, f"{z}_bits", {"to": _UINT64}),
        ("BitShift", f"{z}_bits shift{shift}", f"{z}_shifted", {"direction": "RIGHT"}),
        ("Cast", f"{z}_shifted", f"{z}_signed", {"to": _INT64}),
        ("BitwiseXor", f"{z} {z}_signed", f"{z}_mixed" if factor else out, {}),
        *([("Mul", f"{z}_mixed {factor}", out, {})] if factor else []),
    ]


def check_loop(data: bytes, model: Model) -> None:
    """Raises ExportError unless the file writes what the runtime does."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    for seed, temperature, top_k, top_p in _TRIED:
        sampling = Sampling(seed=seed, temperature=temperature, top_k=top_k, top_p=top_p)
        stream = model.stream(sampling)
        stream.feed(PASSAGE)
        wanted = bytes(stream.generate_bytes(32))
        shapes = model.engine.artifact.state
        state = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
        settings = {"length": np.int64(32), "temperature": np.float64(temperature)}
        settings |= {"top_k": np.int64(top_k), "top_p": np.float64(top_p)}
        settings |= {"seed": np.uint64(seed).astype(np.int64), "stop_byte": np.int64(-1)}
        feeds = {"prompt": np.frombuffer(PASSAGE, np.uint8), **state}
        feeds |= {name: np.asarray(value) for name, value in settings.items()}
        found = np.asarray(session.run(["text"], feeds)[0]).tobytes()
        if found != wanted:
            raise ExportError(f"the loop writes {found!r}, the runtime {wanted!r}")
