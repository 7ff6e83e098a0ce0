"""Baseline: the mixer that `seed.md` presented, and a causal form of it. No recurrence.

Both cut the text into chunks of k tokens, make one value (their mean) and one set of angles
(a convolution of stride k) of each, and bring both back to k tokens by a transposed convolution,
channel by channel. The original, `leaking_seed_mixer`, gives them to the tokens of the same
chunk, so that a token sees up to k-1 tokens of its own future: a specimen, no language model.
`seed_mixer` gives them to the next chunk.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from .primitives import Array, State, Weights, linear, positions, sigmoid
from .table import Init, Mixer, Shape, Weight, input_projection, output_projection
from .topological import poincare

if TYPE_CHECKING:
    from ..spec import ModelSpec


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    h, k, inner = spec.heads, spec.compression, spec.heads * spec.value_width
    return {
        "encoder.kernel": Weight(
            (k * 3 * h, spec.width), ("parameter", "width"), Init(std=0.1 * spec.width**-0.5)
        ),
        "encoder.bias": Weight((3 * h,), ("parameter",)),
        "upsample": Weight((k, 3 * h), ("place", "parameter"), Init(low=1, high=1)),
        "upsample.values": Weight((k, inner), ("place", "inner"), Init(low=1, high=1)),
        "in": input_projection(spec, inner),
        "out": output_projection(spec, 2 * inner),
    }


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    return {
        "history": (2 * spec.compression - 1, spec.width),
        "count": (1,),  # tokens since the last whole chunk
    }


def seed_mixer(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    return _mix(xp, spec, weights, name, x, state, delay=1)


def leaking_seed_mixer(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    """Of a whole text; a chunk that the block does not complete is filled with zeros."""
    return _mix(xp, spec, weights, name, x, state, delay=0)


def _mix(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Array, state: State, delay: int
) -> tuple[Array, State]:
    (batch, length, width), heads, k = x.shape, spec.heads, spec.compression
    count = state["count"][0, 0]  # tokens before this block in the chunk under way
    filler = xp.zeros_like(state["history"])  # what completes the last chunk
    window = xp.concat([state["history"], x, filler], axis=1)  # x starts at 2k-1
    chunks = (length + k - 2) // k + 1  # that this block can read from
    start = 2 * k - 1 - count - k * delay
    sources = xp.astype(start + positions(xp, x, chunks * k), xp.int32)
    chunked = xp.reshape(xp.take(window, sources, axis=1), (batch, chunks, k, width))

    kernel = xp.reshape(weights[f"{name}.encoder.kernel"], (k, 3 * heads, width))
    raw: Array = sum(linear(xp, chunked[:, :, tap], kernel[tap]) for tap in range(k))
    value = linear(xp, xp.mean(chunked, axis=2), weights[f"{name}.in"])  # (B, N, inner)

    def upsample(x: Array, gains: Array) -> Array:  # (B, N, -) -> (B, L, -)
        x = xp.reshape(x[:, :, None] * gains, (batch, chunks * k, x.shape[-1]))
        return xp.take(x, xp.astype(count + positions(xp, x, length), xp.int32), axis=1)

    value = upsample(value, weights[f"{name}.upsample.values"])
    raw = upsample(raw, weights[f"{name}.upsample"]) + weights[f"{name}.encoder.bias"]
    delta, chi, radius = (raw[..., i * heads : (i + 1) * heads] for i in range(3))
    real, imaginary = poincare(xp, math.pi * xp.tanh(delta), math.pi / 4 * xp.tanh(chi))
    coupled = xp.sin(math.pi / 2 * sigmoid(xp, radius))

    value = xp.reshape(value, (batch, length, heads, spec.value_width))
    read = xp.concat([(part * coupled)[..., None] * value for part in (real, imaginary)], axis=-1)
    read = xp.reshape(read, (batch, length, 2 * heads * spec.value_width))
    next_state = {
        "history": window[:, length : length + 2 * k - 1],
        "count": xp.zeros_like(state["count"]) + (count + length) % k,
    }
    return linear(xp, read, weights[f"{name}.out"]), next_state


MIXERS = {
    "seed": Mixer(weights_of, state_of, seed_mixer),
    "seed-leaking": Mixer(weights_of, state_of, leaking_seed_mixer),
}
