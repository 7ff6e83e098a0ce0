"""Training steps in JAX. `arrays in, arrays out`: the loop in train.py knows no library."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import model, optimizer
from .kernels import gpu_scan, jax_scan
from .lora import Adapters, merged
from .spec import ModelSpec, weights


def bf16_is_fast() -> bool:
    return jax.default_backend() != "cpu"  # XLA's CPU code does not use the bf16 units


class Engine:
    on_mesh = False  # of several devices

    def __init__(
        self,
        spec: ModelSpec,
        dropout: float,
        bf16: bool,
        compiled: bool,
        teachers: Sequence[tuple[ModelSpec, dict[str, np.ndarray]]] = (),
        adapters: Adapters | None = None,
    ) -> None:
        """As engine_torch.Engine."""
        self.spec, self.dropout = spec, dropout
        self.xp = self._namespace()
        self.dtype = jnp.bfloat16 if bf16 else jnp.float32
        self.muon_dtype = jnp.bfloat16 if bf16 else None
        # Always compiled, whatever `compiled` says: op by op JAX is of no use in training.
        self._step = jax.jit(self.pure_step, donate_argnums=(0, 1, 2))
        self._losses = jax.jit(self._plain_losses)
        self.table = adapters.table if adapters else weights(spec)
        self.base = self.load(adapters.base) if adapters else None
        self.teacher_specs = [spec for spec, _ in teachers]
        self.teachers = [self._cast(self.load(arrays, spec)) for spec, arrays in teachers]

    def _namespace(self) -> Any:
        """jax.numpy, and the scans that the model takes in place of the plain ones."""
        own: dict[str, Any] = {"scan": jax_scan.scan}
        coupled = gpu_scan("pallas_coupled") if jax.default_backend() == "gpu" else None
        if coupled:
            own["coupled_scan"] = coupled
        return SimpleNamespace(**{**vars(jnp), **own})

    def use_threads(self, count: int) -> None:
        """XLA's pool stays as large as it was made."""

    def device_name(self) -> str:
        return jax.devices()[0].device_kind

    def memory_bytes(self) -> int | None:
        """As engine_torch.Engine's."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def load(self, arrays: dict[str, np.ndarray], spec: ModelSpec | None = None) -> dict[str, Any]:
        return {n: jnp.array(a) for n, a in arrays.items()}

    def save(self, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        return {n: np.array(a) for n, a in arrays.items()}

    kept = save  # what a checkpoint is written from

    def rows(self, batch: int) -> slice:
        """Of a batch, which this process has to load."""
        return slice(None)

    def optimizer_state(self, values: dict[str, Any]) -> dict[str, Any]:
        return optimizer.initial_state(jnp, self.table, values)

    def whole(self, values: dict[str, Any]) -> dict[str, Any]:
        """As engine_torch.Engine's."""
        return merged(self.base, values) if self.base else values

    def _cast(self, values: dict[str, Any]) -> dict[str, Any]:
        """Matrices but for embeddings; the rest stays in fp32, as in PyTorch's autocast."""
        return {
            n: v.astype(self.dtype) if v.ndim == 2 and n != "embed" else v
            for n, v in values.items()
        }

    def _forward(self, spec: ModelSpec, values: Any, tokens: Any, state: Any, drop: Any) -> Any:
        return model.forward(self.xp, spec, values, tokens, state, drop)[0]

    def _logits(self, spec: ModelSpec, values: Any, tokens: Any, noise: Sequence[Any] = ()) -> Any:
        left, dropped = iter(noise), round(256 * self.dropout)  # of the 256 values of a byte

        def drop(x: Any) -> Any:
            return jnp.where(next(left) >= dropped, x * (256 / (256 - dropped)), 0) if noise else x

        state = model.initial_state(jnp, spec, tokens.shape[0], cached=0)
        return self._forward(spec, values, tokens, state, drop).astype(jnp.float32)

    def _noise(self, key: Any, shape: tuple[int, ...]) -> list[Any]:
        """Random bytes for each dropout of a step, for tokens of this shape."""
        if not self.dropout:
            return []
        keys = jax.random.split(key, model.dropouts(self.spec))
        return [jax.random.bits(key, (*shape, self.spec.width), jnp.uint8) for key in keys]

    def _nats(
        self,
        values: dict[str, Any],
        teachers: Sequence[dict[str, Any]],
        inputs: Any,
        targets: Any,
        noise: Sequence[Any] = (),
    ) -> Any:
        """The loss of each target, (B, L): of the text's byte, or of what the teachers expect."""
        logits = self._logits(self.spec, values, inputs, noise)
        if not teachers:
            return model.loss(jnp, logits, targets)
        pairs = zip(self.teacher_specs, teachers, strict=True)
        taught = [jnp.exp(model.log_softmax(jnp, self._logits(*pair, inputs))) for pair in pairs]
        return model.distillation_loss(jnp, logits, sum(taught) / len(taught))

    def pure_step(
        self,
        values: dict[str, Any],
        state: dict[str, Any],
        average: dict[str, Any],
        tokens: Any,
        key: Any,
        settings: dict[str, Any],
        average_decay: Any,
        toward_average: Any = 0.0,
        counts: Any = None,
        teachers: Any = (),
    ) -> tuple[Any, ...]:
        """As `step`, to be transformed: arrays in, arrays out; key: of the random numbers."""
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        noise = self._noise(key, inputs.shape)

        def mean_loss(values: dict[str, Any]) -> Any:
            whole = self._cast(self.whole(values))
            nats = self._nats(whole, teachers, inputs, targets, noise)
            return (nats if counts is None else nats * counts).mean()

        points = {n: v + toward_average * (average[n] - v) for n, v in values.items()}
        loss, gradients = jax.value_and_grad(mean_loss)(points)
        values, state, norm = optimizer.update(
            jnp, self.table, values, gradients, state, muon_dtype=self.muon_dtype, **settings
        )
        average = {n: a + (1 - average_decay) * (values[n] - a) for n, a in average.items()}
        return values, state, average, loss, norm

    def _put(self, tokens: np.ndarray) -> Any:
        return jnp.asarray(tokens)

    def step(
        self,
        values: Any,
        state: Any,
        average: Any,
        tokens: Any,
        seed: int,
        *rest: Any,
        counts: Any = None,
    ) -> Any:
        """As engine_torch.Engine.step; the arrays passed in are given up."""
        # PRNGKey(seed), of all 64 bits of the seed: it takes 32 itself.
        key = np.array([seed >> 32, seed % 2**32], np.uint32)
        *arrays, loss, norm = self._step(
            values,
            state,
            average,
            self._put(tokens),
            key,
            *rest,
            counts=counts,
            teachers=self.teachers,
        )
        return *arrays, float(loss), float(norm)

    def _plain_losses(self, values: dict[str, Any], tokens: Any) -> Any:
        return self._nats(self.whole(values), (), tokens[:, :-1], tokens[:, 1:])

    def losses(self, values: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
        """Nats of each target of windows (rows, L+1): (rows, L)."""
        return np.asarray(self._losses(values, jnp.asarray(tokens)))
