"""Baseline: causal softmax attention with rotary positions (Vaswani et al. 2017; RoPE: Su et al.
2021, arXiv 2104.09864), queries and keys normalised (Henry et al. 2020, arXiv 2010.04245).

A token sees itself and the `context` tokens before it. The cache is a window that slides: keys
are kept unrotated, and rotated by their position in it, so that no position grows with the text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from .primitives import (
    Array,
    State,
    Weights,
    join_heads,
    linear,
    positions,
    rms_norm,
    split_heads,
)
from .table import Mixer, Shape, Weight, input_projection, output_projection

if TYPE_CHECKING:
    from ..spec import ModelSpec

# PyTorch's fused kernel in training: speed, not the function.
SWITCHES = {"fused": False}
ROPE_BASE = 10_000.0


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    keys, values = spec.heads * spec.key_width, spec.heads * spec.value_width
    return {"in": input_projection(spec, 2 * keys + values), "out": output_projection(spec, values)}


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    return {
        "keys": (spec.heads, cached, spec.key_width),
        "values": (spec.heads, cached, spec.value_width),
        "valid": (cached,),  # 1 where a token was, 0 before the stream's start
    }


def attention(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    query, key, value = project(xp, spec, weights, name, x)
    length, cached = x.shape[1], state["keys"].shape[2]
    key, value = (xp.concat([state[n], v], axis=2) for n, v in (("keys", key), ("values", value)))
    valid = xp.concat([state["valid"], xp.ones_like(x[:, :, 0])], axis=1)  # (B, cached+L)
    next_state = {
        "keys": key[:, :, length:],
        "values": value[:, :, length:],
        "valid": valid[:, length:],
    }
    query, rotated = rotate(xp, query, cached), rotate(xp, key, 0)
    if spec.switches["fused"] and cached == 0 and length <= spec.context + 1:
        read = fused_read(query, rotated, value)
        return linear(xp, join_heads(xp, read), weights[f"{name}.out"]), next_state
    query = query / key.shape[-1] ** 0.5
    scores = query @ xp.matrix_transpose(rotated)  # (B, H, L, cached+L), at most sqrt(K) in size
    # Softmax without its maximum, which the bound replaces: a later score changes no bit.
    mass = xp.tril(xp.exp(scores - key.shape[-1] ** 0.5), k=cached) * valid[:, None, None, :]
    if length + cached > spec.context + 1:
        mass = mass - xp.tril(mass, k=cached - spec.context - 1)
    read = mass @ value / xp.sum(mass, axis=-1, keepdims=True)
    return linear(xp, join_heads(xp, read), weights[f"{name}.out"]), next_state


def fused_read(query: Array, key: Array, value: Array) -> Array:
    """The same softmax by PyTorch's fused kernel, which never holds the scores."""
    from torch.nn.functional import scaled_dot_product_attention

    return scaled_dot_product_attention(query, key, value, is_causal=True)


def project(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"]
) -> tuple[Float[Array, "B H L K"], Float[Array, "B H L K"], Float[Array, "B H L V"]]:
    """Query, key and value; query and key normalised to a length of sqrt(K)."""
    projected = linear(xp, x, weights[f"{name}.in"])
    keys = spec.heads * spec.key_width
    parts = (projected[..., :keys], projected[..., keys : 2 * keys], projected[..., 2 * keys :])
    query, key, value = (split_heads(xp, part, spec.heads) for part in parts)
    return rms_norm(xp, query), rms_norm(xp, key), value


def rotate(xp: Any, x: Array, start: Any) -> Array:
    """Each pair of values rotated by its token's position, the first of which is `start`; of an odd
    number the last one stays."""
    length, half = x.shape[2], x.shape[3] // 2
    position = positions(xp, x, length) + start  # (L,)
    pair = positions(xp, x, half)
    angle = position[:, None] * xp.exp(pair * (-math.log(ROPE_BASE) / max(half, 1)))  # (L, K/2)
    cos, sin = xp.cos(angle), xp.sin(angle)
    first, second = x[..., :half], x[..., half : 2 * half]
    rotated = [cos * first - sin * second, sin * first + cos * second]
    return xp.concat([*rotated, x[..., 2 * half :]] if x.shape[3] % 2 else rotated, axis=-1)


MIXERS = {"attention": Mixer(weights_of, state_of, attention, SWITCHES)}
