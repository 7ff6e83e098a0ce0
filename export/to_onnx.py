"""Export: model.safetensors -> one .onnx graph for a byte or a block of any length.

    python export/to_onnx.py                                     # models/shakespeare.safetensors
    python export/to_onnx.py model.safetensors --quantize none --out model.onnx
    python export/to_onnx.py --loop --out loop.onnx              # generates by itself: see loop.py

    tokens int64 (1, length), channels, history -> logits, next_channels, next_history

`channels` and `history` are the state of the reference; another mixer has others. A text begins
with a state of zeros.

`training/model.py` is traced through PyTorch once, its length left open. Weights keep their names.
Most of the reference works on the whole block, and only its recurrence is a loop, ONNX's Scan:
two operators on a row of numbers. Mixers that have no such form are looped over token by token.
Each weight stands once, in the very bytes of the .tflite, from which runtime/native computes too.
Standard operators only.

int8 quantizes the projections alone, weights per output row and activations per token, in basic
operators. Not onnxruntime's `quantize_dynamic`: its scale is that of a whole block, so that later
bytes would change earlier logits. Both sides are uint8 around 128: on AVX2 without VNNI that
product is exact and takes 0.46 ms for 24 products of 384 x 1536, where int8 weights saturate
(0.44 ms), MatMulNBits takes 0.70 ms, and fp32 2.57 ms (one token; 64 tokens: 13, 10, 42, 21 ms).
int4 takes all projections but the head to four bits, by onnxruntime's own MatMulNBits.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from ..runtime.command import needs

with needs("tsm-to-onnx", "export-onnx"):
    import numpy as np

    from ..runtime.artifact import signature
    from ..training import model
    from ..training.kernels.onnx_scan import scan_tokens
    from ..training.mixers import MIXERS
    from ..training.spec import GPT2, ModelSpec, state_shapes
    from .command import export_main, quiet
    from .layout import ALIGNMENT_BYTES, ExportError, bits, quantize_rows

Weights = dict[str, Any]  # arrays by name
State = dict[str, Any]

METADATA_NAME = "tsm"
OPSET, IR_VERSION = 21, 10  # onnxruntime 1.18 and later
FOUR_BIT_BLOCK = 128  # columns that MatMulNBits gives one scale
MIDDLE = 128  # the uint8 that stands for 0


def main(argv: list[str] | None = None) -> int:
    return export_main("tsm-to-onnx", __doc__, ".onnx", build, argv)


def build(
    spec: ModelSpec, values: dict[str, np.ndarray], quantization: str, metadata: str
) -> bytes:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        artifact = trace(spec, values)
        if quantization != "none":
            quantize(values, bits(spec, quantization), artifact)
    artifact.metadata_props.add(key=METADATA_NAME, value=metadata)
    return serialize(artifact)


def trace(spec: ModelSpec, values: dict[str, np.ndarray]) -> Any:
    """The model's function as a graph of ONNX, its weights under their own names."""
    import array_api_compat.torch as xp
    import torch
    from onnx import helper, numpy_helper
    from onnx_ir.passes.common import DeduplicateInitializersPass, RemoveUnusedNodesPass

    class Traced(torch.nn.Module):
        def forward(self, tokens: Any, weights: tuple[Any, ...], *parts: Any) -> Any:
            named = dict(zip(values, weights, strict=True))
            state = dict(zip(state_shapes(spec), parts, strict=True))
            logits, state = forward(xp, spec, named, tokens, state)
            return logits, *state.values()

    weights = tuple(torch.from_numpy(value) for value in values.values())
    tokens = torch.zeros((1, 5), dtype=torch.int64)
    state = [torch.zeros(shape) for shape in state_shapes(spec).values()]
    # From 2: the tracer takes a length of 1 for a constant. The graph is right for 1 too.
    open_length = {1: torch.export.Dim("length", min=2)}
    shapes = open_length, (None,) * len(weights), (None,) * len(state)
    with torch.no_grad():
        program = torch.export.export(Traced(), (tokens, weights, *state), dynamic_shapes=shapes)
        traced: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["tokens", *values, *state_shapes(spec)],
            output_names=["logits", *(f"next_{name}" for name in state_shapes(spec))],
            verbose=False,
        )
    DeduplicateInitializersPass(size_limit=sys.maxsize)(traced.model)
    RemoveUnusedNodesPass()(traced.model)
    whole = traced.model_proto.graph
    for graph in _graphs(whole):
        del graph.value_info[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]  # stack traces
    stored = [numpy_helper.from_array(value, name) for name, value in values.items()]
    # Weights last: the first constant has none before it that could align it.
    constants = [*whole.initializer, *stored]
    inputs, outputs = _described(spec)
    return helper.make_model(
        helper.make_graph(whole.node, "tsm", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )


def forward(xp: Any, spec: ModelSpec, weights: Weights, tokens: Any, state: State) -> Any:
    """`model.forward`, of which a loop over the tokens is what takes no block of any length."""

    def mixer_function(mixer: str) -> Callable[..., Any]:
        if MIXERS[mixer].any_length(spec):
            return MIXERS[mixer].forward

        def mix(xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Any, state: State) -> Any:
            own = {n: value for n, value in weights.items() if n.startswith(f"{name}.")}
            step = MIXERS[mixer].forward
            return by_token(lambda w, x, s: step(xp, spec, w, name, x, s), own, x, state)

        return mix

    if spec.mixer == GPT2:
        return by_token(lambda w, x, s: model.forward(xp, spec, w, x, s), weights, tokens, state)
    return model.forward(xp, spec, weights, tokens, state, mixer_function=mixer_function)


def by_token(function: Callable[..., Any], weights: Weights, x: Any, state: State) -> Any:
    """function(weights, x, state) for one token of x after the other."""

    def step(carry: Any, token: Any, held: Any) -> Any:
        before, named = dict(zip(state, carry, strict=True)), dict(zip(weights, held, strict=True))
        y, after = function(named, token[0][:, None], before)
        return [after[name] for name in state], [y[:, 0]]

    last, [y] = scan_tokens(step, [*state.values()], [x], [*weights.values()])
    return y, dict(zip(state, last, strict=True))


def _graphs(graph: Any) -> Iterator[Any]:
    """The graph and the bodies of its loops."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _described(spec: ModelSpec) -> list[list[Any]]:
    """The inputs and the outputs with their types, shapes and meanings."""
    from onnx import TensorProto, helper

    types = {"int64": TensorProto.INT64, "float32": TensorProto.FLOAT}
    return [
        [
            helper.make_tensor_value_info(t["name"], types[t["type"]], t["shape"], t["meaning"])
            for t in tensors
        ]
        for tensors in signature(state_shapes(spec), spec.vocabulary, "int64").values()
    ]


def quantize(values: Weights, bits: dict[str, int], artifact: Any) -> None:
    """In place: MatMul with a matrix named in `bits` becomes MatMulInteger, or of 4 bits
    onnxruntime's MatMulNBits. Stored are the codes and scales of `quantize_rows`; nodes lay them
    out as these operators want them; onnxruntime does so once, as it loads."""
    from onnx import helper, numpy_helper

    graph = artifact.graph
    constants = {
        "last_axis": np.array([-1], np.int64),
        "tiny": np.array(1e-30, np.float32),  # a row of zeros stays zeros
        "levels": np.array(127, np.float32),
        "middle_rounded": np.array(MIDDLE + 0.5, np.float32),  # Cast cuts the fraction off
        "middle": np.array(MIDDLE, np.uint8),
    }
    if 4 in bits.values():
        artifact.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        constants["middles"] = np.array(0x88, np.uint8)  # of two codes a byte
    layouts, products = [], {}
    for name, count in bits.items():
        constants[name], constants[f"{name}/scale"] = quantize_rows(values[name], count)
        if count == 8:
            layouts += _eight_bit_layout(name)
            products[name] = _eight_bit_product
        else:
            layouts += _four_bit_layout(name, columns=constants[name].shape[1])
            products[name] = partial(_four_bit_product, *values[name].T.shape)
    others = [tensor for tensor in graph.initializer if tensor.name not in bits]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    _replace(graph.initializer, [*others, *stored])

    replaced = set()
    for each in _graphs(graph):
        turned = {n.output[0]: n.input[0] for n in each.node if n.op_type == "Transpose"}
        nodes = []
        for node in each.node:
            name = turned.get(node.input[1]) if node.op_type == "MatMul" else None
            if name in products:
                nodes += products[name](node.input[0], name, *node.output)
                replaced.add(name)
            elif turned.get(node.output[0]) not in products:
                nodes.append(node)
        _replace(each.node, nodes)
    _replace(graph.node, [*layouts, *graph.node])
    if replaced != bits.keys():
        raise ExportError(f"{len(replaced)} projections in the graph, wanted {len(bits)}")


def _replace(field: Any, values: list[Any]) -> None:
    del field[:]
    field.extend(values)


def _eight_bit_layout(weight: str) -> list[Any]:
    """Bytes (in, out) around 128."""
    return _nodes(
        weight,
        ("BitwiseXor", [weight, "middle"], "raised", {}),
        ("Transpose", ["raised"], "columns", {}),
        ("Div", [f"{weight}/scale", "levels"], "step", {}),
    )


def _eight_bit_product(x: str, weight: str, y: str) -> list[Any]:
    """A token's row x becomes x * 127 / max|x| + 128, rounded; the sums are scaled back."""
    uint8, fp32 = 2, 1  # TensorProto's numbers
    return _nodes(
        y,
        ("Abs", [x], "size", {}),
        ("ReduceMax", ["size", "last_axis"], "greatest", {"keepdims": 1}),
        ("Max", ["greatest", "tiny"], "range", {}),
        ("Div", ["levels", "range"], "steps", {}),
        ("Mul", [x, "steps"], "scaled", {}),
        ("Add", ["scaled", "middle_rounded"], "raised", {}),
        ("Cast", ["raised"], "whole", {"to": uint8}),
        ("MatMulInteger", ["whole", f"{weight}/columns", "middle", "middle"], "sums", {}),
        ("Cast", ["sums"], "real", {"to": fp32}),
        ("Mul", ["range", f"{weight}/step"], "unit", {}),
        ("Mul", ["real", "unit"], y, {}),
    )


def _four_bit_layout(weight: str, columns: int) -> list[Any]:
    """Bytes (out, blocks, block), and scales (out * blocks,), of which those of a row are one."""
    block = FOUR_BIT_BLOCK // 2
    blocks = -(-columns // block)
    return _nodes(
        weight,
        ("Constant", [], "missing", {"value_ints": [0, 0, 0, blocks * block - columns]}),
        ("Constant", [], "shape", {"value_ints": [0, blocks, block]}),
        ("Constant", [], "times", {"value_ints": [blocks, 1]}),
        ("Constant", [], "flat", {"value_ints": [-1]}),
        ("BitwiseXor", [weight, "middles"], "raised", {}),
        ("Pad", ["raised", "missing", "middles"], "whole", {}),
        ("Reshape", ["whole", "shape"], "codes", {}),
        ("Expand", [f"{weight}/scale", "times"], "repeated", {}),  # (blocks, out)
        ("Transpose", ["repeated"], "turned", {}),
        ("Reshape", ["turned", "flat"], "scales", {}),
    )


def _four_bit_product(into: int, out: int, x: str, weight: str, y: str) -> list[Any]:
    attributes = {"K": into, "N": out, "bits": 4, "block_size": FOUR_BIT_BLOCK}
    attributes["accuracy_level"] = 4  # activations in int8, a block of a token's row at a time
    inputs = [x, f"{weight}/codes", f"{weight}/scales"]
    return _nodes(y, ("MatMulNBits", inputs, y, {"domain": "com.microsoft", **attributes}))


def _nodes(prefix: str, *rows: tuple[str, list[str], str, dict[str, Any]]) -> list[Any]:
    """Of rows (operator, inputs, output, attributes); each output but `prefix` itself is named
    PREFIX/OUTPUT."""
    from onnx import helper

    own = {output: f"{prefix}/{output}" for _, _, output, _ in rows} | {prefix: prefix}
    made = []
    for operator, inputs, output, attributes in rows:
        names = [own.get(name, name) for name in (*inputs, output)]
        made.append(helper.make_node(operator, names[:-1], names[-1:], names[-1], **attributes))
    return made


def serialize(made: Any) -> bytes:
    """Each constant but the first starts at a cache line: the text of the one before it is as long
    as that takes."""
    constants, shift = made.graph.initializer, 1
    for tensor in constants:
        tensor.doc_string = ""
    data = b""
    while shift:  # a text may need more digits for its length than before
        data, shift = made.SerializeToString(deterministic=True), 0
        for before, tensor in pairwise(constants):
            own = tensor.SerializeToString(deterministic=True)
            place = data.index(own) + own.index(tensor.raw_data)
            gap = -(place + shift) % ALIGNMENT_BYTES
            before.doc_string += " " * gap
            shift += gap
    return data


if __name__ == "__main__":
    sys.exit(main())
