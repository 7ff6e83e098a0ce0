"""Export: model.safetensors -> one .onnx graph for a byte or a block of any length.

    python export/to_onnx.py                                     # models/shakespeare.safetensors
    python export/to_onnx.py model.safetensors --quantize none --out model.onnx

    tokens int64 (1, length), channels, history -> logits, next_channels, next_history

`channels` and `history` are the state of the reference; another mixer has others.

`training/model.py` is traced through PyTorch in both its forms, the step and the chunk, which
become the branches of one `If` on the length; each weight stands once, outside of them, in the very
bytes of the .tflite, from which runtime/native computes too. Standard operators only.

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
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from tsm.export.verify import ALIGNMENT_BYTES, ExportError, bits, export_main, few_bits, quiet
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
    return serialize(made)


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
                names[node.output[0]],  # onnxruntime 1.18 to 1.20 refuse unnamed ones
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
    onnxruntime's MatMulNBits. Stored are the codes and scales of `few_bits`; nodes before the `If`
    lay them out as these operators want them, which onnxruntime does once, as it loads the file."""
    from onnx import helper, numpy_helper

    graph = made.graph
    wanted = {values[name].T.tobytes(): name for name in bits}
    constants = {
        "last_axis": np.array([-1], np.int64),
        "tiny": np.array(1e-30, np.float32),  # a row of zeros stays zeros
        "levels": np.array(127, np.float32),
        "middle_rounded": np.array(MIDDLE + 0.5, np.float32),  # Cast cuts the fraction off
        "middle": np.array(MIDDLE, np.uint8),
    }
    if 4 in bits.values():
        made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        constants["middles"] = np.array(0x88, np.uint8)  # of two codes a byte
    kept, layouts, products = [], [], {}
    for tensor in graph.initializer:
        value, weight = numpy_helper.to_array(tensor), tensor.name
        name = wanted.get(value.tobytes()) if value.ndim == 2 else None
        if not name:
            kept.append(tensor)
            continue
        constants[weight], constants[f"{weight}/scale"] = few_bits(values[name], bits[name])
        if bits[name] == 8:
            layouts += _eight_bit_layout(weight)
            products[weight] = _eight_bit_product
        else:
            layouts += _four_bit_layout(weight, columns=constants[weight].shape[1])
            products[weight] = partial(_four_bit_product, *value.shape)
    if len(products) != len(wanted):
        raise ExportError(f"{len(products)} projections in the graph, wanted {len(wanted)}")
    kept += [numpy_helper.from_array(value, name) for name, value in constants.items()]
    _replace(graph.initializer, kept)

    for branch in [attribute.g for attribute in graph.node[-1].attribute]:
        nodes = []
        for node in branch.node:
            product = node.op_type == "MatMul" and products.get(node.input[1])
            nodes += product(*node.input, *node.output) if product else [node]
        _replace(branch.node, nodes)
    _replace(graph.node, [*layouts, *graph.node])


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
    """Each constant starts at a cache line: the text of the one before it is as long as that
    takes."""
    constants, shift = made.graph.initializer, 1
    for tensor in constants:
        tensor.doc_string = ""
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
