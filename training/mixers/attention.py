"""Baseline: causal softmax attention with rotary positions (Vaswani et al. 2017; RoPE: Su et al.
2021, arXiv 2104.09864), queries and keys normalised (Henry et al. 2020, arXiv 2010.04245).

A token sees itself and the `context` tokens before it. The cache is a window that slides: keys
are kept unrotated, and turned by their place in it, so that no position grows with the text.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float

from tsm.training.mixers.primitives import (
    Array,
    State,
    Weights,
    join_heads,
    linear,
    positions,
    rms_norm,
    split_heads,
)
from tsm.training.spec import ModelSpec

ROPE_BASE = 10_000.0


def attention(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    query, key, value = project(xp, spec, weights, name, x)
    length, cached = x.shape[1], state["keys"].shape[2]
    key, value = (xp.concat([state[n], v], axis=2) for n, v in (("keys", key), ("values", value)))
    valid = xp.concat([state["valid"], xp.ones_like(x[:, :, 0])], axis=1)  # (B, cached+L)
    made = {"keys": key[:, :, length:], "values": value[:, :, length:], "valid": valid[:, length:]}
    query, turned = rotate(xp, query, cached), rotate(xp, key, 0)
    if spec.fused and cached == 0 and length <= spec.context + 1:
        read = fused_read(query, turned, value)
        return linear(xp, join_heads(xp, read), weights[f"{name}.out"]), made
    query = query / key.shape[-1] ** 0.5
    scores = query @ xp.matrix_transpose(turned)  # (B, H, L, cached+L), at most sqrt(K) in size
    # Softmax without its maximum, which the bound replaces: a later score changes no bit.
    mass = xp.tril(xp.exp(scores - key.shape[-1] ** 0.5), k=cached) * valid[:, None, None, :]
    if length + cached > spec.context + 1:
        mass = mass - xp.tril(mass, k=cached - spec.context - 1)
    read = mass @ value / xp.sum(mass, axis=-1, keepdims=True)
    return linear(xp, join_heads(xp, read), weights[f"{name}.out"]), made


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
    """Each pair of values turned by its token's place, the first of which is `start`."""
    length, half = x.shape[2], x.shape[3] // 2
    place = positions(xp, x, length) + start  # (L,)
    pair = positions(xp, x, half)
    angle = place[:, None] * xp.exp(pair * (-math.log(ROPE_BASE) / half))  # (L, K/2)
    cos, sin = xp.cos(angle), xp.sin(angle)
    first, second = x[..., :half], x[..., half : 2 * half]
    return xp.concat([cos * first - sin * second, sin * first + cos * second], axis=-1)
