"""Export: model.safetensors -> one .onnx graph for a byte or a block of any length.

    python export/to_onnx.py                                     # models/shakespeare.safetensors
    python export/to_onnx.py model.safetensors --quantize none --out model.onnx

    tokens int64 (1, length), channels, history -> logits, next_channels, next_history

`channels` and `history` are the state of the reference; another mixer has others.

`training/model.py` is traced through PyTorch in both its forms, the step and the chunk, which
become the branches of one `If` on the length; each weight stands once, outside of them. Standard
operators only.

int8 quantizes the projections alone, weights per output row and activations per token, in basic
operators. Not onnxruntime's `quantize_dynamic`: its scale is that of a whole block, so that later
bytes would change earlier logits. Both sides are uint8 around 128: on AVX2 without VNNI that
product is exact and takes 0.46 ms for 24 products of 384 x 1536, where int8 weights saturate
(0.44 ms), MatMulNBits takes 0.70 ms, and fp32 2.57 ms (one token; 64 tokens: 13, 10, 42, 21 ms).
int4 takes all projections but the head to four bits, by onnxruntime's own MatMulNBits.
"""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import numpy as np

from tsm.export.verify import ExportError, bits, export_main, quiet
from tsm.training import model
from tsm.training.spec import ModelSpec, state_shapes

METADATA_NAME = "tsm"
OPSET, IR_VERSION = 21, 10  # onnxruntime 1.18 and later
ANY_LENGTH = {"topological", "attention", "performer"}  # mixers that take a block of any length
FOUR_BIT_BLOCK = 128  # columns that MatMulNBits gives one scale
MIDDLE = 128  # the uint8 that stands for 0


def main(argv: list[str] | None = None) -> int:
    return export_main("to_onnx", __doc__, ".onnx", build, argv, prefill_tokens)


def prefill_tokens(spec: ModelSpec) -> int:
    """1: the graph has no form for a block. The other mixers cut it into pieces of their own,
    whose number PyTorch's tracer cannot leave open."""
    return spec.chunk if set(spec.layer_mixers) <= ANY_LENGTH else 1


def build(
    spec: ModelSpec, values: dict[str, np.ndarray], quantization: str, metadata: str
) -> bytes:
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        branches = {"decode": trace(spec, values, 1)}
        if prefill_tokens(spec) > 1:
            branches["prefill"] = trace(spec, values, None)
        made = join(spec, branches)
        if quantization != "none":
            quantize(values, bits(spec, quantization), made)
    made.metadata_props.add(key=METADATA_NAME, value=metadata)
    return made.SerializeToString(deterministic=True)


def trace(spec: ModelSpec, values: dict[str, np.ndarray], length: int | None) -> Any:
    """The ONNX graph of the model's function for `length` tokens, or for any number from 2."""
    import array_api_compat.torch as xp
    import torch

    class Traced(torch.nn.Module):
        def forward(self, tokens: Any, *parts: Any) -> Any:
            one_chunk = copy.copy(spec)  # of symbolic length: a block is one chunk
            object.__setattr__(one_chunk, "chunk", tokens.shape[1])
            state = dict(zip(state_shapes(spec), parts, strict=True))
            logits, state = model.forward(xp, one_chunk, held, tokens, state)
            return logits, *state.values()

    held = {name: torch.from_numpy(value) for name, value in values.items()}
    tokens = torch.zeros((1, length or 5), dtype=torch.int64)
    state = [torch.zeros(shape) for shape in state_shapes(spec).values()]
    dynamic = None if length else ({1: torch.export.Dim("length", min=2)}, (None,) * len(state))
    with torch.no_grad():
        program = torch.export.export(Traced(), (tokens, *state), dynamic_shapes=dynamic)
        made: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=_inputs(spec),
            output_names=_outputs(spec),
            verbose=False,
        )
    return made.model_proto.graph


def join(spec: ModelSpec, branches: dict[str, Any]) -> Any:
    """One model: If(length == 1) decode else prefill, over shared constants."""
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[tuple[Any, ...], Any] = {}  # by content: a weight of both branches is one
    bodies = {}
    for branch, graph in branches.items():
        names = {name: name for name in (*_inputs(spec), "")}
        for tensor in graph.initializer:
            value = numpy_helper.to_array(tensor)
            key = (value.dtype.str, value.shape, value.tobytes())
            if key not in constants:
                constants[key] = numpy_helper.from_array(value, f"constant_{len(constants)}")
            names[tensor.name] = constants[key].name
        for node in graph.node:
            names.update({name: f"{branch}/{name}" for name in node.output if name})
        nodes = [
            helper.make_node(
                node.op_type,
                [names[name] for name in node.input],
                [names[name] for name in node.output],
                domain=node.domain,
                **{a.name: helper.get_attribute_value(a) for a in node.attribute},
            )
            for node in graph.node
        ]
        made = [helper.make_empty_tensor_value_info(names[o.name]) for o in graph.output]
        for output, wanted in zip(made, _outputs(spec), strict=True):
            output.CopyFrom(_described(spec, wanted, output.name))
        bodies[branch] = helper.make_graph(nodes, branch, [], made)

    one = numpy_helper.from_array(np.array([1], np.int64), "one")
    choose = [
        helper.make_node("Shape", ["tokens"], ["length"], start=1, end=2),
        helper.make_node("Equal", ["length", "one"], ["is_one"]),
        helper.make_node(
            "If",
            ["is_one"],
            _outputs(spec),
            then_branch=bodies["decode"],
            else_branch=bodies.get("prefill", bodies["decode"]),
        ),
    ]
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, "length"])
    state = [_described(spec, name, name) for name in state_shapes(spec)]
    outputs = [_described(spec, name, name) for name in _outputs(spec)]
    shared = [one, *constants.values()]
    graph = helper.make_graph(choose, "tsm", [tokens, *state], outputs, shared)
    opset = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION)


def _inputs(spec: ModelSpec) -> list[str]:
    return ["tokens", *state_shapes(spec)]


def _outputs(spec: ModelSpec) -> list[str]:
    return ["logits", *(f"next_{name}" for name in state_shapes(spec))]


def _described(spec: ModelSpec, value: str, name: str) -> Any:
    from onnx import TensorProto, helper

    shapes: dict[str, Any] = {"logits": (1, "length", spec.vocabulary)}
    for state, shape in state_shapes(spec).items():
        shapes[state] = shapes[f"next_{state}"] = shape
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[value])


def quantize(values: dict[str, np.ndarray], bits: dict[str, int], made: Any) -> None:
    """In place: MatMul with a matrix named in `bits` becomes MatMulInteger, or of 4 bits
    onnxruntime's MatMulNBits.

    A token's row x becomes x * 127 / max|x| + 128, rounded; the sums are scaled back."""
    from onnx import helper, numpy_helper

    graph = made.graph
    wanted = {values[name].T.tobytes(): count for name, count in bits.items()}
    large, four = {}, {}
    for tensor in graph.initializer:
        value = numpy_helper.to_array(tensor)
        count = wanted.get(value.tobytes()) if value.ndim == 2 else None
        if count:
            (four if count == 4 else large)[tensor.name] = value
    if len(large) + len(four) != len(wanted):
        found = len(large) + len(four)
        raise ExportError(f"{found} projections in the graph, wanted {len(wanted)}")
    kept = [t for t in graph.initializer if t.name not in large and t.name not in four]
    scalars = {
        "last_axis": np.array([-1], np.int64),
        "tiny": np.array(1e-30, np.float32),  # a row of zeros stays zeros
        "levels": np.array(127, np.float32),
        "middle_rounded": np.array(MIDDLE + 0.5, np.float32),  # Cast cuts the fraction off
        "middle": np.array(MIDDLE, np.uint8),
    }
    kept += [numpy_helper.from_array(value, name) for name, value in scalars.items()]
    for name, value in large.items():  # (in, out)
        scale = np.maximum(np.abs(value).max(axis=0), np.float32(1e-30)) / np.float32(127)
        whole = np.rint(value / scale).astype(np.int16) + MIDDLE
        kept.append(numpy_helper.from_array(whole.astype(np.uint8), name))
        kept.append(numpy_helper.from_array(scale / np.float32(127), f"{name}/scale"))
    for name, value in four.items():
        packed, scales = pack_four_bits(value.T)
        kept.append(numpy_helper.from_array(packed, name))
        kept.append(numpy_helper.from_array(scales, f"{name}/scale"))
    if four:
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    del graph.initializer[:]
    graph.initializer.extend(kept)

    uint8, fp32 = 2, 1  # TensorProto's numbers
    branches = [attribute.g for attribute in graph.node[-1].attribute]
    for branch in branches:
        nodes = []
        node_of: Any = helper.make_node  # typed as if attributes were its own options
        for node in branch.node:
            if node.op_type == "MatMul" and node.input[1] in four:
                nodes.append(_four_bit_product(node, four[node.input[1]].shape))
                continue
            if node.op_type != "MatMul" or node.input[1] not in large:
                nodes.append(node)
                continue
            x, weight, y = node.input[0], node.input[1], node.output[0]
            for operator, inputs, output, attributes in (
                ("Abs", [x], "size", {}),
                ("ReduceMax", ["size", "last_axis"], "greatest", {"keepdims": 1}),
                ("Max", ["greatest", "tiny"], "range", {}),
                ("Div", ["levels", "range"], "steps", {}),
                ("Mul", [x, "steps"], "scaled", {}),
                ("Add", ["scaled", "middle_rounded"], "raised", {}),
                ("Cast", ["raised"], "whole", {"to": uint8}),
                ("MatMulInteger", ["whole", weight, "middle", "middle"], "sums", {}),
                ("Cast", ["sums"], "real", {"to": fp32}),
                ("Mul", ["range", f"{weight}/scale"], "unit", {}),
                ("Mul", ["real", "unit"], y, {}),
            ):
                own = {*scalars, x, y, weight, f"{weight}/scale"}
                names = [n if n in own else f"{y}/{n}" for n in (*inputs, output)]
                nodes.append(node_of(operator, names[:-1], names[-1:], **attributes))
        del branch.node[:]
        branch.node.extend(nodes)


def pack_four_bits(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (out, in) as MatMulNBits wants it: bytes (out, blocks, FOUR_BIT_BLOCK / 2), the
    first of two codes in the low half, 8 standing for 0; and scales (out * blocks,). All blocks of
    a row share its scale, as in the .tflite: both formats hold the same numbers."""
    out, into = matrix.shape
    scales = np.maximum(np.abs(matrix).max(axis=1), np.float32(1e-30)) / np.float32(7)
    codes = np.rint(matrix / scales[:, None]).astype(np.int8) + 8
    blocks = -(-into // FOUR_BIT_BLOCK)
    filled = np.full((out, blocks * FOUR_BIT_BLOCK), 8, np.uint8)
    filled[:, :into] = codes
    packed = filled[:, 0::2] | filled[:, 1::2] << 4
    return packed.reshape(out, blocks, FOUR_BIT_BLOCK // 2), np.repeat(scales, blocks)


def _four_bit_product(node: Any, shape: tuple[int, int]) -> Any:
    from onnx import helper

    x, weight = node.input
    node_of: Any = helper.make_node  # typed as if attributes were its own options
    return node_of(
        "MatMulNBits",
        [x, weight, f"{weight}/scale"],
        list(node.output),
        domain="com.microsoft",
        K=shape[0],
        N=shape[1],
        bits=4,
        block_size=FOUR_BIT_BLOCK,
        accuracy_level=4,  # activations in int8, a block of a token's row at a time
    )


if __name__ == "__main__":
    sys.exit(main())
