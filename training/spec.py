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
    fused: bool = False  # attention by PyTorch's kernel in training: speed, not the function
    stride: int = 1  # tokens that share their angles, made by the tokens before them
    linformer_block: int = 16  # tokens that a Linformer compresses together
    performer_features: int = 128  # random features of a Performer's head
    rotation: bool = True  # T is complex; else its modulus alone
    coupling: bool = True  # sin(rho) scales what is written
    short: bool = True  # a convolution over k tokens before the projections

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            fits = type(value) is kind or (kind is float and type(value) is int)
            if not fits or (kind in (int, float) and not 0 < value < math.inf):
                wanted = {
                    int: "a positive int",
                    float: "a positive number",
                    bool: "true or false",
                    str: "a string",
                }
                raise SpecError(f"spec: {f.name} is {value!r}, wanted {wanted[kind]}")
        names = self.mixer.split(",")
        for name in names:
            if name not in MIXERS and self.mixer != GPT2:
                known = ", ".join([*MIXERS, GPT2])
                raise SpecError(f"spec: mixer is {name!r}, wanted one of {known}")
        if len(names) not in (1, self.layers):
            raise SpecError(f"spec: {len(names)} mixers, wanted 1 or {self.layers} as layers")

    @property
    def layer_mixers(self) -> list[str]:
        names = self.mixer.split(",")
        return names if len(names) == self.layers else names * self.layers

    @property
    def mlp_width(self) -> int:
        return round(self.mlp_ratio * self.width)

    @property
    def read_width(self) -> int:
        """Of what a topological head reads: its real and its imaginary part."""
        return self.value_width * (2 if self.rotation else 1)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """A key that is missing, since an earlier version wrote the spec, has its default."""
        try:
            stored = json.loads(text)
        except json.JSONDecodeError as error:
            raise SpecError(f"spec: not JSON ({error})") from None
        known = {f.name for f in fields(cls)}
        if not isinstance(stored, dict) or not stored.keys() <= known:
            found = sorted(stored) if isinstance(stored, dict) else type(stored).__name__
            raise SpecError(f"spec: found keys {found}, wanted only {sorted(known)}")
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


def _dense(spec: ModelSpec, out: int) -> Weight:
    width = ("width", spec.width)
    return _matrix(("mixer_in", out), width, Init(std=spec.width**-0.5))


def _back(spec: ModelSpec, into: int) -> Weight:
    return _matrix(("width", spec.width), ("mixer_read", into), Init())


def _topological(spec: ModelSpec) -> dict[str, Weight]:
    h, k = spec.heads, spec.compression
    keys, values, read = (h * w for w in (spec.key_width, spec.value_width, spec.read_width))
    table = {
        "short": Weight((k, spec.width), ("tap", "width")),
        "encoder.kernel": Weight(
            (k * 3 * h, spec.width), ("parameter", "width"), Init(std=0.1 * spec.width**-0.5)
        ),
        "encoder.upsample": Weight((spec.stride, 3 * h), ("place", "parameter"), Init(0, 1, 1)),
        # Heads start as a bank of memories of 2 to 256 tokens that turn at -0.3 to 0.3 radians
        # a token: chi near pi/4, so that delta rotates and hardly damps.
        "encoder.delta": Weight((h,), ("head",), Init(low=-0.2, high=0.2)),
        "encoder.chi": Weight((h,), ("head",), Init(low=1.0, high=1.0)),
        "encoder.radius": Weight(
            (h,), ("head",), Init(low=_radius_logit(2), high=_radius_logit(256))
        ),
        # query, key, value, and a gate for the real and the imaginary part of what is read
        "in": _dense(spec, 2 * keys + values + read),
        "out": _back(spec, read),
    }
    unused = [] if spec.short else ["short"]
    unused += [] if spec.stride > 1 else ["encoder.upsample"]
    return {name: weight for name, weight in table.items() if name not in unused}


def _topological_state(spec: ModelSpec, cached: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        "memory": (spec.heads, spec.key_width, spec.read_width),
        "history": (spec.compression - 1, spec.width),
    }
    if spec.stride > 1:
        shapes |= {"held": (1, 3 * spec.heads), "count": (1,)}
    return shapes


def _beam(spec: ModelSpec) -> dict[str, Weight]:
    inner, read = spec.heads * spec.value_width, spec.heads * spec.read_width
    channel = (("inner",),)
    table = {
        "short": Weight((spec.compression, spec.width), ("tap", "width")),
        # Channels start as memories of 1 to 50 tokens.
        "radius": Weight((inner,), *channel, Init(low=_radius_logit(1), high=_radius_logit(50))),
        "in": _dense(spec, 2 * inner + read),  # value, radius, gate
        "out": _back(spec, read),
    }
    if not spec.short:
        del table["short"]
    if spec.rotation:  # to begin with by -0.15 to 0.15 radians a token, hardly damped
        table["delta"] = Weight((inner,), *channel, Init(low=-0.1, high=0.1))
        table["chi"] = Weight((inner,), *channel, Init(low=2, high=2))
    return table


def _beam_state(spec: ModelSpec, cached: int) -> dict[str, tuple[int, ...]]:
    return {
        "channels": (spec.heads * spec.read_width,),
        "history": (spec.compression - 1, spec.width),
    }


def _attention(spec: ModelSpec) -> dict[str, Weight]:
    keys, values = spec.heads * spec.key_width, spec.heads * spec.value_width
    return {"in": _dense(spec, 2 * keys + values), "out": _back(spec, values)}


def _attention_state(spec: ModelSpec, cached: int) -> dict[str, tuple[int, ...]]:
    return {
        "keys": (spec.heads, cached, spec.key_width),
        "values": (spec.heads, cached, spec.value_width),
        "valid": (cached,),  # 1 where a token was, 0 before the stream's start
    }


def _performer_state(spec: ModelSpec, cached: int) -> dict[str, tuple[int, ...]]:
    sums = (spec.heads, spec.performer_features, spec.value_width + 1)
    return {"sums": sums, "count": (1,)}


def _linformer(spec: ModelSpec) -> dict[str, Weight]:
    h, block, slots = spec.heads, spec.linformer_block, spec.linformer_block // spec.compression
    mean = Init(std=0.1, low=1 / block, high=1 / block)
    return _attention(spec) | {
        "compress": Weight((h, slots, block), ("head", "slot", "token"), mean),
        "bias.token": Weight((h, block), ("head", "distance")),
        "bias.slot": Weight((h, spec.context // block - 1, slots), ("head", "distance", "slot")),
    }


def _linformer_state(spec: ModelSpec, cached: int) -> dict[str, tuple[int, ...]]:
    return _attention_state(spec, cached) | {"count": (1,)}  # tokens since the last whole block


def _mingru(spec: ModelSpec) -> dict[str, Weight]:
    inner = spec.heads * spec.value_width
    return {
        "short": Weight((spec.compression, spec.width), ("tap", "width")),
        "bias": Weight((inner,), ("inner",), Init(low=-4, high=1)),  # memories of 1 to 50 tokens
        "in": _dense(spec, 3 * inner),  # update gate, candidate, output gate
        "out": _back(spec, inner),
    }


def _mingru_state(spec: ModelSpec, cached: int) -> dict[str, tuple[int, ...]]:
    return {
        "hidden": (spec.heads * spec.value_width,),
        "history": (spec.compression - 1, spec.width),
    }


def _seed(spec: ModelSpec) -> dict[str, Weight]:
    h, k, inner = spec.heads, spec.compression, spec.heads * spec.value_width
    return {
        "encoder.kernel": Weight(
            (k * 3 * h, spec.width), ("parameter", "width"), Init(std=0.1 * spec.width**-0.5)
        ),
        "encoder.bias": Weight((3 * h,), ("parameter",)),
        "upsample": Weight((k, 3 * h), ("place", "parameter"), Init(low=1, high=1)),
        "upsample.values": Weight((k, inner), ("place", "inner"), Init(low=1, high=1)),
        "in": _dense(spec, inner),
        "out": _back(spec, 2 * inner),
    }


def _seed_state(spec: ModelSpec, cached: int) -> dict[str, tuple[int, ...]]:
    return {
        "history": (2 * spec.compression - 1, spec.width),
        "count": (1,),  # tokens since the last whole chunk
    }


def _gpt2(spec: ModelSpec) -> dict[str, Weight]:
    """GPT-2 whole: the one baseline with a block of its own (`training/gpt2.py`)."""
    d, dense = ("width", spec.width), Init(std=0.02)
    back = Init(std=0.02 / math.sqrt(2 * spec.layers))
    hidden, inner = ("mlp", spec.mlp_width), ("mixer_in", 3 * spec.width)

    def vector(axis: tuple[str, int], value: float = 0) -> Weight:
        return Weight((axis[1],), (axis[0],), Init(low=value, high=value))

    table = {
        "embed": Weight((spec.vocabulary, spec.width), ("vocabulary", "width"), dense),
        "position": Weight((spec.context, spec.width), ("position", "width"), Init(std=0.01)),
    }
    for layer in range(spec.layers):
        block = {
            "norm1.gain": vector(d, 1),
            "norm1.bias": vector(d),
            "mixer.in": _matrix(inner, d, dense),
            "mixer.in.bias": vector(inner),
            "mixer.out": _matrix(d, d, back),
            "mixer.out.bias": vector(d),
            "norm2.gain": vector(d, 1),
            "norm2.bias": vector(d),
            "mlp.in": _matrix(hidden, d, dense),
            "mlp.in.bias": vector(hidden),
            "mlp.out": _matrix(d, hidden, back),
            "mlp.out.bias": vector(d),
        }
        table |= {f"blocks.{layer}.{name}": weight for name, weight in block.items()}
    return table | {"norm.gain": vector(d, 1), "norm.bias": vector(d)}


def _gpt2_state(spec: ModelSpec, batch: int, cached: int) -> dict[str, tuple[int, ...]]:
    cache = (spec.layers, batch, spec.heads, cached, spec.width // spec.heads)
    return {"keys": cache, "values": cache, "valid": (1, batch, cached), "count": (1, batch, 1)}


# How a mixer's weights and its state (without layers and batch) follow from the spec.
GPT2 = "gpt2"
MIXERS = {
    "topological": (_topological, _topological_state),
    "beam": (_beam, _beam_state),
    "attention": (_attention, _attention_state),
    "performer": (_attention, _performer_state),
    "linformer": (_linformer, _linformer_state),
    "mingru": (_mingru, _mingru_state),
    "seed": (_seed, _seed_state),
    "seed-leaking": (_seed, _seed_state),
}

PRESETS = {
    # The reference: 13.6M parameters.
    "shakespeare": ModelSpec(mixer="beam", rotation=False, heads=8, value_width=86),
    "matrix": ModelSpec(),  # of equal size, its state a matrix per head
    # Of equal size, one layer attention over the 256 bytes before: for texts that are to be copied.
    "hybrid": ModelSpec(
        mixer="beam,beam,beam,beam,attention,beam",
        rotation=False,
        heads=8,
        key_width=86,
        value_width=86,
    ),
    # GPT-2 Small's own shape, 124M parameters, for what it costs; its tokens are not bytes.
    "gpt2-small": ModelSpec(
        mixer=GPT2, vocabulary=50_257, width=768, layers=12, heads=12, context=1024
    ),
    "tiny": ModelSpec(width=64, layers=2, heads=2, key_width=16, value_width=32, chunk=32),
}


def weights(spec: ModelSpec) -> dict[str, Weight]:
    """The table: every weight of a model of this spec by its dotted name, in order of use."""
    if spec.mixer == GPT2:
        return _gpt2(spec)
    d = ("width", spec.width)
    vocabulary, hidden = ("vocabulary", spec.vocabulary), ("mlp", spec.mlp_width)
    table = {"embed": Weight((spec.vocabulary, spec.width), ("vocabulary", "width"), Init(std=0.5))}
    for layer, mixer in enumerate(spec.layer_mixers):
        for name, weight in MIXERS[mixer][0](spec).items():
            table[f"blocks.{layer}.mixer.{name}"] = weight
        table[f"blocks.{layer}.mlp.in"] = _matrix(hidden, d, Init(std=spec.width**-0.5))
        table[f"blocks.{layer}.mlp.out"] = _matrix(d, hidden, Init())
    table["head"] = Weight((vocabulary[1], d[1]), (vocabulary[0], d[0]), quantized=True)
    return table


def parameter_count(spec: ModelSpec) -> int:
    return sum(math.prod(weight.shape) for weight in weights(spec).values())


def state_shapes(
    spec: ModelSpec, batch: int = 1, cached: int | None = None
) -> dict[str, tuple[int, ...]]:
    """What the model carries from one token to the next, all fp32: (layers that have it, batch,
    ...). Of the topological mixers the state S, as `channels` or, a matrix per head, as `memory`
    (real parts, then imaginary, side by side), and `history`, the inputs that the convolutions
    still reach. No size depends on the
    length of the text. cached: tokens in an attention's cache; by default all of its context."""
    cached = spec.context if cached is None else cached
    if spec.mixer == GPT2:
        return _gpt2_state(spec, batch, cached)
    shapes: dict[str, tuple[int, ...]] = {}
    for mixer in spec.layer_mixers:
        own = MIXERS[mixer][1](spec, cached)
        for name, shape in own.items():
            layers = shapes[name][0] if name in shapes else 0
            if layers and shapes[name][2:] != shape:
                raise SpecError(f"spec: mixers {spec.mixer} disagree on the state {name}")
            shapes[name] = (layers + 1, batch, *shape)
    return shapes


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
