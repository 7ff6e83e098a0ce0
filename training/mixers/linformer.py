"""Baseline: a block-causal Linformer, a modified one. The original (Wang et al. 2020, arXiv
2006.04768) compresses keys and values along the whole sequence and so sees the future.

Here each whole block of tokens is compressed by a learned matrix to a `compression`-th of its
keys and values; a token attends to the tokens of its own block up to itself, and to what is left
of the `context // block - 1` blocks before it. Learned biases by distance stand in for positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from .attention import project
from .attention import state_of as attention_state
from .attention import weights_of as attention_weights
from .primitives import (
    Array,
    State,
    Weights,
    join_heads,
    linear,
    positions,
    rms_norm,
)
from .table import Init, Mixer, Shape, Weight

if TYPE_CHECKING:
    from ..spec import ModelSpec

# Tokens that it compresses together.
SWITCHES = {"linformer_block": 16}


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    h, block = spec.heads, spec.switches["linformer_block"]
    slots = block // spec.compression
    mean = Init(std=0.1, low=1 / block, high=1 / block)
    return attention_weights(spec) | {
        "compress": Weight((h, slots, block), ("head", "slot", "token"), mean),
        "bias.token": Weight((h, block), ("head", "distance")),
        "bias.slot": Weight((h, spec.context // block - 1, slots), ("head", "distance", "slot")),
    }


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    return attention_state(spec, cached) | {"count": (1,)}  # tokens since the last whole block


def linformer(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    query, key, value = project(xp, spec, weights, name, x)
    (batch, length, _), cached = x.shape, state["keys"].shape[2]
    block = spec.switches["linformer_block"]
    key, value = (xp.concat([state[n], v], axis=2) for n, v in (("keys", key), ("values", value)))
    valid = xp.concat([state["valid"], xp.ones_like(x[:, :, 0])], axis=1)  # (B, cached+L)
    count = state["count"][0, 0]  # tokens before this block of tokens in their own block
    next_state = {
        "keys": key[:, :, length:],
        "values": value[:, :, length:],
        "valid": valid[:, length:],
        "count": xp.zeros_like(state["count"]) + (count + length) % block,
    }

    # Cut into N whole blocks, of which the first starts `lead` tokens before the cache.
    blocks, total = (cached + length + block - 2) // block + 1, cached + length
    lead = (count - cached) % block
    at = positions(xp, x, blocks * block) - lead
    inside = xp.astype((at >= 0) & (at < total), x.dtype)
    at = xp.astype(xp.clip(at, 0, total - 1), xp.int32)

    def cut(x: Array) -> Array:  # (B, H, cached+L, -) -> (B, H, N, block, -)
        x = xp.take(x, at, axis=2)
        return xp.reshape(x, (*x.shape[:2], blocks, block, x.shape[-1]))

    limit = key.shape[-1] ** 0.5  # of a score; it stands for softmax's maximum
    query = cut(xp.concat([xp.zeros_like(key[:, :, :cached]), query], axis=2)) / limit
    key, value = cut(key), cut(value)
    known = xp.reshape(xp.take(valid, at, axis=1) * inside, (batch, 1, blocks, block, 1))

    # What is left of each block, and for each block of queries those of the blocks before it.
    compress = weights[f"{name}.compress"][:, None]  # (H, 1, slots, block)
    slot_key, slot_value = compress @ (key * known), compress @ (value * known)
    slot_known = xp.min(known, axis=3, keepdims=True) * xp.ones_like(slot_key[..., :1])
    bias = weights[f"{name}.bias.slot"]  # (H, M, slots)
    compressed = (rms_norm(xp, slot_key), slot_value, slot_known)  # then (B, H, N, M*slots, -)
    slot_key, slot_value, slot_known = (_before(xp, part, bias.shape[1]) for part in compressed)

    bias = xp.reshape(bias, (spec.heads, 1, 1, -1))
    slots = xp.exp(query @ xp.matrix_transpose(slot_key) + bias - limit)
    slots = slots * xp.matrix_transpose(slot_known)  # (B, H, N, block, M*slots)
    place = positions(xp, x, block)
    distances = xp.astype(xp.reshape(xp.abs(place[:, None] - place), (-1,)), xp.int32)
    bias = xp.take(weights[f"{name}.bias.token"], distances, axis=1)
    bias = xp.reshape(bias, (spec.heads, 1, block, block))
    tokens = xp.tril(xp.exp(query @ xp.matrix_transpose(key) + bias - limit))
    tokens = tokens * xp.matrix_transpose(known)  # (B, H, N, block, block)
    mass = xp.sum(tokens, axis=-1, keepdims=True) + xp.sum(slots, axis=-1, keepdims=True)
    read = (tokens @ value + slots @ slot_value) / (mass + 1e-30)  # a place with no token: zeros
    read = xp.reshape(read, (batch, spec.heads, blocks * block, value.shape[-1]))
    queried = xp.astype(positions(xp, x, length) + cached + lead, xp.int32)
    read = xp.take(read, queried, axis=2)
    return linear(xp, join_heads(xp, read), weights[f"{name}.out"]), next_state


def _before(xp: Any, x: Float[Array, "B H N slots w"], reach: int) -> Array:
    """Of the `reach` blocks before each, the nearest first: (B, H, N, reach*slots, w)."""
    batch, heads, blocks, slots, width = x.shape
    padded = xp.concat([xp.zeros_like(x[:, :, :1])] * reach + [x], axis=2)
    shifted = [padded[:, :, reach - m : reach - m + blocks] for m in range(1, reach + 1)]
    return xp.reshape(xp.stack(shifted, axis=3), (batch, heads, blocks, reach * slots, width))


MIXERS = {"linformer": Mixer(weights_of, state_of, linformer, SWITCHES)}
