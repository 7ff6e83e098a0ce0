"""What a model writes, and what surprises it, computed in NumPy: to show how far it has come."""

from __future__ import annotations

import array_api_compat.numpy as xp
import numpy as np

from . import model
from .spec import ModelSpec

TEMPERATURE = 0.8


def sample(
    spec: ModelSpec, weights: dict[str, np.ndarray], count: int, prompt: bytes = b"\n"
) -> str:
    """A text of `count` bytes, always from the same random numbers."""
    random = np.random.Generator(np.random.Philox(0))
    tokens = np.frombuffer(prompt, np.uint8).astype(np.int64)[None]
    state, text = model.initial_state(xp, spec), bytearray()
    for _ in range(count):
        logits, state = model.forward(xp, spec, weights, tokens, state)
        noise = random.gumbel(size=spec.vocabulary)  # the argmax of these is a draw
        text.append(int(np.argmax(logits[0, -1] / TEMPERATURE + noise)))
        tokens = np.array([[text[-1]]])
    return text.decode("utf-8", "replace")


def surprise(spec: ModelSpec, weights: dict[str, np.ndarray], passage: np.ndarray) -> np.ndarray:
    """Nats of each byte of a passage but the first, those before it given."""
    tokens = passage.astype(np.int64)[None]
    logits, _ = model.forward(xp, spec, weights, tokens[:, :-1], model.initial_state(xp, spec))
    return model.loss(xp, logits, tokens[:, 1:])[0]
