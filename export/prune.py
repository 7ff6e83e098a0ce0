"""Prunes units of no effect. Under weight decay a unit that has stopped to matter gets
no gradient and shrinks to nothing: two fifths of the shipped model's. Without them it computes the
same: its logits move by 3e-4 of their size, a mean KL of 2e-8 nats; int8 moves them by 2e-2."""

from __future__ import annotations

import math

import numpy as np

from ..runtime.engines.native import LANES
from ..training.spec import GPT2, ModelSpec

Weights = dict[str, np.ndarray]

NEGLIGIBLE = 1e-6  # the largest weight of what is; others are of 0.1 to 1
HIDDEN = 8  # runtime/native takes hidden units so many at a time, and LANES at least


def prune(spec: ModelSpec, weights: Weights) -> tuple[ModelSpec, Weights]:
    """The model without hidden units and, of beam splitters, channels of no effect. All layers
    keep as many as the one that needs most; nothing is left out of GPT-2."""
    if spec.mixer == GPT2:
        return spec, weights
    spec, weights = _prune_hidden(spec, weights)
    if set(spec.layer_mixers) == {"beam"} and not spec.switches["rotation"]:
        return _prune_channels(spec, weights)
    return spec, weights


def _prune_hidden(spec: ModelSpec, weights: Weights) -> tuple[ModelSpec, Weights]:
    """A hidden unit that is not written to, or not read from."""
    blocks = [f"blocks.{i}.mlp" for i in range(spec.layers)]
    units_of = _strongest(weights, blocks, HIDDEN)
    pruned = dict(weights)
    for block, units in zip(blocks, units_of, strict=True):
        pruned[f"{block}.in"] = weights[f"{block}.in"][units]
        pruned[f"{block}.out"] = weights[f"{block}.out"][:, units]
    return spec.replace(mlp_ratio=len(units_of[0]) / spec.width), pruned


def _prune_channels(spec: ModelSpec, weights: Weights) -> tuple[ModelSpec, Weights]:
    """A channel that is not written to, or not read from. The latter had a part in the root mean
    square of the others, a small one, as it was written to little."""
    inner = spec.heads * spec.value_width
    blocks = [f"blocks.{i}.mixer" for i in range(spec.layers)]
    channels_of = _strongest(weights, blocks, math.lcm(LANES, spec.heads))
    count, pruned = len(channels_of[0]), dict(weights)
    for block, channels in zip(blocks, channels_of, strict=True):
        rows = np.concatenate([part * inner + channels for part in range(3)])  # value, radius, gate
        pruned[f"{block}.in"] = weights[f"{block}.in"][rows]
        pruned[f"{block}.radius"] = weights[f"{block}.radius"][channels]
        # The mean square is now over fewer channels.
        out = weights[f"{block}.out"][:, channels] * np.float32((inner / count) ** 0.5)
        pruned[f"{block}.out"] = out
    return spec.replace(value_width=count // spec.heads), pruned


def _strongest(weights: Weights, blocks: list[str], multiple: int) -> list[np.ndarray]:
    """The units that each block keeps, in their order: the strongest ones, as many in all. A unit
    is a column of `out`; what is written to it, the row of `in` with its number."""
    strength = []
    for block in blocks:
        out = np.abs(weights[f"{block}.out"])
        written = np.abs(weights[f"{block}.in"][: out.shape[1]])
        strength.append(np.minimum(written.max(axis=1), out.max(axis=0)))
    most = max(int((s >= NEGLIGIBLE).sum()) for s in strength)
    count = min(max(-(-most // multiple) * multiple, LANES), len(strength[0]))
    return [np.sort(np.argsort(-s, kind="stable")[:count]) for s in strength]
