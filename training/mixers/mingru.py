"""Baseline: minGRU (Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201): a gated
linear recurrence per channel, behind the same short convolution and output gate as the
topological mixer has.

    h_t = (1 - z_t) h_{t-1} + z_t candidate_t
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from .primitives import (
    Array,
    State,
    Weights,
    linear,
    rms_norm,
    scan_channels,
    short_convolution,
    sigmoid,
)
from .table import Init, Mixer, Shape, Weight, input_projection, output_projection

if TYPE_CHECKING:
    from ..spec import ModelSpec


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    inner = spec.heads * spec.value_width
    return {
        "short": Weight((spec.compression, spec.width), ("tap", "width"), Init(std=0.3)),
        "bias": Weight((inner,), ("inner",), Init(low=-4, high=1)),  # memories of 1 to 50 tokens
        "in": input_projection(spec, 3 * inner),  # update gate, candidate, output gate
        "out": output_projection(spec, inner),
    }


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    return {
        "hidden": (spec.heads * spec.value_width,),
        "history": (spec.compression - 1, spec.width),
    }


def mingru(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    length, inner = x.shape[1], spec.heads * spec.value_width
    window = xp.concat([state["history"], x], axis=1)
    x = x + short_convolution(window, weights[f"{name}.short"])
    projected = linear(xp, x, weights[f"{name}.in"])  # (B, L, 3 inner)
    update, candidate, gate = (projected[..., i * inner : (i + 1) * inner] for i in range(3))
    update = sigmoid(xp, update + weights[f"{name}.bias"])
    read, hidden = scan_channels(xp, 1 - update, update * candidate, state["hidden"])
    read = rms_norm(xp, read) * gate * sigmoid(xp, gate)
    next_state = {"hidden": hidden, "history": window[:, length:]}
    return linear(xp, read, weights[f"{name}.out"]), next_state


MIXERS = {
    "mingru": Mixer(weights_of, state_of, mingru, any_length=lambda _: True, splits=lambda _: True)
}
