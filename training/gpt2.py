"""Baseline: GPT-2 (Radford et al. 2019) as it was published, block and all: LayerNorm with gain
and bias, learned positions, GELU, biases, and the embedding as the head. The
preset `gpt2-small` is its true shape; its block at another width is a baseline of equal parameters.

Its positions end at `context`: a later token gets the last one, as its cache slides on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int

from .mixers.primitives import (
    Array,
    State,
    Weights,
    join_heads,
    linear,
    positions,
    split_heads,
)
from .mixers.table import Init, Shape, Weight, matrix

if TYPE_CHECKING:
    from .spec import ModelSpec


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    """The table of the whole model, its shapes from `spec`."""
    d, dense = ("width", spec.width), Init(std=0.02)
    back = Init(std=0.02 / math.sqrt(2 * spec.layers))
    hidden, inner = ("mlp", spec.mlp_width), ("mixer_in", 3 * spec.width)

    def vector(axis: tuple[str, int], value: float = 0) -> Weight:
        return Weight((axis[1],), (axis[0],), Init(low=value, high=value))

    table = {
        "embed": Weight((spec.vocabulary, spec.width), ("vocabulary", "width"), dense),
        "position": Weight((spec.context, spec.width), ("position", "width"), Init(std=0.01)),
    }
    for layer in range(spec.layers):
        block = {
            "norm1.gain": vector(d, 1),
            "norm1.bias": vector(d),
            "mixer.in": matrix(inner, d, dense),
            "mixer.in.bias": vector(inner),
            "mixer.out": matrix(d, d, back),
            "mixer.out.bias": vector(d),
            "norm2.gain": vector(d, 1),
            "norm2.bias": vector(d),
            "mlp.in": matrix(hidden, d, dense),
            "mlp.in.bias": vector(hidden),
            "mlp.out": matrix(d, hidden, back),
            "mlp.out.bias": vector(d),
        }
        table |= {f"blocks.{layer}.{name}": weight for name, weight in block.items()}
    return table | {"norm.gain": vector(d, 1), "norm.bias": vector(d)}


def state_of(spec: ModelSpec, batch: int, cached: int) -> dict[str, Shape]:
    cache = (spec.layers, batch, spec.heads, cached, spec.width // spec.heads)
    return {"keys": cache, "values": cache, "valid": (1, batch, cached), "count": (1, batch, 1)}


def forward(
    xp: Any,
    spec: ModelSpec,
    weights: Weights,
    tokens: Int[Array, "B L"],
    state: State,
    dropout: Callable[[Array], Array],
) -> tuple[Float[Array, "B L vocabulary"], State]:
    """As `model.forward`."""
    batch, length = tokens.shape
    position = state["count"][0, 0, 0] + positions(xp, weights["embed"], length)
    position = xp.astype(xp.clip(position, 0, spec.context - 1), xp.int32)
    x = xp.take(weights["embed"], xp.reshape(tokens, (-1,)), axis=0)
    x = xp.reshape(x, (batch, length, spec.width)) + xp.take(weights["position"], position, axis=0)
    x = dropout(x)
    valid = xp.concat([state["valid"][0], xp.ones_like(x[:, :, 0])], axis=1)  # (B, cached+L)
    keys, values = [], []
    for layer in range(spec.layers):
        name = f"blocks.{layer}"
        normal = layer_norm(xp, weights, f"{name}.norm1", x)
        projected = (
            linear(xp, normal, weights[f"{name}.mixer.in"]) + weights[f"{name}.mixer.in.bias"]
        )
        parts = (projected[..., i * spec.width : (i + 1) * spec.width] for i in range(3))
        query, key, value = (split_heads(xp, part, spec.heads) for part in parts)
        key = xp.concat([state["keys"][layer], key], axis=2)
        value = xp.concat([state["values"][layer], value], axis=2)
        keys.append(key[:, :, length:])
        values.append(value[:, :, length:])
        read = join_heads(xp, attend(xp, query, key, value, valid, spec.context))
        out = linear(xp, read, weights[f"{name}.mixer.out"]) + weights[f"{name}.mixer.out.bias"]
        x = x + dropout(out)
        normal = layer_norm(xp, weights, f"{name}.norm2", x)
        hidden = linear(xp, normal, weights[f"{name}.mlp.in"]) + weights[f"{name}.mlp.in.bias"]
        out = linear(xp, gelu(xp, hidden), weights[f"{name}.mlp.out"])
        x = x + dropout(out + weights[f"{name}.mlp.out.bias"])
    logits = linear(xp, layer_norm(xp, weights, "norm", x), weights["embed"])
    return logits, {
        "keys": xp.stack(keys),
        "values": xp.stack(values),
        "valid": xp.expand_dims(valid[:, length:], axis=0),
        "count": state["count"] + length,
    }


def attend(
    xp: Any,
    query: Float[Array, "B H L K"],
    key: Float[Array, "B H S K"],
    value: Float[Array, "B H S K"],
    valid: Float[Array, "B S"],
    context: int,
) -> Float[Array, "B H L K"]:
    """Softmax attention over the `context` tokens before and the token itself; the S - L first are
    from the cache, a sliding window."""
    cached = key.shape[2] - query.shape[2]
    scores = query @ xp.matrix_transpose(key) / query.shape[-1] ** 0.5
    seen = xp.tril(xp.ones_like(scores), k=cached) * valid[:, None, None, :]
    seen = seen - xp.tril(seen, k=cached - context - 1)
    scores = xp.where(seen > 0, scores, xp.ones_like(scores) * -1e9)
    mass = xp.exp(scores - _greatest(xp, scores))
    return mass @ value / xp.sum(mass, axis=-1, keepdims=True)


def _greatest(xp: Any, scores: Float[Array, "B H L S"]) -> Float[Array, "B H L 1"]:
    """Its gradient is 0. PyTorch need not know: its compiled code finds it as 0/0 where it computes
    the scores again at another precision, and the greatest one among them no more."""
    greatest = xp.max(scores, axis=-1, keepdims=True)
    return greatest.detach() if hasattr(greatest, "detach") else greatest


def layer_norm(xp: Any, weights: Weights, name: str, x: Array) -> Array:
    x = x - xp.mean(x, axis=-1, keepdims=True)
    x = x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-5)
    return x * weights[f"{name}.gain"] + weights[f"{name}.bias"]


def gelu(xp: Any, x: Array) -> Array:
    """In the approximation that GPT-2 was trained with."""
    return 0.5 * x * (1 + xp.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
