"""What the mixers and the block around them share.

Shape letters: B batch, L tokens, D width, H heads, K key width, V value width.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from jaxtyping import Float

LONG_SCAN = 8  # chunks from which PyTorch's own loop is the better one

Array = Any
Weights = dict[str, Any]
State = dict[str, Any]


def sigmoid(xp: Any, x: Array) -> Array:
    native = getattr(xp, "sigmoid", None)  # PyTorch: one kernel; elsewhere the identity
    return native(x) if native else 0.5 + 0.5 * xp.tanh(0.5 * x)


def rms_norm(xp: Any, x: Array) -> Array:
    """x over its root mean square along the last axis; no gain, the next matrix holds it."""
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def linear(xp: Any, x: Array, matrix: Array) -> Array:
    return x @ xp.matrix_transpose(matrix)


def split_heads(xp: Any, x: Float[Array, "B L H*K"], heads: int) -> Float[Array, "B H L K"]:
    batch, length, width = x.shape
    return xp.permute_dims(xp.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def join_heads(xp: Any, x: Float[Array, "B H L V"]) -> Float[Array, "B L HV"]:
    batch, heads, length, width = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (batch, length, heads * width))


def positions(xp: Any, like: Array, length: int) -> Float[Array, " length"]:
    """0, 1, ... length-1 in fp32, on the device of `like`."""
    made = xp.astype(xp.arange(length), xp.float32)
    return made.to(like.device) if hasattr(made, "to") else made  # PyTorch's alone have `to`


def constant(xp: Any, array: np.ndarray, like: Array) -> Array:
    """`array` in the library xp, on the device of `like`."""
    made = xp.asarray(array)
    return made.to(like.device) if hasattr(made, "to") else made  # PyTorch's alone have `to`


def short_convolution(
    window: Float[Array, "B L+k-1 D"], taps: Float[Array, "k D"]
) -> Float[Array, "B L D"]:
    """Each channel over the k tokens that end at its own; `window` starts k-1 tokens early."""
    length = window.shape[1] - taps.shape[0] + 1
    return sum(window[:, i : i + length] * taps[i] for i in range(taps.shape[0]))


def scan(xp: Any, kept: Array, written: Array, memory: Array) -> tuple[Array, Array]:
    """M_n = kept_n M_{n-1} + written_n over axis 2, from `memory`: all M before, and the last.
    Hillis-Steele: the reach doubles each round, so there is no loop primitive to export."""
    count, reach = written.shape[2], 1
    if count >= LONG_SCAN and "torch" in sys.modules:
        import torch

        if isinstance(written, torch.Tensor) and not torch.compiler.is_exporting():
            from tsm.training.mixers import torch_scan

            if torch_scan.supports(written.device):
                return torch_scan.scan(kept, written, memory)
    first = written[:, :, :1] + kept[:, :, :1] * xp.expand_dims(memory, axis=2)
    written = xp.concat([first, written[:, :, 1:]], axis=2) if count > 1 else first
    while reach < count:
        written = xp.concat(
            [
                written[:, :, :reach],
                written[:, :, reach:] + kept[:, :, reach:] * written[:, :, :-reach],
            ],
            axis=2,
        )
        kept = xp.concat([kept[:, :, :reach], kept[:, :, reach:] * kept[:, :, :-reach]], axis=2)
        reach *= 2
    memory = xp.expand_dims(memory, axis=2)
    before = xp.concat([memory, written[:, :, :-1]], axis=2) if count > 1 else memory
    return before, written[:, :, -1]


def scan_channels(
    xp: Any,
    kept: Float[Array, "B L D"],
    written: Float[Array, "B L D"],
    memory: Float[Array, "B D"],
) -> tuple[Float[Array, "B L D"], Float[Array, "B D"]]:
    """m_t = kept_t m_{t-1} + written_t of every channel, from `memory`: all m, and the last."""
    if kept.shape[1] == 1:
        memory = kept[:, 0] * memory + written[:, 0]
        return memory[:, None], memory
    before, last = scan(xp, kept[:, None], written[:, None], memory[:, None])
    return xp.concat([before[:, 0, 1:], last], axis=1), last[:, 0]
