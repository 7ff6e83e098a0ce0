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
| S      | channels, memory | the topological state: a vector, or matrices | bounded       |
| k      | compression | tokens that the encoder's kernel spans       | 4             |

    S_t = cos(rho_t) T S_{t-1} + sin(rho_t) value_t             a number per channel: beam.py
    S_t = cos(rho_t) T S_{t-1} + sin(rho_t) key_t (x) value_t   a matrix per head: topological.py

Shape letters: B batch, L tokens, D width, H heads, K key width, V value width, W = 2V, C chunk,
N chunks.
A complex array is its real part and its imaginary part side by side on the last axis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from . import gpt2
from .mixers import MIXERS
from .mixers.primitives import Array, State, Weights, linear, rms_norm
from .mixers.table import Weight
from .spec import GPT2, ModelSpec, state_shapes, weights


def initialise(spec: ModelSpec, seed: int) -> dict[str, np.ndarray]:
    """Fresh fp32 weights; each depends on the seed and its own name alone."""
    return initialise_table(weights(spec), seed)


def initialise_table(table: dict[str, Weight], seed: int) -> dict[str, np.ndarray]:
    values = {}
    for name, weight in table.items():
        init = weight.init
        spread = np.linspace(init.low, init.high, weight.shape[-1], dtype=np.float32)
        value = np.broadcast_to(spread, weight.shape).copy()
        if init.std:
            key = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
            noise = np.random.Generator(np.random.Philox(key)).standard_normal(weight.shape)
            value += (init.std * noise).astype(np.float32)
        values[name] = value
    return values


def initial_state(xp: Any, spec: ModelSpec, batch: int = 1, cached: int | None = None) -> State:
    shapes = state_shapes(spec, batch, cached)
    return {n: xp.zeros(s, dtype=xp.float32) for n, s in shapes.items()}


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
    mixer_function: Callable[[str], Callable[..., Any]] = lambda name: MIXERS[name].forward,
) -> tuple[Float[Array, "B L vocabulary"], State]:
    """Logits of the byte after each token, and the state after the last. Causal.

    tokens: integers in [0, vocabulary). state: as `initial_state` makes it, or as returned.
    mixer_function: the function of a mixer; an exporter may put another around it.
    L = 1 is one step of generation; any other L gives the same function in chunked form.
    """
    if spec.mixer == GPT2:
        return gpt2.forward(xp, spec, weights, tokens, state, dropout)
    x = xp.take(weights["embed"], xp.reshape(tokens, (-1,)), axis=0)
    x = dropout(xp.reshape(x, (*tokens.shape, spec.width)))  # (B, L, D)
    next_state: dict[str, list[Array]] = {name: [] for name in state}
    for layer, mixer in enumerate(spec.layer_mixers):
        names = MIXERS[mixer].state(spec, 1)
        layer_state = {name: state[name][len(next_state[name])] for name in names}
        mix, block = mixer_function(mixer), f"blocks.{layer}"
        mixed, layer_state = mix(xp, spec, weights, f"{block}.mixer", rms_norm(xp, x), layer_state)
        x = x + dropout(mixed)
        x = x + dropout(mlp(xp, weights, f"{block}.mlp", rms_norm(xp, x)))
        for name, part in layer_state.items():
            next_state[name].append(part)
    logits = linear(xp, rms_norm(xp, x), weights["head"])
    return logits, {name: xp.stack(parts) for name, parts in next_state.items()}


def loss(
    xp: Any, logits: Float[Array, "B L vocabulary"], targets: Int[Array, "B L"]
) -> Float[Array, "B L"]:
    """Cross-entropy of each target byte, in nats."""
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    chosen = xp.take_along_axis(shifted, xp.expand_dims(targets, axis=-1), axis=-1)[..., 0]
    return xp.log(xp.sum(xp.exp(shifted), axis=-1)) - chosen


def log_softmax(
    xp: Any, logits: Float[Array, "*rows vocabulary"]
) -> Float[Array, "*rows vocabulary"]:
    shifted = logits - xp.max(logits, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def distillation_loss(
    xp: Any,
    logits: Float[Array, "B L vocabulary"],
    wanted: Float[Array, "B L vocabulary"],
) -> Float[Array, "B L"]:
    """Cross-entropy with the probabilities `wanted`, in nats (Hinton et al., 2015, arXiv
    1503.02531, at temperature 1)."""
    return -xp.sum(wanted * log_softmax(xp, logits), axis=-1)
