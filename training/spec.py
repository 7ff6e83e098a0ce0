"""The shape of a model: its spec, its presets, and the table of all its weights.

Initialisation (`model.initialise`), the names in `model.safetensors`, the keys of a torch
`state_dict`, sharding and the choice of what is quantized all derive from `weights(spec)`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from . import gpt2
from .mixers import MIXERS
from .mixers.table import Init, Weight, matrix

GPT2 = "gpt2"  # the one baseline with a block of its own: training/gpt2.py


class SpecError(ValueError):
    """A spec, or weights that do not fit one: found and wanted, in one line."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to compute with a set of weights. Widths are in numbers of values."""

    mixer: str = "topological"  # of every layer, or as many names as layers, with commas
    vocabulary: int = 256  # tokens are bytes
    width: int = 384  # residual stream
    layers: int = 6
    heads: int = 6
    key_width: int = 64  # per head
    value_width: int = 64  # per head; the state holds its real and imaginary parts
    mlp_ratio: float = 4.0
    compression: int = 4  # k: tokens that the encoder's kernel spans
    chunk: int = 64  # tokens per chunk of the chunked form; changes speed, not the function
    context: int = 256  # tokens back that the attention baselines see
    # Settings of its mixers by name (`Mixer.switches`); what is not given has the default.
    switches: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        shape = {f.name: f.default for f in fields(self) if f.name != "switches"}
        _check_kinds({name: getattr(self, name) for name in shape}, shape)
        if not 0.5 <= self.mlp_ratio * self.width < 2**31:
            raise SpecError(
                f"spec: mlp_ratio is {self.mlp_ratio} of width {self.width}, wanted one hidden "
                "unit at least, and fewer than 2^31"
            )
        names = self.mixer.split(",")
        for name in names:
            if name not in MIXERS and self.mixer != GPT2:
                known = ", ".join([*MIXERS, GPT2])
                raise SpecError(f"spec: mixer is {name!r}, wanted one of {known}")
        if len(names) not in (1, self.layers):
            raise SpecError(f"spec: {len(names)} mixers, wanted 1 or {self.layers} as layers")
        known = {name for mixer in MIXERS.values() for name in mixer.switches}
        if not self.switches.keys() <= known:
            unknown = sorted(self.switches.keys() - known)
            raise SpecError(f"spec: found switches {unknown}, wanted only {sorted(known)}")
        used = [MIXERS[name].switches for name in names if name in MIXERS]
        defaults = {name: value for switches in used for name, value in switches.items()}
        chosen = {name: self.switches.get(name, value) for name, value in defaults.items()}
        _check_kinds(chosen, defaults)
        object.__setattr__(self, "switches", chosen)
        if self.mixer == GPT2 and self.width % self.heads:
            raise SpecError(f"spec: width {self.width}, wanted a multiple of {self.heads} heads")
        for name, weight in weights(self).items():
            if min(weight.shape) < 1:
                raise SpecError(f"spec: {name} of shape {weight.shape}, wanted sizes of 1 or more")

    @property
    def layer_mixers(self) -> list[str]:
        names = self.mixer.split(",")
        return names if len(names) == self.layers else names * self.layers

    @property
    def mlp_width(self) -> int:
        return round(self.mlp_ratio * self.width)

    def replace(self, **changes: Any) -> ModelSpec:
        """The same spec but for these fields and switches."""
        return ModelSpec.from_dict({**self.to_dict(), **changes})

    def to_dict(self) -> dict[str, Any]:
        """Fields and switches side by side, as files have them."""
        shape = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "switches"}
        return {**shape, **self.switches}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """Back from `to_dict`. A field that is missing has its default; a switch of a mixer that
        is not the spec's is passed over."""
        names = {f.name for f in fields(cls)} - {"switches"}
        switches = {name: value for name, value in values.items() if name not in names}
        return cls(**{name: values[name] for name in values.keys() & names}, switches=switches)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        try:
            stored = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"spec: not JSON ({error})") from None
        if not isinstance(stored, dict):
            raise SpecError(f"spec: found {type(stored).__name__}, wanted an object")
        return cls.from_dict(stored)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)


def weights(spec: ModelSpec) -> dict[str, Weight]:
    """The table: every weight of a model of this spec by its dotted name, in order of use."""
    if spec.mixer == GPT2:
        return gpt2.weights_of(spec)
    d = ("width", spec.width)
    vocabulary, hidden = ("vocabulary", spec.vocabulary), ("mlp", spec.mlp_width)
    table = {"embed": Weight((spec.vocabulary, spec.width), ("vocabulary", "width"), Init(std=0.5))}
    for layer, mixer in enumerate(spec.layer_mixers):
        for name, weight in MIXERS[mixer].weights(spec).items():
            table[f"blocks.{layer}.mixer.{name}"] = weight
        table[f"blocks.{layer}.mlp.in"] = matrix(hidden, d, Init(std=spec.width**-0.5))
        table[f"blocks.{layer}.mlp.out"] = matrix(d, hidden, Init())
    table["head"] = Weight((vocabulary[1], d[1]), (vocabulary[0], d[0]), quantized=True)
    return table


def _check_kinds(values: dict[str, Any], like: dict[str, Any]) -> None:
    """Raises SpecError unless each value is of the kind of the default of its name."""
    wanted = {int: "a positive int", float: "a positive number", bool: "true or false"}
    for name, value in values.items():
        kind = type(like[name])
        fits = type(value) is kind or (kind is float and type(value) is int)
        if not fits or (kind in (int, float) and not 0 < value < math.inf):
            raise SpecError(f"spec: {name} is {value!r}, wanted {wanted.get(kind, 'a string')}")


def _beam(width: int, layers: int, channels: int) -> ModelSpec:
    """The reference's mixer at a size of its own. For the C engine the width is a multiple of 8,
    the channels of 16."""
    heads, switches = 8, {"rotation": False}
    return ModelSpec(
        mixer="beam",
        width=width,
        layers=layers,
        heads=heads,
        value_width=channels // heads,
        switches=switches,
    )


PRESETS = {
    # The reference, and its mixer with fewer parameters, for small texts.
    "shakespeare": _beam(384, 6, 688),  # 13.6M parameters
    "medium": _beam(224, 4, 400),  # 3.2M
    "small": _beam(128, 4, 224),  # 1.1M
    "tiny": _beam(96, 2, 96),  # 0.27M
    "matrix": ModelSpec(),  # of equal size, its state a matrix per head
    # Of equal size, one layer an addressed memory: for texts whose names and facts come again.
    "memory": ModelSpec(
        mixer="beam,beam,beam,addressed,beam,beam",
        heads=10,
        key_width=32,
        value_width=64,
        mlp_ratio=4.25,
        switches={"rotation": False},
    ),
    # Of equal size, one layer attention over the 256 bytes before: for texts that are to be copied.
    "hybrid": ModelSpec(
        mixer="beam,beam,beam,beam,attention,beam",
        heads=8,
        key_width=86,
        value_width=86,
        switches={"rotation": False},
    ),
    "enwik8": _beam(384, 6, 688),  # the reference; config.py has other settings for it
    # Of equal size, to compare with.
    "attention": ModelSpec(mixer="attention", heads=8, key_width=86, value_width=86, context=1024),
    "mingru": ModelSpec(mixer="mingru", heads=8, key_width=86, value_width=86),
    # GPT-2 Small's own shape, 124M parameters, for what it costs; its tokens are not bytes.
    "gpt2-small": ModelSpec(
        mixer=GPT2, vocabulary=50_257, width=768, layers=12, heads=12, context=1024
    ),
}


def parameter_count(spec: ModelSpec) -> int:
    return sum(math.prod(weight.shape) for weight in weights(spec).values())


def state_shapes(
    spec: ModelSpec, batch: int = 1, cached: int | None = None
) -> dict[str, tuple[int, ...]]:
    """What the model carries from one token to the next, all fp32: (layers that have it, batch,
    ...). Of the topological mixers the state S, as `channels` or, a matrix per head, as `memory`
    (real parts, then imaginary, side by side), and `history`, the inputs that the convolutions
    still reach. No size depends on the length of the text. cached: tokens in an attention's cache;
    by default all of its context."""
    cached = spec.context if cached is None else cached
    if spec.mixer == GPT2:
        return gpt2.state_of(spec, batch, cached)
    shapes: dict[str, tuple[int, ...]] = {}
    for mixer in spec.layer_mixers:
        for name, shape in MIXERS[mixer].state(spec, cached).items():
            layers = shapes[name][0] if name in shapes else 0
            if layers and shapes[name][2:] != shape:
                raise SpecError(f"spec: mixers {spec.mixer} disagree on the state {name}")
            shapes[name] = (layers + 1, batch, *shape)
    return shapes


def check_weights(spec: ModelSpec, found: dict[str, Any], source: str) -> None:
    """Raises SpecError unless `found`, name to array, has just the names and shapes of a model."""
    check_table(weights(spec), found, source)


def check_table(table: dict[str, Weight], found: dict[str, Any], source: str) -> None:
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
