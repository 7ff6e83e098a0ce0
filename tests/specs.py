"""A small model with a matrix per head, and weights of which every part matters."""

from __future__ import annotations

import numpy as np

from tsm.training import model
from tsm.training.spec import ModelSpec

SMALL = ModelSpec(width=64, layers=2, heads=2, key_width=16, value_width=32, chunk=32)


def noisy_weights(spec: ModelSpec) -> dict[str, np.ndarray]:
    """As training begins with, and noise: none zero, none constant."""
    random = np.random.default_rng(1)
    return {
        name: (value + 0.1 * random.standard_normal(value.shape)).astype(np.float32)
        for name, value in model.initialise(spec, 0).items()
    }
