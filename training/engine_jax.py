"""Training steps in JAX. `arrays in, arrays out`: the loop in train.py knows no library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import model, optimizer
from .lora import Adapters, merged
from .spec import ModelSpec, weights


def bf16_is_fast() -> bool:
    return jax.default_backend() != "cpu"  # XLA's CPU code does not use the bf16 units


class Engine:
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
        self.dtype = jnp.bfloat16 if bf16 else jnp.float32
        self.muon_dtype = jnp.bfloat16 if bf16 else None
        # Always compiled, whatever `compiled` says: op by op JAX is of no use in training.
        self._step = jax.jit(self.pure_step, donate_argnums=(0, 1, 2))
        self._losses = jax.jit(self._plain_losses)
        self.table = adapters.table if adapters else weights(spec)
        self.base = self.load(adapters.base) if adapters else None
        self.teacher_specs = [spec for spec, _ in teachers]
        self.teachers = [self._cast(self.load(arrays)) for _, arrays in teachers]

    def use_threads(self, count: int) -> None:
        """XLA's pool stays as large as it was made."""

    def device_name(self) -> str:
        return jax.devices()[0].device_kind

    def memory_bytes(self) -> int | None:
        """As engine_torch.Engine's."""
        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")

    def load(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return {n: jnp.array(a) for n, a in arrays.items()}

    def save(self, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        return {n: np.array(a) for n, a in arrays.items()}

    def optimizer_state(self, values: dict[str, Any]) -> dict[str, Any]:
        return optimizer.initial_state(jnp, self.table, values)

    def whole(self, values: dict[str, Any]) -> dict[str, Any]:
        """As engine_torch.Engine's."""
        return merged(self.base, values) if self.base else values

    def _cast(self, values: dict[str, Any]) -> dict[str, Any]:
        return {n: v.astype(self.dtype) for n, v in values.items()}

    def _logits(self, spec: ModelSpec, values: dict[str, Any], tokens: Any, key: Any = None) -> Any:
        state = model.initial_state(jnp, spec, tokens.shape[0], cached=0)
        logits = model.forward(jnp, spec, values, tokens, state, self._drop(key))[0]
        return logits.astype(jnp.float32)

    def _teacher_probabilities(self, teachers: Any, tokens: Any) -> Any:
        """As engine_torch.Engine's."""
        pairs = zip(self.teacher_specs, teachers, strict=True)
        logits = [self._logits(*teacher, tokens[:, :-1]) for teacher in pairs]
        return sum(jnp.exp(model.log_softmax(jnp, x)) for x in logits) / len(logits)

    def _drop(self, key: Any) -> Any:
        if key is None or not self.dropout:
            return lambda x: x
        keys = iter(jax.random.split(key, model.dropouts(self.spec)))

        def drop(x: Any) -> Any:
            passed = jax.random.bernoulli(next(keys), 1 - self.dropout, x.shape)
            return jnp.where(passed, x / (1 - self.dropout), 0)

        return drop

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
        teachers: Any = (),
    ) -> tuple[Any, ...]:
        """As `step`, to be transformed: arrays in, arrays out; key: of the random numbers."""
        teacher_probabilities = self._teacher_probabilities(teachers, tokens) if teachers else None

        def mean_loss(values: dict[str, Any]) -> Any:
            logits = self._logits(self.spec, self._cast(self.whole(values)), tokens[:, :-1], key)
            if teacher_probabilities is not None:
                return model.distillation_loss(jnp, logits, teacher_probabilities).mean()
            return model.loss(jnp, logits, tokens[:, 1:]).mean()

        points = {n: v + toward_average * (average[n] - v) for n, v in values.items()}
        loss, gradients = jax.value_and_grad(mean_loss)(points)
        values, state, norm = optimizer.update(
            jnp, self.table, values, gradients, state, muon_dtype=self.muon_dtype, **settings
        )
        average = {n: a + (1 - average_decay) * (values[n] - a) for n, a in average.items()}
        return values, state, average, loss, norm

    def step(
        self, values: Any, state: Any, average: Any, tokens: Any, seed: int, *rest: Any
    ) -> Any:
        """As engine_torch.Engine.step; the arrays passed in are given up."""
        # PRNGKey(seed), of all 64 bits of the seed: it takes 32 itself.
        key = np.array([seed >> 32, seed % 2**32], np.uint32)
        *arrays, loss, norm = self._step(
            values, state, average, jnp.asarray(tokens), key, *rest, teachers=self.teachers
        )
        return *arrays, float(loss), float(norm)

    def _plain_losses(self, values: dict[str, Any], tokens: Any) -> Any:
        logits = self._logits(self.spec, self.whole(values), tokens[:, :-1])
        return model.loss(jnp, logits, tokens[:, 1:])

    def losses(self, values: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
        """Nats of each target of windows (rows, L+1): (rows, L)."""
        return np.asarray(self._losses(values, jnp.asarray(tokens)))
