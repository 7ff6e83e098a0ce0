"""The Topological Sequence Model, written once over an array library.

`xp` is an array namespace (the Python array-API standard): `jax.numpy`, or
`array_api_compat.torch` / `array_api_compat.numpy`. The same lines train in PyTorch and JAX,
trace to TFLite and ONNX, and run on NumPy as the oracle of every test.

| symbol | code     | meaning                                         | range         |
| ------ | -------- | ----------------------------------------------- | ------------- |
| delta  | delta    | phase of a head's transmission                  | (-pi, pi)     |
| chi    | chi      | ellipticity                                     | (-pi/4, pi/4) |
| rho    | radius   | coupling angle between memory and input         | (0, pi/2)     |
| T      | poincare | cos(delta/2) + i sin(delta/2) sin(2 chi)        | unit disk     |
| S      | memory   | per-head complex matrix, the topological state  | bounded       |
| k      | compression | tokens that the encoder's kernel spans       | 4             |

    S_t = cos(rho_t) T(delta_t, chi_t) S_{t-1} + sin(rho_t) key_t (x) value_t
    read_t = key-wise product of query_t with S_t: a real and an imaginary part

Shape letters: B batch, L tokens, D width, H heads, K key width, V value width, W = 2V, C chunk,
N chunks.
A complex array is its real part and its imaginary part side by side on the last axis.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from tsm.training.spec import ModelSpec, state_shapes, weights

Array = Any
Weights = dict[str, Any]
State = dict[str, Any]


def initialise(spec: ModelSpec, seed: int) -> dict[str, np.ndarray]:
    """Fresh fp32 weights; each depends on the seed and its own name alone."""
    made = {}
    for name, weight in weights(spec).items():
        init = weight.init
        spread = np.linspace(init.low, init.high, weight.shape[-1], dtype=np.float32)
        value = np.broadcast_to(spread, weight.shape).copy()
        if init.std:
            key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
            noise = np.random.Generator(np.random.Philox(key)).standard_normal(weight.shape)
            value += (init.std * noise).astype(np.float32)
        made[name] = value
    return made


def initial_state(xp: Any, spec: ModelSpec, batch: int = 1) -> State:
    return {n: xp.zeros(s, dtype=xp.float32) for n, s in state_shapes(spec, batch).items()}


def sigmoid(xp: Any, x: Array) -> Array:
    native = getattr(xp, "sigmoid", None)  # PyTorch: one kernel; elsewhere the identity
    return native(x) if native else 0.5 + 0.5 * xp.tanh(0.5 * x)


def rms_norm(xp: Any, x: Array) -> Array:
    """x over its root mean square along the last axis; no gain, the next matrix holds it."""
    return x / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + 1e-6)


def linear(xp: Any, x: Array, matrix: Array) -> Array:
    return x @ xp.matrix_transpose(matrix)


def poincare(xp: Any, delta: Array, chi: Array) -> tuple[Array, Array]:
    """The transmission T as (real, imaginary); |T| <= 1. Angles in radians."""
    return xp.cos(delta / 2), xp.sin(delta / 2) * xp.sin(2 * chi)


def hamiltonian_encoder(
    xp: Any, weights: Weights, name: str, window: Float[Array, "B window D"]
) -> tuple[Float[Array, "B L H"], Float[Array, "B L H"], Float[Array, "B L H"]]:
    """delta, chi and radius of each head by a causal convolution of width k."""
    bias = [weights[f"{name}.{part}"] for part in ("delta", "chi", "radius")]
    heads, kernel = bias[0].shape[0], weights[f"{name}.kernel"]
    taps = kernel.shape[0] // (3 * heads)
    length = window.shape[1] - taps + 1
    products = linear(xp, window, kernel)  # (B, L+k-1, k*3H)
    raw: Array = sum(
        products[:, tap : tap + length, tap * 3 * heads : (tap + 1) * 3 * heads]
        for tap in range(taps)
    )  # (B, L, 3H)
    delta, chi, radius = (raw[..., i * heads : (i + 1) * heads] + bias[i] for i in range(3))
    return (
        math.pi * xp.tanh(delta),
        math.pi / 4 * xp.tanh(chi),
        math.pi / 2 * sigmoid(xp, radius),
    )


def step_form(
    xp: Any,
    query: Float[Array, "B H 1 K"],
    key: Float[Array, "B H 1 K"],
    value: Float[Array, "B H 1 V"],
    delta: Float[Array, "B H 1"],
    chi: Float[Array, "B H 1"],
    radius: Float[Array, "B H 1"],
    memory: Float[Array, "B H K W"],
) -> tuple[Float[Array, "B H 1 W"], Float[Array, "B H K W"]]:
    """One token through the beam splitter, as the equation at the top states it."""
    real, imaginary = (xp.expand_dims(part, axis=-1) for part in poincare(xp, delta, chi))
    radius = xp.expand_dims(radius, axis=-1)  # (B, H, 1, 1)
    width = value.shape[-1]
    written = xp.sin(radius) * xp.matrix_transpose(key) * value  # (B, H, K, V)
    kept = xp.cos(radius) * memory
    memory_real, memory_imaginary = kept[..., :width], kept[..., width:]
    memory = xp.concat(
        [
            real * memory_real - imaginary * memory_imaginary + written,
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
        read, memory = chunked_form(xp, *first, memory=memory, chunk=chunk)
        tail, memory = chunked_form(xp, *last, memory=memory, chunk=chunk)
        return xp.concat([read, tail], axis=2), memory

    real, imaginary = poincare(xp, delta, chi)
    # 1e-24 keeps the logarithm finite where T vanishes: a decay of 1e-12 a token forgets all.
    log_decay = 0.5 * xp.log(xp.cos(radius) ** 2 * (real * real + imaginary * imaginary) + 1e-24)
    phase = xp.cumulative_sum(xp.atan2(imaginary, real), axis=-1)  # (B, H, L)
    cos, sin = (xp.expand_dims(f(phase), axis=-1) for f in (xp.cos, xp.sin))  # (B, H, L, 1)
    coupled = xp.expand_dims(xp.sin(radius), axis=-1) * value
    turned = xp.concat([cos * coupled, -sin * coupled], axis=-1)  # (B, H, L, 2V)

    def split(x: Array) -> Array:  # (B, H, L, W) -> (B, H, N, C, W)
        return xp.reshape(x, (batch, heads, length // chunk, chunk, x.shape[-1]))

    query, key, turned = split(query), split(key), split(turned)
    log_decay = split(xp.expand_dims(log_decay, axis=-1))  # (B, H, N, C, 1)
    since_start = xp.cumulative_sum(log_decay, axis=-2)
    between = since_start - xp.matrix_transpose(since_start)  # (B, H, N, C, C)
    decay = xp.tril(xp.exp(xp.clip(between, None, 0)))  # the future, above 0, could overflow
    within = (query @ xp.matrix_transpose(key) * decay) @ turned  # (B, H, N, C, 2V)

    end = since_start[..., -1:, :]  # (B, H, N, 1, 1)
    kept = xp.exp(end)
    written = xp.matrix_transpose(key * xp.exp(end - since_start)) @ turned  # (B, H, N, K, 2V)
    before, last = _scan(xp, kept, written, memory)  # (B, H, N, K, 2V), (B, H, K, 2V)
    read = within + (query * xp.exp(since_start)) @ before
    read = xp.reshape(read, (batch, heads, length, turned.shape[-1]))
    return _turn(xp, read, cos, sin), _turn(xp, last, cos[:, :, -1:], sin[:, :, -1:])


def _scan(xp: Any, kept: Array, written: Array, memory: Array) -> tuple[Array, Array]:
    """M_n = kept_n M_{n-1} + written_n over axis 2, from `memory`: all M before, and the last.
    Hillis-Steele: the reach doubles each round, so there is no loop primitive to export."""
    count, reach = written.shape[2], 1
    first = written[:, :, :1] + kept[:, :, :1] * xp.expand_dims(memory, axis=2)
    written = xp.concat([first, written[:, :, 1:]], axis=2) if count > 1 else first
    while reach < count:
        written = xp.concat(
            [
                written[:, :, :reach],
                written[:, :, reach:] + kept[:, :, reach:] * written[:, :, :-reach],
            ],
            axis=2,
        )
        kept = xp.concat([kept[:, :, :reach], kept[:, :, reach:] * kept[:, :, :-reach]], axis=2)
        reach *= 2
    memory = xp.expand_dims(memory, axis=2)
    before = xp.concat([memory, written[:, :, :-1]], axis=2) if count > 1 else memory
    return before, written[:, :, -1]


def _turn(xp: Any, x: Array, cos: Array, sin: Array) -> Array:
    """Complex x (..., 2V) times exp(i phase)."""
    width = x.shape[-1] // 2
    real, imaginary = x[..., :width], x[..., width:]
    return xp.concat([cos * real - sin * imaginary, sin * real + cos * imaginary], axis=-1)


def implicit_attention(
    xp: Any,
    spec: ModelSpec,
    weights: Weights,
    name: str,
    x: Float[Array, "B L D"],
    memory: Float[Array, "B H K W"],
    history: Float[Array, "B reach D"],
) -> tuple[Float[Array, "B L D"], Float[Array, "B H K W"], Float[Array, "B reach D"]]:
    """The topological mixer. `x` is normalised. One token takes the step form."""
    (batch, length, _), heads = x.shape, spec.heads
    taps, short = spec.compression, weights[f"{name}.short"]
    window = xp.concat([history, x], axis=1)  # (B, L+k-1, D)
    angles = hamiltonian_encoder(xp, weights, f"{name}.encoder", window)
    angles = [xp.permute_dims(angle, (0, 2, 1)) for angle in angles]  # (B, H, L)
    x = x + sum(window[:, tap : tap + length] * short[tap] for tap in range(taps))
    projected = linear(xp, x, weights[f"{name}.in"])  # (B, L, 2HK + 3HV)

    def part(start: int, width: int) -> Array:  # (B, H, L, width)
        piece = projected[..., start : start + heads * width]
        return xp.permute_dims(xp.reshape(piece, (batch, length, heads, width)), (0, 2, 1, 3))

    keys, values = spec.key_width, spec.value_width
    query, key = part(0, keys), part(heads * keys, keys)
    value, gate = part(2 * heads * keys, values), projected[..., -2 * heads * values :]
    if length == 1:
        read, memory = step_form(xp, query, key, value, *angles, memory=memory)
    else:
        read, memory = chunked_form(xp, query, key, value, *angles, memory=memory, chunk=spec.chunk)
    read = xp.permute_dims(rms_norm(xp, read), (0, 2, 1, 3))  # (B, L, H, 2V)
    read = xp.reshape(read, (batch, length, 2 * heads * values)) * gate * sigmoid(xp, gate)
    return linear(xp, read, weights[f"{name}.out"]), memory, window[:, length:]


def mlp(xp: Any, weights: Weights, name: str, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
    hidden = linear(xp, x, weights[f"{name}.in"])  # (B, L, ratio*D)
    hidden = xp.clip(hidden, 0, None)
    return linear(xp, hidden * hidden, weights[f"{name}.out"])


def dropouts(spec: ModelSpec) -> int:
    """How often `forward` calls its `dropout`, on (B, L, D) each time."""
    return 1 + 2 * spec.layers


def forward(
    xp: Any,
    spec: ModelSpec,
    weights: Weights,
    tokens: Int[Array, "B L"],
    state: State,
    dropout: Callable[[Array], Array] = lambda x: x,
) -> tuple[Float[Array, "B L vocabulary"], State]:
    """Logits of the byte after each token, and the state after the last. Causal.

    tokens: integers in [0, vocabulary). state: as `initial_state` makes it, or as returned.
    L = 1 is one step of generation; any other L gives the same function in chunked form.
    """
    x = xp.take(weights["embed"], xp.reshape(tokens, (-1,)), axis=0)
    x = dropout(xp.reshape(x, (*tokens.shape, spec.width)))  # (B, L, D)
    memories, histories = [], []
    for layer in range(spec.layers):
        mixed, memory, history = implicit_attention(
            xp,
            spec,
            weights,
            f"blocks.{layer}.mixer",
            rms_norm(xp, x),
            state["memory"][layer],
            state["history"][layer],
        )
        x = x + dropout(mixed)
        x = x + dropout(mlp(xp, weights, f"blocks.{layer}.mlp", rms_norm(xp, x)))
        memories.append(memory)
        histories.append(history)
    logits = linear(xp, rms_norm(xp, x), weights["head"])
    return logits, {"memory": xp.stack(memories), "history": xp.stack(histories)}


def loss(
    xp: Any, logits: Float[Array, "B L vocabulary"], targets: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Cross-entropy of each target byte, in nats."""
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    chosen = xp.take_along_axis(shifted, xp.expand_dims(targets, axis=-1), axis=-1)[..., 0]
    return xp.log(xp.sum(xp.exp(shifted), axis=-1)) - chosen
