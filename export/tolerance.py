"""Every tolerance of the project in one table, each with its reason; exporters and tests read it.

    check("fp32 artifact", found, wanted)  # raises ToleranceError: measured and wanted, one line

A difference is relative to the greatest |wanted|: logits near zero matter as little as their
share in the softmax. Paths with the same arithmetic are not here: they are compared exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


class ToleranceError(AssertionError):
    """Two results that should agree and do not."""


@dataclass(frozen=True)
class Tolerance:
    max_relative: float  # of |found - wanted|, to the greatest |wanted|
    reason: str
    mean_kl_nats: float | None = None  # of softmax(wanted) to softmax(found), where they are logits


TOLERANCES = {
    "libraries": Tolerance(1e-4, "NumPy, JAX and PyTorch in fp32: products sum in another order"),
    "gradients": Tolerance(1e-4, "the same, once more on the way back"),
    "forms": Tolerance(1e-4, "chunked form against step form: logarithms against products"),
    "block": Tolerance(
        1e-5, "a block of fp32 against its bytes one by one: products sum in another order"
    ),
    "pruned": Tolerance(1e-3, "without units of which weight decay has left 1e-6 at most", 1e-6),
    "fp32 artifact": Tolerance(
        1e-4, "a graph's kernels sum, and approximate tanh, otherwise", 1e-6
    ),
    # Measured on random weights, the hardest case: 0.07 (tiny), 0.11 to 0.14 (reference shape).
    "int8 artifact": Tolerance(
        0.1, "8 bits a weight and an activation; the state carries their error along", 0.01
    ),
    # Measured: 0.1 and 0.007 nats on the trained reference, 0.56 on random weights (tiny).
    "int4 artifact": Tolerance(
        0.8, "4 bits a weight: the greatest of random weights' logits moves by half", 0.2
    ),
}


def measure(found: Any, wanted: Any) -> dict[str, float]:
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    if found.shape != wanted.shape:
        raise ToleranceError(f"shape {found.shape}, wanted {wanted.shape}")
    difference = np.abs(found - wanted)
    greatest, scale = float(difference.max()), float(np.abs(wanted).max())
    return {
        "max": greatest,
        "mean": float(difference.mean()),
        "max_relative": greatest / scale if scale else greatest,
    }


def mean_kl_nats(found: Any, wanted: Any) -> float:
    """Mean over rows of KL(softmax(wanted) || softmax(found))."""

    def log_softmax(logits: Any) -> np.ndarray:
        logits = np.asarray(logits, np.float64)
        logits = logits - logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))

    wanted = log_softmax(wanted)
    return float((np.exp(wanted) * (wanted - log_softmax(found))).sum(axis=-1).mean())


def check(name: str, found: Any, wanted: Any, logits: bool = False) -> dict[str, float]:
    """The differences; raises ToleranceError where they exceed the row `name`, or are no number."""
    tolerance, measured = TOLERANCES[name], measure(found, wanted)
    limits = {"max_relative": tolerance.max_relative}
    if logits and tolerance.mean_kl_nats is not None:
        measured["mean_kl_nats"] = mean_kl_nats(found, wanted)
        limits["mean_kl_nats"] = tolerance.mean_kl_nats
    for figure, limit in limits.items():
        if not measured[figure] <= limit:  # also refuses NaN
            raise ToleranceError(
                f"{name}: {figure} {measured[figure]:.3g}, wanted at most {limit:g} "
                f"(difference max {measured['max']:.3g}, mean {measured['mean']:.3g})"
            )
    return measured
