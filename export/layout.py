"""How both formats store weights: in how many bits, row by row, and at which offset of the file.

runtime/native computes from these bytes where they lie, so they are the same in a .tflite and a
.onnx, and the metadata of a file says where each one starts.
"""

from __future__ import annotations

import json

import numpy as np

from ..runtime.engines import native
from ..training.spec import ModelSpec, weights

NO_OFFSET = "0" * 12  # an offset in a file, in digits: the width does not depend on its value
ALIGNMENT_BYTES = 64  # of a cache line: a vector register then loads from one, not two
# What ai-edge-quantizer takes for the greatest of a row whose values are all smaller. Training has
# such rows: what weight decay has left of a unit without effect.
LEAST_OF_A_ROW = np.float32(1e-9)

Weights = dict[str, np.ndarray]


class ExportError(ValueError):
    """Weights that cannot become an artifact: found and wanted, in one line."""


def bits(spec: ModelSpec, quantization: str) -> dict[str, int]:
    """Of each quantized matrix, by name in order of use, its bits: in int4 all but the head 4."""
    if quantization == "none":
        return {}
    names = [name for name, weight in weights(spec).items() if weight.quantized]
    return {n: 4 if quantization == "int4" and n != "head" else 8 for n in names}


def quantize_rows(matrix: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix (out, in) as both formats store it and runtime/native reads it: uint8 codes
    (out, in), or of int4 two codes a byte, the first in the low half; and fp32 scales (out,)."""
    greatest = 2 ** (bits - 1) - 1
    scales = np.maximum(np.abs(matrix).max(axis=1), LEAST_OF_A_ROW) / np.float32(greatest)
    codes = np.rint(matrix / scales[:, None]).astype(np.int8)
    if bits == 4:
        codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
        codes = (codes[:, 0::2] & 15) | codes[:, 1::2] << 4
    return codes.view(np.uint8), scales


def pieces(spec: ModelSpec, values: Weights, quantization: str) -> dict[str, list[bytes]]:
    """Each weight as runtime/native wants to find it in the file: fp32 whole, the short
    convolution tap by tap, a projection's codes and scales. Empty: not a model that it computes."""
    if not native.computes(spec.to_dict(), quantization):
        return {}
    bits_of, parts_of = bits(spec, quantization), {}
    for name, value in values.items():
        if name in bits_of:
            parts = quantize_rows(value, bits_of[name])
        else:
            parts = value if name.endswith(".short") else [value]
        parts_of[name] = [np.ascontiguousarray(part).tobytes() for part in parts]
    return parts_of


def no_offsets(parts_of: dict[str, list[bytes]]) -> dict[str, list[str]]:
    """What the metadata holds until `fill_offsets`."""
    return {name: [NO_OFFSET] * len(parts) for name, parts in parts_of.items()}


def fill_offsets(data: bytes, parts_of: dict[str, list[bytes]]) -> bytes:
    """The file `data` with the offset of each part in it in place of NO_OFFSET."""
    offsets = {
        name: [_offset(data, part, name) for part in parts] for name, parts in parts_of.items()
    }
    before, after = (
        json.dumps(found, sort_keys=True).encode() for found in (no_offsets(parts_of), offsets)
    )
    return data.replace(before, after, 1)


def _offset(data: bytes, part: bytes, name: str) -> str:
    """The first one that fp32 can be read from. Of parts with equal bytes any serves."""
    offset = data.find(part)
    while offset % 4 and offset >= 0:
        offset = data.find(part, offset + 1)
    if offset < 0:
        raise ExportError(f"{name}: not found in the file, wanted it as it was given")
    return f"{offset:0{len(NO_OFFSET)}d}"
