"""The rows of a table of weights, and what a mixer is: its table, its state, its switches, its
function. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..spec import ModelSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Init:
    """How a weight starts: `normal` with a standard deviation, or `spread` from `low` to `high`
    in equal steps along the last axis (both ends equal: a constant)."""

    std: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class Weight:
    """One row of the table. Matrices are (out, in)."""

    shape: Shape
    axes: tuple[str, ...]  # a name per dimension; "layers" stands in the weight's own name
    init: Init = field(default=Init())
    quantized: bool = False  # a large projection, stored in few bits in a quantized artifact
    muon: bool = False  # trained by Muon (hidden matrices); the rest by AdamW


def matrix(out: tuple[str, int], into: tuple[str, int], init: Init) -> Weight:
    return Weight((out[1], into[1]), (out[0], into[0]), init, quantized=True, muon=True)


def radius_logit(time_scale: float) -> float:
    """The encoder output whose radius gives cos(radius) = exp(-1 / time_scale)."""
    fraction = math.acos(math.exp(-1 / time_scale)) / (math.pi / 2)
    return math.log(fraction / (1 - fraction))


def input_projection(spec: ModelSpec, out: int) -> Weight:
    """From the residual stream to `out` values."""
    width = ("width", spec.width)
    return matrix(("mixer_in", out), width, Init(std=spec.width**-0.5))


def output_projection(spec: ModelSpec, into: int) -> Weight:
    """From what a mixer reads, `into` values, to the residual stream."""
    return matrix(("width", spec.width), ("mixer_read", into), Init())


@dataclass(frozen=True)
class Mixer:
    """What `training/model.py` and both exporters need to know of a mixer."""

    # The table of one layer's weights.
    weights: Callable[[ModelSpec], dict[str, Weight]]
    # The shapes of its state, without layers and batch; the second argument: tokens in a cache.
    state: Callable[[ModelSpec, int], dict[str, Shape]]
    # (xp, spec, weights, name, normalised x (B, L, D), state) -> (mixed x, state)
    forward: Callable[..., tuple[Any, dict[str, Any]]]
    # Settings of its own by name, with their defaults: `ModelSpec.switches`.
    switches: Mapping[str, Any] = field(default_factory=dict)
    # Whether `forward` can be traced for ONNX with the length left open. Else the graph loops over
    # the tokens.
    any_length: Callable[[ModelSpec], bool] = lambda _: False
    # Whether a text may be split across devices: all that its tokens hand on is `history` and one
    # scan, by `scan_channels`.
    splits: Callable[[ModelSpec], bool] = lambda _: False
