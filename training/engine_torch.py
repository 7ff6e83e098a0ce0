"""Training steps in PyTorch. `arrays in, arrays out`: the loop in train.py knows no library."""

from __future__ import annotations

import ctypes
import math
import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch

from . import model, optimizer
from .kernels import gpu_scan, torch_scan
from .lora import Adapters, merged
from .spec import ModelSpec, weights


def _keep_pages() -> None:
    """Makes glibc keep freed memory: faulting in fresh pages was half of a step (measured)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_top_pad, 2**28)


def bf16_is_fast() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    found = torch.cpu.get_capabilities()
    return found.get("amx_tile", False) or found.get("avx512_bf16", False)


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
        """teachers: models whose mean probabilities are to be learned in place of the text's
        bytes. adapters: what is trained in place of the model's weights."""
        _keep_pages()
        self.table = adapters.table if adapters else weights(spec)
        self.spec, self.dropout = spec, dropout
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.use_deterministic_algorithms(True, warn_only=self.device == "cuda")
        # Deterministic here without it, and a twelfth of a step: memory that is overwritten anyway.
        deterministic: Any = torch.utils.deterministic
        deterministic.fill_uninitialized_memory = False
        self.xp: Any = self._namespace()
        self.muon_dtype = torch.bfloat16 if bf16 else None
        self.cast = torch.autocast(self.device, torch.bfloat16, enabled=bf16)
        self.loss = torch.compile(self._loss) if compiled else self._loss
        teacher_probabilities = self._teacher_probabilities
        self.teacher_probabilities = (
            torch.compile(teacher_probabilities) if compiled else teacher_probabilities
        )
        self.teachers = [(spec, self.load(arrays)) for spec, arrays in teachers]
        self.base = self.load(adapters.base) if adapters else None
        # Its tracer warns of array-api-compat's cached look-ups, which are pure.
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools")

    def _namespace(self) -> Any:
        """The array library, and the scan that the model takes in place of the plain one."""
        on_gpu = self.device == "cuda" and torch_scan.TRITON
        coupled = gpu_scan("triton_coupled") if on_gpu else None
        return SimpleNamespace(**{**vars(xp), "coupled_scan": coupled}) if coupled else xp

    def use_threads(self, count: int) -> None:
        torch.set_num_threads(count)

    def device_name(self) -> str:
        return "CPU" if self.device == "cpu" else torch.cuda.get_device_name()

    def memory_bytes(self) -> int | None:
        """The most that a GPU's memory has held; None without one."""
        return None if self.device == "cpu" else torch.cuda.max_memory_allocated()

    def load(self, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        return {n: torch.tensor(a, device=self.device) for n, a in arrays.items()}

    def save(self, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
        return {n: a.detach().cpu().numpy() for n, a in arrays.items()}

    kept = save  # what a checkpoint is written from

    def rows(self, batch: int) -> slice:
        """Of a batch, which this process has to load."""
        return slice(None)

    def optimizer_state(self, values: dict[str, Any]) -> dict[str, Any]:
        return optimizer.initial_state(xp, self.table, values)

    def whole(self, values: dict[str, Any]) -> dict[str, Any]:
        """The model's weights."""
        return merged(self.base, values) if self.base else values

    def _logits(
        self, spec: ModelSpec, values: dict[str, Any], tokens: Any, drop: Any = lambda x: x
    ) -> Any:
        state = model.initial_state(xp, spec, tokens.shape[0], cached=0)
        state = {name: part.to(self.device) for name, part in state.items()}
        return model.forward(self.xp, spec, values, tokens, state, drop)[0]

    @torch.no_grad()
    def _teacher_probabilities(self, tokens: Any) -> Any:
        """The teachers' mean probabilities of the byte after each token: (B, L, vocabulary)."""
        with self.cast:
            logits = [self._logits(*teacher, tokens[:, :-1]) for teacher in self.teachers]
        return sum(model.log_softmax(xp, x.float()).exp() for x in logits) / len(logits)

    def _loss(
        self,
        values: dict[str, Any],
        tokens: Any,
        noise: Any,
        teacher_probabilities: Any = None,
        counts: Any = None,
    ) -> Any:
        """Mean nats; noise: random bytes (dropped activations, B, L, D), or None;
        teacher_probabilities: what is to be learned in place of the bytes, or None."""
        left = iter(() if noise is None else noise.unbind())
        dropped = round(256 * self.dropout)  # of the 256 values of a byte

        def drop(x: Any) -> Any:
            return x if noise is None else x * ((next(left) >= dropped) * (256 / (256 - dropped)))

        with self.cast:
            logits = self._logits(self.spec, self.whole(values), tokens[:, :-1], drop).float()
        if teacher_probabilities is not None:
            return model.distillation_loss(xp, logits, teacher_probabilities).mean()
        nats = model.loss(xp, logits, tokens[:, 1:])
        return (nats if counts is None else nats * counts).mean()

    def _noise(self, rows: int, length: int) -> Any:
        """Bytes for every dropout of a step at once, eight a draw: drawn one activation at a time
        inside the fused code, they were a quarter of a step and kept it from vectorising."""
        shape = (model.dropouts(self.spec), rows, length, self.spec.width)
        drawn = torch.empty(-(-math.prod(shape) // 8), dtype=torch.int64, device=self.device)
        return drawn.random_(-(2**63), None).view(torch.uint8)[: math.prod(shape)].reshape(shape)

    def step(
        self,
        values: dict[str, Any],
        state: dict[str, Any],
        average: dict[str, Any],
        tokens: np.ndarray,
        seed: int,
        settings: dict[str, float],
        average_decay: float,
        toward_average: float = 0.0,
        counts: np.ndarray | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], float, float]:
        """One step; (weights, optimizer state, averaged weights, loss, gradient norm).

        toward_average: where the gradient is taken, from 0, at the weights, to 1, at the average.
        counts: how much each target's loss counts, (B, L); all alike if None. Without teachers.
        """
        torch.manual_seed(seed)
        points = {n: v.lerp(average[n], toward_average).requires_grad_() for n, v in values.items()}
        inputs = torch.as_tensor(tokens, device=self.device)
        noise = self._noise(len(tokens), tokens.shape[1] - 1) if self.dropout else None
        teacher_probabilities = self.teacher_probabilities(inputs) if self.teachers else None
        counted = None if counts is None else torch.as_tensor(counts, device=self.device)
        loss = self.loss(points, inputs, noise, teacher_probabilities, counted)
        gradients = torch.autograd.grad(loss, list(points.values()))
        with torch.no_grad():
            named = dict(zip(points, gradients, strict=True))
            values, state, norm = optimizer.update(
                xp, self.table, values, named, state, muon_dtype=self.muon_dtype, **settings
            )
            average = {n: a.lerp(values[n], 1 - average_decay) for n, a in average.items()}
        return values, state, average, loss.item(), norm.item()

    @torch.no_grad()
    def losses(self, values: dict[str, Any], tokens: np.ndarray) -> np.ndarray:
        """Nats of each target of windows (rows, L+1): (rows, L)."""
        inputs = torch.as_tensor(tokens, device=self.device)
        logits = self._logits(self.spec, self.whole(values), inputs[:, :-1])
        return model.loss(xp, logits, inputs[:, 1:]).cpu().numpy()
