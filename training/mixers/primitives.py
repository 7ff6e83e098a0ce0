"""What the mixers and the block around them share.

Shape letters: B batch, L tokens, D width, H heads, K key width, V value width.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from jaxtyping import Float

from ..kernels.onnx_scan import exporting, scan_tokens

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
    if matrix.dtype.itemsize < x.dtype.itemsize:  # JAX in bf16; PyTorch's autocast does it itself
        x = xp.astype(x, matrix.dtype)
    return x @ xp.matrix_transpose(matrix)


def split_heads(xp: Any, x: Float[Array, "B L H*K"], heads: int) -> Float[Array, "B H L K"]:
    batch, length, width = x.shape
    return xp.permute_dims(xp.reshape(x, (batch, length, heads, width // heads)), (0, 2, 1, 3))


def join_heads(xp: Any, x: Float[Array, "B H L V"]) -> Float[Array, "B L HV"]:
    batch, heads, length, width = x.shape
    return xp.reshape(xp.permute_dims(x, (0, 2, 1, 3)), (batch, length, heads * width))


def positions(xp: Any, like: Array, length: int) -> Float[Array, " length"]:
    """0, 1, ... length-1 in fp32, on the device of `like`."""
    return _on_device_of(like, xp.astype(xp.arange(length), xp.float32))


def constant(xp: Any, array: np.ndarray, like: Array) -> Array:
    """`array` in the library xp, on the device of `like`."""
    return _on_device_of(like, xp.asarray(array))


def _on_device_of(like: Array, x: Array) -> Array:
    return x.to(like.device) if hasattr(x, "to") else x  # PyTorch's alone have `to`


def short_convolution(
    window: Float[Array, "B L+k-1 D"], taps: Float[Array, "k D"]
) -> Float[Array, "B L D"]:
    """Each channel over the k tokens that end at its own; `window` starts k-1 tokens early."""
    length = window.shape[1] - taps.shape[0] + 1
    return sum(window[:, i : i + length] * taps[i] for i in range(taps.shape[0]))


def decays(
    xp: Any, log_decay: Float[Array, "*rows C 1"]
) -> tuple[Float[Array, "*rows C 1"], Float[Array, "*rows C C"]]:
    """Within a chunk: the logarithm of what is left, at each token, of what was before the chunk,
    and, lower triangular, what is left of each token at each later one."""
    since_start = xp.cumulative_sum(log_decay, axis=-2)
    between = since_start - xp.matrix_transpose(since_start)
    # The future, above 0, could overflow.
    return since_start, xp.tril(xp.exp(xp.clip(between, None, 0)))


def scan(xp: Any, decay: Array, update: Array, memory: Array) -> tuple[Array, Array]:
    """M_n = decay_n M_{n-1} + update_n over axis 2, from `memory`: all M before, and the last.
    Hillis-Steele: the reach doubles each round, so there is no loop primitive to export."""
    own = getattr(xp, "scan", None)  # of training/kernels/jax_scan.py
    if own:
        return own(decay, update, memory)
    count, reach = update.shape[2], 1
    if count >= LONG_SCAN and "torch" in sys.modules:
        import torch

        if isinstance(update, torch.Tensor) and not exporting(update):
            from ..kernels import torch_scan

            if torch_scan.supports(update.device):
                return torch_scan.scan(decay, update, memory)
    first = update[:, :, :1] + decay[:, :, :1] * xp.expand_dims(memory, axis=2)
    update = xp.concat([first, update[:, :, 1:]], axis=2) if count > 1 else first
    while reach < count:
        update = xp.concat(
            [
                update[:, :, :reach],
                update[:, :, reach:] + decay[:, :, reach:] * update[:, :, :-reach],
            ],
            axis=2,
        )
        decay = xp.concat([decay[:, :, :reach], decay[:, :, reach:] * decay[:, :, :-reach]], axis=2)
        reach *= 2
    memory = xp.expand_dims(memory, axis=2)
    before = xp.concat([memory, update[:, :, :-1]], axis=2) if count > 1 else memory
    return before, update[:, :, -1]


def coupling_angle(xp: Any, radius: Array) -> Array:
    """rho, from 0 to pi/2, of the encoder's number."""
    return math.pi / 2 * sigmoid(xp, radius)


def coupled_scan(
    xp: Any,
    value: Float[Array, "B L D"],
    radius: Float[Array, "B L D"],
    memory: Float[Array, "B D"],
) -> tuple[Float[Array, "B L D"], Float[Array, "B D"]]:
    """m_t = cos(rho_t) m_{t-1} + sin(rho_t) value_t of every channel: all m, and the last."""
    own = getattr(xp, "coupled_scan", None)  # of training/kernels/: on a GPU
    if own:
        return own(value, radius, memory)
    angle = coupling_angle(xp, radius)
    return scan_channels(xp, xp.cos(angle), xp.sin(angle) * value, memory)


def scan_channels(
    xp: Any,
    decay: Float[Array, "B L D"],
    update: Float[Array, "B L D"],
    memory: Float[Array, "B D"],
) -> tuple[Float[Array, "B L D"], Float[Array, "B D"]]:
    """m_t = decay_t m_{t-1} + update_t of every channel, from `memory`: all m, and the last."""
    if decay.shape[1] == 1:
        memory = decay[:, 0] * memory + update[:, 0]
        return memory[:, None], memory
    if exporting(update):

        def step(carry: Any, token: Any, _: Any) -> Any:
            memory = token[0] * carry[0] + token[1]
            return [memory], [memory]

        [last], [states] = scan_tokens(step, [memory], [decay, update])
        return states, last
    before, last = scan(xp, decay[:, None], update[:, None], memory[:, None])
    return xp.concat([before[:, 0, 1:], last], axis=1), last[:, 0]
