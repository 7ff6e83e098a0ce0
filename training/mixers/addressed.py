"""A beam splitter that couples the addressed mode alone: a memory of keys and values by head.

    m_t = key_t^T S_{t-1}                                     what the memory holds at the key
    S_t = a_t (S_{t-1} + key_t (x) (cos(rho_t) T_t - 1) m_t) + sin(rho_t) key_t (x) value_t
    read_t = query_t^T S_t

The splitter turns what is held and the value into cos(rho) T m + sin(rho) value; all modes beside
the key's stay, but for the slow decay a < 1, which bounds |S|. The delta rule (Yang et al., 2024,
arXiv 2406.06484) has 1 - beta and beta in place of cos(rho) T and sin(rho). With `rotation` T =
poincare(delta, chi), and S is complex; without, T = cos(delta), from -1 to 1: a mode can change its
sign, which counting modulo two wants.

delta, chi, rho and a are the encoder's, by head and token. Keys and queries have length 1; a short
convolution over k tokens makes them, and the values.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Shaped

from .primitives import (
    Array,
    State,
    Weights,
    decays,
    join_heads,
    linear,
    rms_norm,
    short_convolution,
    sigmoid,
    split_heads,
)
from .table import Init, Mixer, Shape, Weight, input_projection, output_projection, radius_logit
from .topological import poincare, read_width

if TYPE_CHECKING:
    from ..spec import ModelSpec

SWITCHES = {"rotation": True}  # T is complex, else its real part alone
ANGLES = ("delta", "chi", "radius", "decay")  # of the encoder; chi with `rotation` alone


def angles_of(spec: ModelSpec) -> list[str]:
    return [name for name in ANGLES if name != "chi" or spec.switches["rotation"]]


def projected_width(spec: ModelSpec) -> int:
    """Queries, keys and values of all heads."""
    return spec.heads * (2 * spec.key_width + spec.value_width)


def weights_of(spec: ModelSpec) -> dict[str, Weight]:
    h, angles, read = spec.heads, angles_of(spec), spec.heads * read_width(spec)
    biases = {
        "delta": Init(low=-0.2, high=0.2),
        "chi": Init(low=1.0, high=1.0),
        "radius": Init(),  # half of what is held gives way to the value
        "decay": Init(low=radius_logit(256), high=radius_logit(16384)),
    }
    return {
        # Started at random: at zero neither keys nor values of other tokens are found.
        "short": Weight((spec.compression, projected_width(spec)), ("tap", "inner"), Init(std=0.3)),
        "encoder": Weight(
            (len(angles) * h, spec.width), ("parameter", "width"), Init(std=0.1 * spec.width**-0.5)
        ),
        **{f"encoder.{name}": Weight((h,), ("head",), biases[name]) for name in angles},
        "in": input_projection(spec, projected_width(spec) + read),  # and a gate
        "out": output_projection(spec, read),
    }


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    return {
        "addressed": (spec.heads, spec.key_width, read_width(spec)),
        "projected": (spec.compression - 1, projected_width(spec)),
    }


def step_form(
    xp: Any,
    query: Float[Array, "B H 1 K"],
    key: Float[Array, "B H 1 K"],
    value: Float[Array, "B H 1 V"],
    gain: tuple[Float[Array, "B H 1"], Float[Array, "B H 1"] | None],
    coupling: Float[Array, "B H 1"],
    decay: Float[Array, "B H 1"],
    memory: Float[Array, "B H K W"],
) -> tuple[Float[Array, "B H 1 W"], Float[Array, "B H K W"]]:
    """One token, as the equations at the top have it. gain: cos(rho) T, real and imaginary part."""
    real, imaginary = gain[0][..., None], gain[1]
    held = key @ memory  # (B, H, 1, W)
    change = (real - 1) * held
    update = coupling[..., None] * value  # (B, H, 1, V)
    if imaginary is not None:
        imaginary, width = imaginary[..., None], value.shape[-1]
        turned = [-imaginary * held[..., width:], imaginary * held[..., :width]]
        change = change + xp.concat(turned, axis=-1)
        update = xp.concat([update, xp.zeros_like(update)], axis=-1)
    decay, column = decay[..., None], xp.matrix_transpose(key)
    memory = decay * (memory + column * change) + column * update
    return query @ memory, memory


def chunked_form(
    xp: Any,
    query: Float[Array, "B H L K"],
    key: Float[Array, "B H L K"],
    value: Float[Array, "B H L V"],
    gain: tuple[Float[Array, "B H L"], Float[Array, "B H L"] | None],
    coupling: Float[Array, "B H L"],
    decay: Float[Array, "B H L"],
    memory: Float[Array, "B H K W"],
    chunk: int,
) -> tuple[Float[Array, "B H L W"], Float[Array, "B H K W"]]:
    """The same function for L tokens at once, a chunk after the other.

    Within a chunk S_t = A_t S_0 + sum over i <= t of (A_t / A_i) key_i (x) w_i, with A the product
    of the decays so far. The w solve a triangular system, w_t = (gain_t - 1) key_t^T (S before t,
    decayed to t) + coupling_t value_t: the WY representation of a product of rank-one changes.
    """
    batch, heads, length, _ = query.shape
    while chunk // 2 >= length:
        chunk //= 2
    real, imaginary = gain
    change = real - 1
    if imaginary is not None:  # all is complex: PyTorch multiplies no real matrix by a complex one
        change = change + 1j * imaginary
        width = value.shape[-1]
        memory = memory[..., :width] + 1j * memory[..., width:]
        query, key, value = query + 0j, key + 0j, value + 0j
    rest = -length % chunk  # tokens that change nothing fill the last chunk

    def split(x: Array) -> Array:  # (B, H, L, W) -> (BH, N, C, W): LiteRT errs at five axes
        if rest:
            x = xp.concat([x, xp.zeros_like(x[:, :, :rest])], axis=2)
        return xp.reshape(x, (batch * heads, -1, chunk, x.shape[-1]))

    query, key, value = split(query), split(key), split(coupling[..., None] * value)
    log_decay = 0.5 * xp.log(decay * decay + 1e-12)  # in fp32 cos(pi/2) is below 0
    change, log_decay = split(change[..., None]), split(log_decay[..., None])
    so_far, between = decays(xp, log_decay)  # (BH, N, C, 1), log A; (BH, N, C, C)
    column = xp.matrix_transpose(key)
    solved = unit_lower_inverse(xp, change * xp.tril(key @ column * between, k=-1))
    own = solved @ value  # w of the values alone
    of_state = solved @ (change * xp.exp(so_far) * key)  # w by what is held before the chunk
    within = query @ column * between
    last = so_far[..., -1:, :]
    to_end = xp.matrix_transpose(key * xp.exp(last - so_far))
    decayed_query, end = query * xp.exp(so_far), xp.exp(last)
    reads, memory = [], xp.reshape(memory, (batch * heads, *memory.shape[2:]))
    for n in range(query.shape[1]):
        w = own[:, n] + of_state[:, n] @ memory
        reads.append(within[:, n] @ w + decayed_query[:, n] @ memory)
        memory = end[:, n] * memory + to_end[:, n] @ w
    read = xp.concat(reads, axis=1)[:, :length]
    read, memory = (xp.reshape(x, (batch, heads, *x.shape[1:])) for x in (read, memory))
    if imaginary is not None:
        read, memory = (xp.concat([xp.real(x), xp.imag(x)], axis=-1) for x in (read, memory))
    return read, memory


def unit_lower_inverse(xp: Any, lower: Shaped[Array, "*rows C C"]) -> Shaped[Array, "*rows C C"]:
    """(I - lower)^-1, of a strictly lower triangular matrix whose size is a power of two: inverses
    of the blocks on the diagonal, joined two by two. Powers of `lower` in place of that would lose
    all digits where a key comes again and again."""
    size, rows = lower.shape[-1], lower.shape[:-2]
    inverse = xp.reshape(xp.ones_like(lower[..., :1]), (*rows, size, 1, 1))
    width = 1
    while width < size:
        count = size // (2 * width)
        blocks = xp.reshape(lower, (*rows, count, 2 * width, count, 2 * width))
        below = xp.stack(
            [blocks[..., i, width:, i, :width] for i in range(count)], axis=-3
        )  # (rows, count, width, width)
        pairs = xp.reshape(inverse, (*rows, count, 2, width, width))
        first, second = pairs[..., 0, :, :], pairs[..., 1, :, :]
        above = xp.concat([first, xp.zeros_like(first)], axis=-1)
        inverse = xp.concat([above, xp.concat([second @ below @ first, second], axis=-1)], axis=-2)
        width *= 2
    return inverse[..., 0, :, :]


def addressed_splitter(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    """The mixer. `x` is normalised. One token takes the step form, more the chunked form."""
    length, heads, inner = x.shape[1], spec.heads, projected_width(spec)
    angles = angles_of(spec)
    raw = linear(xp, x, weights[f"{name}.encoder"])  # (B, L, angles * H)
    raw = {
        part: xp.permute_dims(
            raw[..., i * heads : (i + 1) * heads] + weights[f"{name}.encoder.{part}"], (0, 2, 1)
        )
        for i, part in enumerate(angles)
    }
    radius, slow = (math.pi / 2 * sigmoid(xp, raw[part]) for part in ("radius", "decay"))
    delta = math.pi * xp.tanh(raw["delta"])
    if spec.switches["rotation"]:
        real, imaginary = poincare(xp, delta, math.pi / 4 * xp.tanh(raw["chi"]))
        gain = xp.cos(radius) * real, xp.cos(radius) * imaginary
    else:
        gain = xp.cos(radius) * xp.cos(delta), None

    projected = linear(xp, x, weights[f"{name}.in"])  # (B, L, H(2K + V + W))
    window = xp.concat([state["projected"], projected[..., :inner]], axis=1)
    mixed = short_convolution(window, weights[f"{name}.short"])
    mixed = mixed * sigmoid(xp, mixed)
    keys = heads * spec.key_width
    query, key, value = (
        split_heads(xp, mixed[..., a:b], heads)
        for a, b in ((0, keys), (keys, 2 * keys), (2 * keys, inner))
    )
    query, key = (rms_norm(xp, part) / spec.key_width**0.5 for part in (query, key))
    arguments = query, key, value, gain, xp.sin(radius), xp.cos(slow), state["addressed"]
    if length == 1:
        read, memory = step_form(xp, *arguments)
    else:
        read, memory = chunked_form(xp, *arguments, chunk=spec.chunk)
    gate = projected[..., inner:]
    read = join_heads(xp, rms_norm(xp, read)) * gate * sigmoid(xp, gate)
    state = {"addressed": memory, "projected": window[:, length:]}
    return linear(xp, read, weights[f"{name}.out"]), state


MIXERS = {"addressed": Mixer(weights_of, state_of, addressed_splitter, SWITCHES)}
