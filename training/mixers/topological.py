"""The topological mixer: a beam splitter per head, as the glossary of `training/model.py` has it.

    S_t = cos(rho_t) T(delta_t, chi_t) S_{t-1} + sin(rho_t) key_t (x) value_t
    read_t = key-wise product of query_t with S_t: a real and an imaginary part

W is the width of a complex array, its real part and its imaginary part side by side: 2V. C chunk,
N chunks. Ablations, all fields of the spec: without `rotation` T is its own modulus and W = V;
without `coupling` the update is not scaled by sin(rho); with a `stride` above 1 the angles
are made once per whole stretch of tokens and serve the next one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxtyping import Float

from .primitives import (
    Array,
    State,
    Weights,
    decays,
    join_heads,
    linear,
    positions,
    rms_norm,
    scan,
    short_convolution,
    sigmoid,
    split_heads,
)
from .table import Init, Mixer, Shape, Weight, input_projection, output_projection, radius_logit

if TYPE_CHECKING:
    from ..spec import ModelSpec

# T is complex, else its modulus alone; sin(rho) scales the update; a convolution over k tokens
# before the projections; tokens that share their angles, made by the tokens before them.
SWITCHES = {"rotation": True, "coupling": True, "short": True, "stride": 1}


def read_width(spec: ModelSpec) -> int:
    """Of what a head reads: its real part and, with a rotation, its imaginary part."""
    return spec.value_width * (2 if spec.switches["rotation"] else 1)


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    h, k = spec.heads, spec.compression
    keys, values, read = (h * w for w in (spec.key_width, spec.value_width, read_width(spec)))
    table = {
        "short": Weight((k, spec.width), ("tap", "width")),
        "encoder.kernel": Weight(
            (k * 3 * h, spec.width), ("parameter", "width"), Init(std=0.1 * spec.width**-0.5)
        ),
        "encoder.upsample": Weight(
            (spec.switches["stride"], 3 * h), ("place", "parameter"), Init(0, 1, 1)
        ),
        # Heads start as a bank of memories of 2 to 256 tokens that turn at -0.3 to 0.3 radians
        # a token: chi near pi/4, so that delta rotates and hardly damps.
        "encoder.delta": Weight((h,), ("head",), Init(low=-0.2, high=0.2)),
        "encoder.chi": Weight((h,), ("head",), Init(low=1.0, high=1.0)),
        "encoder.radius": Weight(
            (h,), ("head",), Init(low=radius_logit(2), high=radius_logit(256))
        ),
        # query, key, value, and a gate for the real and the imaginary part of what is read
        "in": input_projection(spec, 2 * keys + values + read),
        "out": output_projection(spec, read),
    }
    unused = [] if spec.switches["short"] else ["short"]
    unused += [] if spec.switches["stride"] > 1 else ["encoder.upsample"]
    return {name: weight for name, weight in table.items() if name not in unused}


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    shapes = {
        "memory": (spec.heads, spec.key_width, read_width(spec)),
        "history": (spec.compression - 1, spec.width),
    }
    if spec.switches["stride"] > 1:
        shapes |= {"held": (1, 3 * spec.heads), "count": (1,)}
    return shapes


def poincare(xp: Any, delta: Array, chi: Array) -> tuple[Array, Array]:
    """The transmission T as (real, imaginary); |T| <= 1. Angles in radians."""
    return xp.cos(delta / 2), xp.sin(delta / 2) * xp.sin(2 * chi)


def hamiltonian_encoder(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, window: Array, state: State
) -> tuple[list[Float[Array, "B H L"]], State]:
    """delta, chi and radius of each head by a causal convolution of width k over `window`
    (B, L+k-1, D); with a stride, that of the last whole stretch, scaled by place in this one."""
    bias = [weights[f"{name}.{part}"] for part in ("delta", "chi", "radius")]
    heads, kernel = spec.heads, weights[f"{name}.kernel"]
    taps, each = spec.compression, 3 * heads
    length = window.shape[1] - taps + 1
    products = linear(xp, window, kernel)  # (B, L+k-1, k*3H)
    raw: Array = sum(
        products[:, tap : tap + length, tap * each : (tap + 1) * each] for tap in range(taps)
    )  # (B, L, 3H)
    next_state: State = {}
    if spec.switches["stride"] > 1:
        raw, next_state = _upsample(xp, spec, weights[f"{name}.upsample"], raw, state)
    delta, chi, radius = (raw[..., i * heads : (i + 1) * heads] + bias[i] for i in range(3))
    angles = [
        math.pi * xp.tanh(delta),
        math.pi / 4 * xp.tanh(chi),
        math.pi / 2 * sigmoid(xp, radius),
    ]
    return [xp.permute_dims(angle, (0, 2, 1)) for angle in angles], next_state


def _upsample(
    xp: Any, spec: ModelSpec, gains: Array, raw: Float[Array, "B L each"], state: State
) -> tuple[Float[Array, "B L each"], State]:
    """What each token of a stretch gets of the last value of the stretch before: a transposed
    convolution of stride `stride`, channel by channel. The first stretch gets zeros."""
    length, stride = raw.shape[1], spec.switches["stride"]
    at = positions(xp, raw, length)  # (L,)
    count = state["count"][0, 0]  # tokens before this block, in its own stretch
    place = (count + at) % stride
    known = xp.concat([state["held"], raw], axis=1)  # known[t]: the raw value of token t-1
    source = xp.astype(xp.clip(at - place, 0, None), xp.int32)  # token that starts the stretch
    upsampled = xp.take(known, source, axis=1) * xp.take(gains, xp.astype(place, xp.int32), axis=0)
    after = (count + length) % stride
    last = xp.astype(xp.clip(length - after, 0, None), xp.int32)
    held = xp.take(known, xp.reshape(last, (1,)), axis=1)
    return upsampled, {"held": held, "count": xp.zeros_like(state["count"]) + after}


def step_form(
    xp: Any,
    query: Float[Array, "B H 1 K"],
    key: Float[Array, "B H 1 K"],
    value: Float[Array, "B H 1 V"],
    delta: Float[Array, "B H 1"],
    chi: Float[Array, "B H 1"],
    radius: Float[Array, "B H 1"],
    memory: Float[Array, "B H K W"],
    coupling: bool = True,
) -> tuple[Float[Array, "B H 1 W"], Float[Array, "B H K W"]]:
    """One token through the beam splitter, as the equation at the top states it."""
    real, imaginary = (xp.expand_dims(part, axis=-1) for part in poincare(xp, delta, chi))
    radius = xp.expand_dims(radius, axis=-1)  # (B, H, 1, 1)
    width = value.shape[-1]
    update = xp.matrix_transpose(key) * value  # (B, H, K, V)
    if coupling:
        update = xp.sin(radius) * update
    decay = xp.cos(radius) * memory
    if memory.shape[-1] == width:  # no rotation
        memory = xp.sqrt(real * real + imaginary * imaginary) * decay + update
        return query @ memory, memory
    memory_real, memory_imaginary = decay[..., :width], decay[..., width:]
    memory = xp.concat(
        [
            real * memory_real - imaginary * memory_imaginary + update,
            imaginary * memory_real + real * memory_imaginary,
        ],
        axis=-1,
    )
    return query @ memory, memory


def chunked_form(
    xp: Any,
    query: Float[Array, "B H L K"],
    key: Float[Array, "B H L K"],
    value: Float[Array, "B H L V"],
    delta: Float[Array, "B H L"],
    chi: Float[Array, "B H L"],
    radius: Float[Array, "B H L"],
    memory: Float[Array, "B H K W"],
    chunk: int,
    coupling: bool = True,
) -> tuple[Float[Array, "B H L W"], Float[Array, "B H K W"]]:
    """The same function for L tokens at once: matrix products inside a chunk, a scan over chunks.

    The scan runs in the frame that turns with the state, R_t = exp(-i Phi_t) S_t with Phi the
    running phase: there the decay is real, so that only values and results are ever rotated.
    """
    batch, heads, length, _ = query.shape
    chunk = min(chunk, length)
    whole = length // chunk * chunk
    if whole < length:  # the tail that does not fill a chunk
        first = [x[:, :, :whole, ...] for x in (query, key, value, delta, chi, radius)]
        last = [x[:, :, whole:, ...] for x in (query, key, value, delta, chi, radius)]
        read, memory = chunked_form(xp, *first, memory=memory, chunk=chunk, coupling=coupling)
        tail, memory = chunked_form(xp, *last, memory=memory, chunk=chunk, coupling=coupling)
        return xp.concat([read, tail], axis=2), memory

    real, imaginary = poincare(xp, delta, chi)
    # 1e-24 keeps the logarithm finite where T vanishes: a decay of 1e-12 a token forgets all.
    log_decay = 0.5 * xp.log(xp.cos(radius) ** 2 * (real * real + imaginary * imaginary) + 1e-24)
    turned = xp.expand_dims(xp.sin(radius), axis=-1) * value if coupling else value
    rotation = memory.shape[-1] > value.shape[-1]
    phase = xp.cumulative_sum(xp.atan2(imaginary, real), axis=-1)  # (B, H, L)
    cos, sin = (xp.expand_dims(f(phase), axis=-1) for f in (xp.cos, xp.sin))  # (B, H, L, 1)
    if rotation:
        turned = xp.concat([cos * turned, -sin * turned], axis=-1)  # (B, H, L, W)

    def split(x: Array) -> Array:  # (B, H, L, W) -> (B, H, N, C, W)
        return xp.reshape(x, (batch, heads, length // chunk, chunk, x.shape[-1]))

    query, key, turned = split(query), split(key), split(turned)
    log_decay = split(xp.expand_dims(log_decay, axis=-1))  # (B, H, N, C, 1)
    since_start, decay = decays(xp, log_decay)  # the latter (B, H, N, C, C)
    within = (query @ xp.matrix_transpose(key) * decay) @ turned  # (B, H, N, C, W)

    end = since_start[..., -1:, :]  # (B, H, N, 1, 1)
    decay = xp.exp(end)
    update = xp.matrix_transpose(key * xp.exp(end - since_start)) @ turned  # (B, H, N, K, W)
    before, last = scan(xp, decay, update, memory)  # (B, H, N, K, W), (B, H, K, W)
    read = within + (query * xp.exp(since_start)) @ before
    read = xp.reshape(read, (batch, heads, length, turned.shape[-1]))
    if not rotation:
        return read, last
    return turn(xp, read, cos, sin), turn(xp, last, cos[:, :, -1:], sin[:, :, -1:])


def turn(xp: Any, x: Array, cos: Array, sin: Array) -> Array:
    """Complex x (..., W) times exp(i phase)."""
    width = x.shape[-1] // 2
    real, imaginary = x[..., :width], x[..., width:]
    return xp.concat([cos * real - sin * imaginary, sin * real + cos * imaginary], axis=-1)


def implicit_attention(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    """The mixer. `x` is normalised. One token takes the step form, more the chunked form."""
    length, heads, taps = x.shape[1], spec.heads, spec.compression
    window = xp.concat([state["history"], x], axis=1)  # (B, L+k-1, D)
    angles, angle_state = hamiltonian_encoder(xp, spec, weights, f"{name}.encoder", window, state)
    if spec.switches["short"]:
        x = x + short_convolution(window, weights[f"{name}.short"])
    projected = linear(xp, x, weights[f"{name}.in"])  # (B, L, H(2K + V + W))
    keys, values = heads * spec.key_width, heads * spec.value_width
    parts = ((0, keys), (keys, 2 * keys), (2 * keys, 2 * keys + values))
    query, key, value = (split_heads(xp, projected[..., a:b], heads) for a, b in parts)
    gate = projected[..., 2 * keys + values :]  # (B, L, H*W)
    memory, on = state["memory"], spec.switches["coupling"]
    if length == 1:
        read, memory = step_form(xp, query, key, value, *angles, memory=memory, coupling=on)
    else:
        read, memory = chunked_form(
            xp, query, key, value, *angles, memory=memory, chunk=spec.chunk, coupling=on
        )
    read = join_heads(xp, rms_norm(xp, read)) * gate * sigmoid(xp, gate)
    history = window[:, window.shape[1] - taps + 1 :]
    next_state = {"memory": memory, "history": history, **angle_state}
    return linear(xp, read, weights[f"{name}.out"]), next_state


MIXERS = {"topological": Mixer(weights_of, state_of, implicit_attention, SWITCHES)}
