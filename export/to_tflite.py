"""Export: model.safetensors -> .tflite with two signatures that share their weights.

    python export/to_tflite.py                                     # models/shakespeare.safetensors
    python export/to_tflite.py model.safetensors --quantize none --out model.tflite

    decode   tokens int32 (1, 1)      + the state -> logits + the next state
    prefill  tokens int32 (1, chunk)  + the state -> the same, for a block

The state is `channels` and `history` for the reference; after it they are `next_channels` and
`next_history`. Where runtime/native can compute the model, the metadata says at which offset of the
file each weight lies.

`training/model.py` is traced through JAX; only builtin operators may come out. int8 quantizes the
projections alone: weights per output row, activations per token as they come, so that no token
of a block touches another; int4 takes all of them but the head to four bits. The state, the
encoder and the embedding stay fp32.
"""

from __future__ import annotations

import os
import re
import sys
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from ..runtime.command import needs

with needs("tsm-to-tflite", "export-tflite"):
    import numpy as np

    from ..training import model
    from ..training.spec import ModelSpec, state_shapes
    from .command import export_main, quiet, temporary_folder
    from .layout import ALIGNMENT_BYTES, ExportError, Weights, bits, quantize_rows

METADATA_NAME = "tsm"


def main(argv: list[str] | None = None) -> int:
    return export_main("tsm-to-tflite", __doc__, ".tflite", build, argv)


def build(spec: ModelSpec, values: Weights, quantization: str, metadata: str) -> bytes:
    bits_of = bits(spec, quantization)
    values = distinct(values, bits_of)
    with quiet():
        data = convert(spec, values)
        check_builtin(data)
        if bits_of:
            data = quantize(values, bits_of, data)
        return add_metadata(data, metadata)


def convert(spec: ModelSpec, values: Weights) -> bytes:
    """The fp32 flatbuffer."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before the import, which reads it
    import jax.numpy as jnp
    import tensorflow as tf
    from jax.experimental import jax2tf

    def forward(held: Any, tokens: Any, *parts: Any) -> dict[str, Any]:
        state = dict(zip(state_shapes(spec), parts, strict=True))
        logits, state = model.forward(jnp, spec, held, tokens, state)
        return {"logits": logits, **{f"next_{n}": s for n, s in state.items()}}

    traced = jax2tf.convert(forward, with_gradient=False)
    module: Any = tf.Module()
    variable: Any = tf.Variable  # its annotations leave arrays out
    module.held = {n: variable(v, trainable=False) for n, v in values.items()}
    state = [tf.TensorSpec(s, tf.float32, n) for n, s in state_shapes(spec).items()]

    def entry(length: int) -> Any:
        return tf.function(
            lambda tokens, *state: traced(module.held, tokens, *state),
            input_signature=[tf.TensorSpec((1, length), tf.int32, "tokens"), *state],
            autograph=False,
        )

    module.decode, module.prefill = entry(1), entry(spec.chunk)
    signatures = {"decode": module.decode, "prefill": module.prefill}
    with temporary_folder() as folder:
        try:
            tf.saved_model.save(module, str(folder), signatures=signatures)
            return tf.lite.TFLiteConverter.from_saved_model(str(folder), [*signatures]).convert()
        except Exception as error:  # TensorFlow raises many types, of many lines
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ExportError(f"the converter refused the model ({reason})") from error


def check_builtin(data: bytes) -> None:
    """A custom or flex operator would need a runtime that devices do not have."""
    custom = [code.customCode.decode() for code in _read(data).operatorCodes if code.customCode]
    if custom:
        raise ExportError(f"operators {', '.join(custom)}, wanted builtin ones only")


def quantize(values: Weights, bits: dict[str, int], data: bytes) -> bytes:
    """The matrices named in `bits`, in so many bits. A product is found by the matrix in it."""
    from ai_edge_quantizer import quantizer, recipe

    # A product with one column is a multiplication to TFLite, and stays in fp32.
    names = {values[name].tobytes(): name for name in bits if values[name].shape[1] > 1}
    graph, outputs = _read(data), {8: [], 4: []}
    for subgraph in graph.subgraphs:
        missing = set(names.values())
        for operator in subgraph.operators:
            for i in operator.inputs:
                constant = graph.buffers[subgraph.tensors[i].buffer].data
                name = names.get(b"" if constant is None else np.asarray(constant).tobytes())
                if name:
                    output = subgraph.tensors[operator.outputs[0]].name.decode()
                    outputs[bits[name]].append(re.escape(output))
                    missing.discard(name)
        if missing:
            raise ExportError(f"no product with {', '.join(sorted(missing))} in the graph")
    rules = []
    for count, rule in ((8, recipe.dynamic_wi8_afp32()), (4, recipe.dynamic_wi4_afp32())):
        if outputs[count]:
            regex = f"^({'|'.join(outputs[count])});?$"
            rules += [{**part, "regex": regex} for part in rule]
    quantized: Any = quantizer.Quantizer(data, rules).quantize(enable_progress_report=False)
    return bytes(quantized.quantized_model)


def distinct(values: Weights, bits: dict[str, int]) -> Weights:
    """No two matrices with the same bytes, for the converter makes one constant of such, of one
    shape and quantized in one way. A value moves by so little that all codes and scales stay."""
    seen = {value.tobytes() for name, value in values.items() if name not in bits}
    changed = dict(values)
    for name, count in bits.items():
        wanted = quantize_rows(values[name], count)
        for place in range(values[name].size):
            if changed[name].tobytes() not in seen:
                break
            moved = values[name].copy()
            moved.flat[place] = np.nextafter(moved.flat[place], np.float32(np.inf))
            if all(map(np.array_equal, quantize_rows(moved, count), wanted)):
                changed[name] = moved
        seen.add(changed[name].tobytes())
    return changed


def add_metadata(data: bytes, text: str) -> bytes:
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    class SharingBuilder(flatbuffers.Builder):
        """Writes equal vectors once, for both entries scale the same weights alike (0.5 MB), and
        each at the start of a cache line."""

        def __init__(self) -> None:
            super().__init__(1024)
            self.written: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802  overrides
            key = (x.dtype.str, x.tobytes())
            if key not in self.written:
                self.Prep(ALIGNMENT_BYTES, x.nbytes)
                self.written[key] = super().CreateNumpyVector(x)
            return self.written[key]

    graph = _read(data)
    buffer: Any = schema.BufferT()
    entry = schema.MetadataT()
    buffer.data = np.frombuffer(text.encode(), np.uint8)
    entry.name, entry.buffer = METADATA_NAME, len(graph.buffers)
    graph.buffers.append(buffer)
    graph.metadata = [*(graph.metadata or []), entry]
    builder = SharingBuilder()
    builder.Finish(graph.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _read(data: bytes) -> Any:
    from tensorflow.lite.tools import flatbuffer_utils

    graph: Any = flatbuffer_utils.convert_bytearray_to_object(bytearray(data))
    for buffer in graph.buffers:  # the quantizer puts large ones behind the flatbuffer
        if buffer.offset > 1:
            buffer.data = np.frombuffer(data, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return graph


if __name__ == "__main__":
    sys.exit(main())
