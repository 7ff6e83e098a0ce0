"""Devices as one mesh: what stands where, and a text that is split across them.

    data      each device has its own windows of a batch
    fsdp      so too, and a part of every matrix and of its moments, put together where it is used
    sequence  each device has a part of every window, and hands the state on to the next

Each weight's sharding follows from the names of its axes in the table (`Weight.axes`) and RULES.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from . import engine_jax, model
from .config import RunError, TrainConfig
from .kernels.jax_scan import scan
from .mixers import MIXERS
from .spec import ModelSpec, weights

AXES = DATA, FSDP, SEQUENCE = "data", "fsdp", "sequence"
RULES = {"width": FSDP}  # axis of a weight -> axis of the mesh; along its other axes it is whole
ROWS = (DATA, FSDP)  # of the mesh, over which the windows of a batch are spread
GATHERED = "gathered weight"  # not kept for the backward pass, but gathered again
ALL_BUT_GATHERED = jax.checkpoint_policies.save_anything_except_these_names(GATHERED)


def make_mesh(text: str) -> Mesh | None:
    """All devices as `text` has it, `fsdp=4,sequence=2` say; `data` takes those that are left.
    None for one device. Raises RunError."""
    count, sizes = jax.device_count(), {}
    for part in text.split(",") if text else []:
        name, _, size = part.partition("=")
        if name not in AXES or name in sizes or not size.isdecimal() or int(size) < 1:
            raise RunError(f"--mesh {text}: found {part!r}, wanted NAME=N, of {', '.join(AXES)}")
        sizes[name] = int(size)
    sizes.setdefault(DATA, max(1, count // math.prod(sizes.values())))
    if (wanted := math.prod(sizes.values())) != count:
        raise RunError(f"--mesh {text}: {wanted} devices, found {count}")
    if count == 1:
        return None
    shape, kinds = tuple(sizes.get(axis, 1) for axis in AXES), (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, kinds)  # Auto: XLA places what no line here does


def check(mesh: Mesh, config: TrainConfig, specs: Sequence[ModelSpec]) -> None:
    """Raises RunError for what cannot be spread over the mesh. specs: of all models that run."""
    rows, parts = mesh.shape[DATA] * mesh.shape[FSDP], mesh.shape[SEQUENCE]
    if config.batch % rows:
        raise RunError(f"--batch {config.batch}: wanted a multiple of {rows}, data times fsdp")
    if config.window % parts:
        raise RunError(f"--window {config.window}: wanted a multiple of {parts}, as sequence has")
    for spec in specs:
        if spec.width % mesh.shape[FSDP]:
            fsdp = mesh.shape[FSDP]
            raise RunError(f"--width {spec.width}: wanted a multiple of {fsdp}, as fsdp has")
        for name in spec.layer_mixers if parts > 1 else []:
            if name not in MIXERS or not MIXERS[name].splits(spec):
                raise RunError(
                    f"--mesh sequence={parts}: the mixer {name} of this shape wants a whole window "
                    "on one device, wanted sequence=1, or beam without rotation"
                )
        least = parts * max(2, spec.compression - 1)  # of one token the scan is another
        if parts > 1 and config.window < least:
            raise RunError(f"--window {config.window}: wanted {least} or more, as sequence has")


def partitions(spec: ModelSpec, names: Iterable[str]) -> dict[str, P]:
    """Of weights by their names, and of moments, `first.NAME`, as of the weight NAME."""
    table = weights(spec)
    found = {}
    for name in names:
        weight = table[name if name in table else name.partition(".")[2]]
        found[name] = P(*(RULES.get(axis) for axis in weight.axes))
    return found


class Gathered(dict[str, Any]):
    """Inside a shard_map: weights of which each device has a part, whole where they are used."""

    def __init__(self, parts: dict[str, Any], spec: ModelSpec) -> None:
        super().__init__(parts)
        self.partitions = partitions(spec, parts)

    def __getitem__(self, name: str) -> Any:
        part, axes = super().__getitem__(name), list(self.partitions[name])
        if FSDP not in axes:
            return part
        whole = jax.lax.all_gather(part, FSDP, axis=axes.index(FSDP), tiled=True)
        return checkpoint_name(whole, GATHERED)


def in_one_bucket(values: dict[str, Any]) -> dict[str, Any]:
    """Inside a shard_map: the same weights, whose gradients are summed over data and sequence as
    one vector, in fp32. For CPUs, which sum one array after the other; on a GPU the sum of one
    layer goes on beside the backward pass of the next."""
    vector, parts = ravel_pytree(values)
    return parts(jax.lax.pcast(vector, (DATA, SEQUENCE), to="varying"))


class Engine(engine_jax.Engine):
    """As engine_jax.Engine, over all devices of a mesh and of all processes."""

    on_mesh = True

    def __init__(self, mesh: Mesh, spec: ModelSpec, *arguments: Any) -> None:
        self.mesh, self.parts = mesh, mesh.shape[SEQUENCE]
        self.rows_of_batch = NamedSharding(mesh, P(ROWS))
        super().__init__(spec, *arguments)
        whole = NamedSharding(mesh, P())
        self._losses = jax.jit(self._plain_losses, out_shardings=whole)
        self._gather = jax.jit(lambda arrays: arrays, out_shardings=whole)
        self.kept = jax.jit(lambda arrays: jax.tree.map(jnp.copy, arrays))

    def _namespace(self) -> Any:
        if self.parts == 1:
            return super()._namespace()
        own = {"scan": functools.partial(scan, axis=SEQUENCE)}
        return SimpleNamespace(**{**vars(jnp), **own})

    def shardings(self, names: Iterable[str], spec: ModelSpec | None = None) -> dict[str, Any]:
        found = partitions(spec or self.spec, names)
        return {name: NamedSharding(self.mesh, found[name]) for name in found}

    def load(self, arrays: dict[str, np.ndarray], spec: ModelSpec | None = None) -> dict[str, Any]:
        shardings = self.shardings(arrays, spec)
        return {name: _spread(array, shardings[name]) for name, array in arrays.items()}

    def save(self, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        return super().save(self._gather(arrays))

    def rows(self, batch: int) -> slice:
        """Of a batch, which this process has to load."""
        indices = self.rows_of_batch.addressable_devices_indices_map((batch,)).values()
        parts = [index[0].indices(batch) for index in indices if index]
        return slice(min(part[0] for part in parts), max(part[1] for part in parts))

    def optimizer_state(self, values: dict[str, Any]) -> dict[str, Any]:
        state = jax.eval_shape(super().optimizer_state, values)
        return jax.jit(super().optimizer_state, out_shardings=self.shardings(state))(values)

    def _put(self, tokens: np.ndarray) -> Any:
        """tokens: those of this process's rows."""
        return jax.make_array_from_process_local_data(self.rows_of_batch, tokens.astype(np.int32))

    def _forward(self, spec: ModelSpec, values: Any, tokens: Any, state: Any, drop: Any) -> Any:
        state = jax.lax.pcast(state, AXES, to="varying")  # as what is computed from it
        return model.forward(self.xp, spec, values, tokens, state, drop, self._mixer_function)[0]

    def _mixer_function(self, name: str) -> Callable[..., Any]:
        """A mixer whose history is the end of the part before."""
        mixer = MIXERS[name].forward
        if self.parts == 1:
            return mixer

        def mix(xp: Any, spec: ModelSpec, weights: Any, block: str, x: Any, state: Any) -> Any:
            end = x[:, x.shape[1] - state["history"].shape[1] :]
            following = [(part, part + 1) for part in range(self.parts - 1)]
            history = jax.lax.ppermute(end, SEQUENCE, following)  # the first gets zeros
            return mixer(xp, spec, weights, block, x, {**state, "history": history})

        return mix

    def _nats(
        self, values: Any, teachers: Any, inputs: Any, targets: Any, noise: Sequence[Any] = ()
    ) -> Any:
        local, specs = super()._nats, [self.spec, *self.teacher_specs[: len(teachers)]]
        shape = self.mesh.shape

        def part(models: Any, *arrays: Any) -> Any:
            if jax.default_backend() == "cpu" and shape[DATA] * shape[SEQUENCE] > 1:
                models = [in_one_bucket(models[0]), *models[1:]]
            values, *teachers = map(Gathered, models, specs)
            return local(values, teachers, *arrays)

        models = [values, *teachers]
        of_models = [partitions(spec, one) for spec, one in zip(specs, models, strict=True)]
        tokens = P(ROWS, SEQUENCE)
        if shape[FSDP] > 1:
            part = jax.checkpoint(part, policy=ALL_BUT_GATHERED)
        mapped = jax.shard_map(
            part, mesh=self.mesh, in_specs=(of_models, *[tokens] * 3), out_specs=tokens
        )
        return mapped(models, inputs, targets, list(noise))

    def pure_step(self, values: Any, state: Any, average: Any, *rest: Any, **more: Any) -> Any:
        *arrays, loss, norm = super().pure_step(values, state, average, *rest, **more)
        place = jax.lax.with_sharding_constraint
        return *(place(part, self.shardings(part)) for part in arrays), loss, norm

    def losses(self, values: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
        """Of rows that every process has all of."""
        missing = -len(tokens) % (self.mesh.shape[DATA] * self.mesh.shape[FSDP])
        full = np.concatenate([tokens, np.repeat(tokens[:1], missing, axis=0)]).astype(np.int32)
        return np.asarray(self._losses(values, _spread(full, self.rows_of_batch)))[: len(tokens)]


def _spread(array: np.ndarray, sharding: NamedSharding) -> Any:
    """An array that every process has all of, each device with its part."""
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
