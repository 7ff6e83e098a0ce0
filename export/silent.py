"""Leaves out what training has silenced. Under weight decay a unit that has stopped to matter gets
no gradient and shrinks to nothing: a third of the shipped model's. Without them it computes the
same: its logits move by 3e-4 of their size, a mean KL of 2e-8 nats; int8 moves them by 2e-2."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tsm.training.spec import GPT2, ModelSpec

Weights = dict[str, np.ndarray]

SILENT = 1e-6  # the largest weight of what is; others are of 0.1 to 1
# Of units, as runtime/native takes them.
LEAST, MULTIPLE = 16, {"hidden": 8, "channels": 16}


def without_silent(spec: ModelSpec, weights: Weights) -> tuple[ModelSpec, Weights]:
    """The model without silent hidden units and, of beam splitters, silent channels. All layers
    keep as many as the one that needs most; nothing is left out of GPT-2."""
    if spec.mixer == GPT2:
        return spec, weights
    spec, weights = _without_hidden(spec, weights)
    if set(spec.layer_mixers) == {"beam"} and not spec.rotation:
        return _without_channels(spec, weights)
    return spec, weights


def _without_hidden(spec: ModelSpec, weights: Weights) -> tuple[ModelSpec, Weights]:
    """A hidden unit that is not written to, or not read from."""
    blocks = [f"blocks.{i}.mlp" for i in range(spec.layers)]
    strength = [
        np.minimum(_greatest(weights[f"{b}.in"], 1), _greatest(weights[f"{b}.out"], 0))
        for b in blocks
    ]
    kept = _kept(strength, MULTIPLE["hidden"])
    made = dict(weights)
    for block, units in zip(blocks, kept, strict=True):
        made[f"{block}.in"] = weights[f"{block}.in"][units]
        made[f"{block}.out"] = weights[f"{block}.out"][:, units]
    return replace(spec, mlp_ratio=len(kept[0]) / spec.width), made


def _without_channels(spec: ModelSpec, weights: Weights) -> tuple[ModelSpec, Weights]:
    """A channel that is not written to, or not read from. The latter had a part in the root mean
    square of the others, a small one, as it was written to little."""
    inner = spec.heads * spec.value_width
    blocks = [f"blocks.{i}.mixer" for i in range(spec.layers)]
    strength = [
        np.minimum(_greatest(weights[f"{b}.in"][:inner], 1), _greatest(weights[f"{b}.out"], 0))
        for b in blocks
    ]
    kept = _kept(strength, math.lcm(MULTIPLE["channels"], spec.heads))
    count, made = len(kept[0]), dict(weights)
    for block, channels in zip(blocks, kept, strict=True):
        rows = np.concatenate([part * inner + channels for part in range(3)])  # value, radius, gate
        made[f"{block}.in"] = weights[f"{block}.in"][rows]
        made[f"{block}.radius"] = weights[f"{block}.radius"][channels]
        # The mean square is now over fewer channels.
        out = weights[f"{block}.out"][:, channels] * np.float32((inner / count) ** 0.5)
        made[f"{block}.out"] = out
    return replace(spec, value_width=count // spec.heads), made


def _greatest(matrix: np.ndarray, axis: int) -> np.ndarray:
    return np.abs(matrix).max(axis=axis)


def _kept(strength: list[np.ndarray], multiple: int) -> list[np.ndarray]:
    """The units that each layer keeps, in their order: the strongest ones, as many in all."""
    most = max(int((s >= SILENT).sum()) for s in strength)
    count = min(max(-(-most // multiple) * multiple, LEAST), len(strength[0]))
    return [np.sort(np.argsort(-s, kind="stable")[:count]) for s in strength]
