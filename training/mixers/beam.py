"""The beam splitter of the TSM channel by channel: its state is a vector, not a matrix per head.

    s_t = cos(rho_t) T s_{t-1} + sin(rho_t) value_t        T = poincare(delta, chi)

Each channel has a coupling angle rho of its own, which the text gives through the short convolution
and a projection, and with `rotation` a transmission T that training gives it; without, T = 1.
What is read is the state, over its root mean square and gated.
"""

from __future__ import annotations

import math
from typing import Any

from jaxtyping import Float

from tsm.training.mixers.primitives import (
    Array,
    State,
    Weights,
    linear,
    positions,
    rms_norm,
    scan_channels,
    short_convolution,
    sigmoid,
)
from tsm.training.mixers.topological import poincare, turn
from tsm.training.spec import ModelSpec


def beam_splitter(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    length, inner = x.shape[1], spec.heads * spec.value_width
    window = xp.concat([state["history"], x], axis=1)
    if spec.short:
        x = x + short_convolution(window, weights[f"{name}.short"])
    projected = linear(xp, x, weights[f"{name}.in"])  # (B, L, inner (2 + 1 or 2))
    value, radius = projected[..., :inner], projected[..., inner : 2 * inner]
    gate = projected[..., 2 * inner :]
    radius = math.pi / 2 * sigmoid(xp, radius + weights[f"{name}.radius"])
    kept = xp.cos(radius)  # (B, L, inner)
    written = xp.sin(radius) * value if spec.coupling else value
    memory = state["channels"]  # (B, inner), or real and imaginary parts side by side
    if spec.rotation:
        angles = (weights[f"{name}.delta"], weights[f"{name}.chi"])
        real, imaginary = poincare(
            xp, math.pi * xp.tanh(angles[0]), math.pi / 4 * xp.tanh(angles[1])
        )
        kept = kept * xp.sqrt(real * real + imaginary * imaginary)
        # In the frame that turns with the state its decay is real, as in the chunked form.
        turns = positions(xp, x, length)[:, None] + 1
        phase = turns * xp.atan2(imaginary, real)  # (L, inner)
        cos, sin = xp.cos(phase), xp.sin(phase)
        written = xp.concat([cos * written, -sin * written], axis=-1)
        kept = xp.concat([kept, kept], axis=-1)
    states, memory = scan_channels(xp, kept, written, memory)
    if spec.rotation:
        states = turn(xp, states, cos, sin)
        memory = states[:, length - 1]
    read = rms_norm(xp, states) * gate * sigmoid(xp, gate)
    made = {"channels": memory, "history": window[:, length:]}
    return linear(xp, read, weights[f"{name}.out"]), made
