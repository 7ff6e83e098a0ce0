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
import tempfile
from typing import Any

import numpy as np

from tsm.export.verify import ALIGNMENT_BYTES, ExportError, bits, export_main, quiet
from tsm.training import model
from tsm.training.spec import ModelSpec, state_shapes

METADATA_NAME = "tsm"


def main(argv: list[str] | None = None) -> int:
    return export_main("to_tflite", __doc__, ".tflite", build, argv)


def build(
    spec: ModelSpec, values: dict[str, np.ndarray], quantization: str, metadata: str
) -> bytes:
    with quiet():
        data = convert(spec, values)
        check_builtin(data)
        if quantization != "none":
            data = quantize(values, bits(spec, quantization), data)
        return add_metadata(data, metadata)


def convert(spec: ModelSpec, values: dict[str, np.ndarray]) -> bytes:
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
    with tempfile.TemporaryDirectory() as folder:
        signatures = {"decode": module.decode, "prefill": module.prefill}
        tf.saved_model.save(module, folder, signatures=signatures)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, list(signatures))
        try:
            return converter.convert()
        except Exception as error:  # TensorFlow raises many types, of many lines
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ExportError(f"the converter refused the model ({reason})") from error


def check_builtin(data: bytes) -> None:
    """A custom or flex operator would need a runtime that devices do not have."""
    custom = [code.customCode.decode() for code in _read(data).operatorCodes if code.customCode]
    if custom:
        raise ExportError(f"operators {', '.join(custom)}, wanted builtin ones only")


def quantize(values: dict[str, np.ndarray], bits: dict[str, int], data: bytes) -> bytes:
    """The matrices named in `bits`, found in the graph by their own bytes, in so many bits."""
    from ai_edge_quantizer import quantizer, recipe

    wanted = {values[name].tobytes(): count for name, count in bits.items()}
    graph, names = _read(data), {8: [], 4: []}
    for subgraph in graph.subgraphs:
        for operator in subgraph.operators:
            for i in operator.inputs:
                constant = graph.buffers[subgraph.tensors[i].buffer].data
                count = wanted.get(b"" if constant is None else np.asarray(constant).tobytes())
                if count:
                    output = subgraph.tensors[operator.outputs[0]].name.decode()
                    names[count].append(re.escape(output))
    found = len(names[8]) + len(names[4])
    if found != len(bits) * len(graph.subgraphs):
        raise ExportError(f"{found} projections in the graph, wanted {len(bits)} an entry")
    rules = []
    for count, rule in ((8, recipe.dynamic_wi8_afp32()), (4, recipe.dynamic_wi4_afp32())):
        if names[count]:
            regex = f"^({'|'.join(names[count])});?$"
            rules += [{**part, "regex": regex} for part in rule]
    made: Any = quantizer.Quantizer(data, rules).quantize(enable_progress_report=False)
    return bytes(made.quantized_model)


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
