"""Baseline: Performer, softmax attention approximated by positive random features (FAVOR+,
Choromanski et al. 2020, arXiv 2009.14794), causal by running sums over chunks: O(n).

The features are orthogonal draws from a fixed seed, the same for every head and layer. Their
usual stabiliser, the greatest exponent over the sequence, would let a token see its future by
a rounding; the normalised queries and keys bound the exponents instead. Positions are rotary, as
in RoFormer (arXiv 2104.09864), from a count of the tokens read.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..kernels.onnx_scan import exporting, scan_tokens
from .attention import project, rotate
from .attention import weights_of as attention_weights
from .primitives import (
    Array,
    State,
    Weights,
    constant,
    join_heads,
    linear,
    scan,
)
from .table import Mixer, Shape

if TYPE_CHECKING:
    from ..spec import ModelSpec

# Random features of a head.
SWITCHES = {"performer_features": 128}


def state_of(spec: ModelSpec, cached: int) -> dict[str, Shape]:
    sums = (spec.heads, spec.switches["performer_features"], spec.value_width + 1)
    return {"sums": sums, "count": (1,)}


# Of a query and a key, as `features` sees them: the variance of the approximation grows with its
# exponential. At sqrt(K), attention's, training is 0.03 nats/byte behind after 200 small updates.
SQUARED_LENGTH = 3.0


def performer(
    xp: Any, spec: ModelSpec, weights: Weights, name: str, x: Float[Array, "B L D"], state: State
) -> tuple[Float[Array, "B L D"], State]:
    query, key, value = project(xp, spec, weights, name, x)
    count = state["count"][0, 0]
    shorter = (SQUARED_LENGTH / query.shape[-1] ** 0.5) ** 0.5
    query, key = (shorter * rotate(xp, part, count) for part in (query, key))
    query, key = (features(xp, part, spec.switches["performer_features"]) for part in (query, key))
    value = xp.concat([value, xp.ones_like(value[..., :1])], axis=-1)  # the sum of the weights too
    sums, length = state["sums"], x.shape[1]
    if length > 1 and exporting(x):

        def step(carry: Any, token: Any, _: Any) -> Any:
            query, key, value = (part[:, :, None] for part in token)
            read, sums = running_sums(xp, query, key, value, sums=carry[0], chunk=1)
            return [sums], [read[:, :, 0]]

        [sums], [read] = scan_tokens(step, [sums], [query, key, value], axis=2)
    else:
        reads = []
        for start, end in _pieces(length, spec.chunk):
            parts = (part[:, :, start:end] for part in (query, key, value))
            read, sums = running_sums(xp, *parts, sums=sums, chunk=min(spec.chunk, end - start))
            reads.append(read)
        read = xp.concat(reads, axis=2)
    read = read[..., :-1] / read[..., -1:]
    return linear(xp, join_heads(xp, read), weights[f"{name}.out"]), {
        "sums": sums,
        "count": state["count"] + length,
    }


def features(xp: Any, x: Float[Array, "B H L K"], count: int) -> Float[Array, "B H L M"]:
    """exp(w.x - |x|^2/2) / sqrt(M): products of these have the mean exp(x.y / sqrt(K))."""
    directions = constant(xp, _directions(x.shape[-1], count), x)
    # TFLite wants equal ranks.
    directions = xp.broadcast_to(directions, (*x.shape[:2], *directions.shape))
    x = x / x.shape[-1] ** 0.25
    exponent = x @ directions - xp.sum(x * x, axis=-1, keepdims=True) / 2
    return xp.exp(exponent) / count**0.5


@cache
def _directions(width: int, count: int) -> np.ndarray:
    """(width, count) of normal vectors, orthogonal within each group of `width`."""
    random = np.random.Generator(np.random.Philox(0))
    groups = []
    for _ in range(-(-count // width)):
        directions, triangle = np.linalg.qr(random.standard_normal((width, width)))
        directions *= np.sign(np.diag(triangle))  # else the first coordinates lean to one side
        groups.append(directions * np.linalg.norm(random.standard_normal((width, width)), axis=0))
    return np.concatenate(groups, axis=1)[:, :count].astype(np.float32)


def running_sums(
    xp: Any,
    query: Float[Array, "B H L M"],
    key: Float[Array, "B H L M"],
    value: Float[Array, "B H L V"],
    sums: Float[Array, "B H M V"],
    chunk: int,
) -> tuple[Float[Array, "B H L V"], Float[Array, "B H M V"]]:
    """query_t of the sum of key_s (x) value_s over s <= t, L being whole chunks."""
    batch, heads, length, _ = query.shape

    def split(x: Array) -> Array:  # (B, H, N, C, -)
        return xp.reshape(x, (batch, heads, length // chunk, chunk, x.shape[-1]))

    query, key, value = split(query), split(key), split(value)
    within = xp.tril(query @ xp.matrix_transpose(key)) @ value
    update = xp.matrix_transpose(key) @ value  # (B, H, N, M, V)
    before, sums = scan(xp, xp.ones_like(update[..., :1, :1]), update, sums)
    read = within + query @ before
    return xp.reshape(read, (batch, heads, length, value.shape[-1])), sums


def _pieces(length: int, chunk: int) -> list[tuple[int, int]]:
    whole = length // chunk * chunk
    return [(a, b) for a, b in ((0, whole), (whole, length)) if a < b]


MIXERS = {
    "performer": Mixer(attention_weights, state_of, performer, SWITCHES, any_length=lambda _: True)
}
