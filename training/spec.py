"""The shape of a model: its spec and the one table of its weights. Standard library only.

Initialisation (`model.initialise`), the names in `model.safetensors`, the keys of a torch
`state_dict`, sharding and the choice of what is quantized all derive from `weights(spec)`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any


class SpecError(ValueError):
    """A spec, or weights that do not fit one: found and wanted, in one line."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to compute with a set of weights. Widths are in numbers of values."""

    mixer: str = "topological"
    vocabulary: int = 256  # tokens are bytes
    width: int = 384  # residual stream
    layers: int = 6
    heads: int = 6
    key_width: int = 64  # per head
    value_width: int = 64  # per head; the state holds its real and imaginary parts
    mlp_ratio: int = 4
    compression: int = 4  # k: tokens that the encoder's kernel spans
    chunk: int = 64  # tokens per chunk of the chunked form; changes speed, not the function

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "mixer" and (type(value) is not int or value < 1):
                raise SpecError(f"spec: {f.name} is {value!r}, wanted a positive int")
        if self.mixer not in MIXERS:
            raise SpecError(f"spec: mixer is {self.mixer!r}, wanted one of {', '.join(MIXERS)}")

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        try:
            stored = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"spec: not JSON ({error})") from None
        known = {f.name for f in fields(cls)}
        if not isinstance(stored, dict) or stored.keys() != known:
            found = sorted(stored) if isinstance(stored, dict) else type(stored).__name__
            raise SpecError(f"spec: found keys {found}, wanted exactly {sorted(known)}")
        return cls(**stored)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


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

    shape: tuple[int, ...]
    axes: tuple[str, ...]  # a name per dimension; "layers" stands in the weight's own name
    init: Init = field(default=Init())
    quantized: bool = False  # a large projection, stored in few bits in a quantized artifact
    muon: bool = False  # trained by Muon (hidden matrices); the rest by AdamW


def _matrix(out: tuple[str, int], into: tuple[str, int], init: Init) -> Weight:
    return Weight((out[1], into[1]), (out[0], into[0]), init, quantized=True, muon=True)


def _radius_logit(time_scale: float) -> float:
    """The encoder output whose radius gives cos(radius) = exp(-1 / time_scale)."""
    fraction = math.acos(math.exp(-1 / time_scale)) / (math.pi / 2)
    return math.log(fraction / (1 - fraction))


def _topological(spec: ModelSpec) -> dict[str, Weight]:
    d, h, k = ("width", spec.width), spec.heads, spec.compression
    keys, values = h * spec.key_width, h * spec.value_width
    dense = Init(std=spec.width**-0.5)
    return {
        "short": Weight((k, spec.width), ("tap", "width")),
        "encoder.kernel": Weight(
            (k * 3 * h, spec.width), ("parameter", "width"), Init(std=0.1 * spec.width**-0.5)
        ),
        # Heads start as a bank of memories of 2 to 256 tokens that turn at -0.3 to 0.3 radians
        # a token: chi near pi/4, so that delta rotates and hardly damps.
        "encoder.delta": Weight((h,), ("head",), Init(low=-0.2, high=0.2)),
        "encoder.chi": Weight((h,), ("head",), Init(low=1.0, high=1.0)),
        "encoder.radius": Weight(
            (h,), ("head",), Init(low=_radius_logit(2), high=_radius_logit(256))
        ),
        # query, key, value, and a gate for the real and the imaginary part of what is read
        "in": _matrix(("mixer_in", 2 * keys + 3 * values), d, dense),
        "out": _matrix(d, ("mixer_read", 2 * values), Init()),
    }


MIXERS = {"topological": _topological}

PRESETS = {
    "shakespeare": ModelSpec(),  # the reference: 13.6M parameters
    "tiny": ModelSpec(width=64, layers=2, heads=2, key_width=16, value_width=32, chunk=32),
}


def weights(spec: ModelSpec) -> dict[str, Weight]:
    """The table: every weight of a model of this spec by its dotted name, in order of use."""
    d = ("width", spec.width)
    vocabulary, hidden = ("vocabulary", spec.vocabulary), ("mlp", spec.mlp_ratio * spec.width)
    table = {"embed": Weight((spec.vocabulary, spec.width), ("vocabulary", "width"), Init(std=0.5))}
    for layer in range(spec.layers):
        for name, weight in MIXERS[spec.mixer](spec).items():
            table[f"blocks.{layer}.mixer.{name}"] = weight
        table[f"blocks.{layer}.mlp.in"] = _matrix(hidden, d, Init(std=spec.width**-0.5))
        table[f"blocks.{layer}.mlp.out"] = _matrix(d, hidden, Init())
    table["head"] = Weight((vocabulary[1], d[1]), (vocabulary[0], d[0]), quantized=True)
    return table


def parameter_count(spec: ModelSpec) -> int:
    return sum(math.prod(weight.shape) for weight in weights(spec).values())


def state_shapes(spec: ModelSpec, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """What the model carries from one token to the next, all fp32: `memory`, the topological
    state S (real parts, then imaginary, side by side), and `history`, the inputs that the
    convolutions still reach. Its size does not depend on the length of the text."""
    s = spec
    return {
        "memory": (s.layers, batch, s.heads, s.key_width, 2 * s.value_width),
        "history": (s.layers, batch, s.compression - 1, s.width),
    }


def check_weights(spec: ModelSpec, found: dict[str, Any], source: str) -> None:
    """Raises SpecError unless `found`, name to array, has just the table's names and shapes."""
    table = weights(spec)
    missing, extra = table.keys() - found.keys(), found.keys() - table.keys()
    if missing or extra:
        names = [f"missing {n}" for n in sorted(missing)] + [f"unknown {n}" for n in sorted(extra)]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise SpecError(
            f"{source}: {len(found)} weights, spec wants {len(table)} "
            f"({', '.join(names[:3])}{more})"
        )
    for name, weight in table.items():
        if tuple(found[name].shape) != weight.shape:
            raise SpecError(
                f"{source}: {name} has shape {tuple(found[name].shape)}, spec wants {weight.shape}"
            )
