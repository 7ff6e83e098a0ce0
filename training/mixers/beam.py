"""The beam splitter of the TSM channel by channel: its state is a vector, not a matrix per head.

    s_t = cos(rho_t) T s_{t-1} + sin(rho_t) value_t        T = poincare(delta, chi)

Each channel has a coupling angle rho of its own, which the text gives through the short convolution
and a projection, and with `rotation` a transmission T that training gives it; without, T = 1.
What is read is the state, over its root mean square and gated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from .primitives import (
    Array,
    State,
    Weights,
    coupled_scan,
    coupling_angle,
    linear,
    positions,
    rms_norm,
    scan_channels,
    short_convolution,
    sigmoid,
)
from .table import Init, Mixer, Shape, Weight, input_projection, output_projection, radius_logit
from .topological import poincare, read_width, turn

if TYPE_CHECKING:
    from ..spec import ModelSpec

# T is complex, else 1; sin(rho) scales the update; a convolution over k tokens before the
# projections.
SWITCHES = {"rotation": True, "coupling": True, "short": True}


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    inner, read = spec.heads * spec.value_width, spec.heads * read_width(spec)
    channel = (("inner",),)
    table = {
        "short": Weight((spec.compression, spec.width), ("tap", "width"), Init(std=0.3)),
        # Channels start as memories of 1 to 50 tokens.
        "radius": Weight((inner,), *channel, Init(low=radius_logit(1), high=radius_logit(50))),
        "in": input_projection(spec, 2 * inner + read),  # value, radius, gate
        "out": output_projection(spec, read),
    }
    if not spec.switches["short"]:
        del table["short"]
    if spec.switches["rotation"]:  # to begin with by -0.15 to 0.15 radians a token, hardly damped
        table["delta"] = Weight((inner,), *channel, Init(low=-0.1, high=0.1))
        table["chi"] = Weight((inner,), *channel, Init(low=2, high=2))
    return table


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    return {
        "channels": (spec.heads * read_width(spec),),
        "history": (spec.compression - 1, spec.width),
    }


def beam_splitter(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    length, inner = x.shape[1], spec.heads * spec.value_width
    window = xp.concat([state["history"], x], axis=1)
    if spec.switches["short"]:
        x = x + short_convolution(window, weights[f"{name}.short"])
    projected = linear(xp, x, weights[f"{name}.in"])  # (B, L, inner (2 + 1 or 2))
    value, radius = projected[..., :inner], projected[..., inner : 2 * inner]
    gate = projected[..., 2 * inner :]
    radius = radius + weights[f"{name}.radius"]
    memory = state["channels"]  # (B, inner), or real and imaginary parts side by side
    if spec.switches["coupling"] and not spec.switches["rotation"]:
        states, memory = coupled_scan(xp, value, radius, memory)
    else:
        radius = coupling_angle(xp, radius)
        decay = xp.cos(radius)  # (B, L, inner)
        update = xp.sin(radius) * value if spec.switches["coupling"] else value
        if spec.switches["rotation"]:
            angles = weights[f"{name}.delta"], weights[f"{name}.chi"]
            states, memory = rotating_scan(xp, decay, update, memory, *angles)
        else:
            states, memory = scan_channels(xp, decay, update, memory)
    read = rms_norm(xp, states) * gate * sigmoid(xp, gate)
    state = {"channels": memory, "history": window[:, length:]}
    return linear(xp, read, weights[f"{name}.out"]), state


def rotating_scan(
    xp: Any,
    decay: Float[Array, "B L inner"],
    update: Float[Array, "B L inner"],
    memory: Float[Array, "B 2*inner"],
    delta: Float[Array, " inner"],
    chi: Float[Array, " inner"],
) -> tuple[Float[Array, "B L 2*inner"], Float[Array, "B 2*inner"]]:
    """As `scan_channels`, each step also times T of these angles, before their bounds."""
    real, imaginary = poincare(xp, math.pi * xp.tanh(delta), math.pi / 4 * xp.tanh(chi))
    decay = decay * xp.sqrt(real * real + imaginary * imaginary)
    # In the frame that turns with the state its decay is real, as in the chunked form.
    turns = positions(xp, decay, decay.shape[1])[:, None] + 1
    phase = turns * xp.atan2(imaginary, real)  # (L, inner)
    cos, sin = xp.cos(phase), xp.sin(phase)
    update = xp.concat([cos * update, -sin * update], axis=-1)
    states, _ = scan_channels(xp, xp.concat([decay, decay], axis=-1), update, memory)
    states = turn(xp, states, cos, sin)
    return states, states[:, -1]


MIXERS = {
    "beam": Mixer(
        weights_of,
        state_of,
        beam_splitter,
        SWITCHES,
        # In fp32 the phase of a long block is too coarse.
        any_length=lambda spec: not spec.switches["rotation"],
        splits=lambda spec: not spec.switches["rotation"],
    )
}
