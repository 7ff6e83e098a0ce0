"""Muon for the hidden matrices, AdamW for the rest: one pure update over any array library.

Muon: Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks".
AdamW: Loshchilov and Hutter, 2019, arXiv 1711.05101.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import device
from jaxtyping import Float

from .mixers.table import Weight

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Muon's quintic: steep at 0, within 0.7..1.2 after 5
NEWTON_SCHULZ_ROUNDS = (3, 2)  # of Muon's five: a new Gram matrix is made after the third
MUON_MOMENTUM = 0.95
ADAM_BETA1, ADAM_BETA2, ADAM_EPSILON = 0.9, 0.99, 1e-8

Arrays = dict[str, Any]


def initial_state(xp: Any, table: dict[str, Weight], values: Arrays) -> Arrays:
    """Zero moments: `first.NAME` for every weight, `second.NAME` for those of AdamW."""
    state = {f"first.{name}": xp.zeros_like(value) for name, value in values.items()}
    return state | {
        f"second.{name}": xp.zeros_like(values[name])
        for name, weight in table.items()
        if not weight.muon
    }


def orthogonalise(
    xp: Any, matrix: Float[Any, "*rows M N"], dtype: Any = None
) -> Float[Any, "*rows M N"]:
    """The nearest (semi-)orthogonal matrices, roughly: U V^T of matrix = U S V^T.

    Muon's Newton-Schulz rounds, in products of `dtype`, on the small Gram matrix, and applied to
    the wide one (Zhang et al., 2026, "Gram Newton-Schulz"): the same polynomial at two thirds of
    the operations. All five in one go would be 500 times larger at the small singular values than
    at the large ones, which in bf16 would be lost.
    """
    tall = matrix.shape[-2] > matrix.shape[-1]
    wide = xp.matrix_transpose(matrix) if tall else matrix
    wide = wide / (xp.sqrt(xp.sum(wide * wide, axis=(-2, -1), keepdims=True)) + 1e-7)
    wide = xp.astype(wide, dtype or matrix.dtype)
    identity = xp.eye(wide.shape[-2], dtype=wide.dtype, device=device(wide))
    a, b, c = NEWTON_SCHULZ
    for rounds in NEWTON_SCHULZ_ROUNDS:
        gram, total = wide @ xp.matrix_transpose(wide), identity
        for i in range(rounds):
            polynomial = a * identity + b * gram + c * (gram @ gram)
            total = polynomial @ total if i else polynomial
            if i + 1 < rounds:
                gram = polynomial @ gram @ polynomial
        wide = total @ wide
    wide = xp.astype(wide, matrix.dtype)
    return xp.matrix_transpose(wide) if tall else wide


def update(
    xp: Any,
    table: dict[str, Weight],
    values: Arrays,
    gradients: Arrays,
    state: Arrays,
    step: Any,
    muon_learning_rate: Any,
    adam_learning_rate: Any,
    weight_decay: float,
    clip: float,
    adam_beta1: Any = ADAM_BETA1,
    muon_dtype: Any = None,
) -> tuple[Arrays, Arrays, Any]:
    """(weights, state, gradient norm before clipping) after step number `step`, from 0.

    table: of what is trained, `weights(spec)`.
    muon_learning_rate: change per step of a matrix's singular values; adam_learning_rate: of a
    single weight.
    weight_decay is per unit of rate, on matrices only. clip: bound on the global gradient norm.
    muon_dtype: as `dtype` of `orthogonalise`.
    """
    # Summed in the order of the table: a dict read from a checkpoint has another, and another sum.
    norm = xp.sqrt(sum(xp.sum(gradients[name] * gradients[name]) for name in table))
    scale = clip / xp.where(norm > clip, norm, xp.ones_like(norm) * clip)
    updated, moments, by_shape = {}, {}, {}
    for name, weight in table.items():
        value, gradient = values[name], gradients[name] * scale
        first = state[f"first.{name}"]
        if weight.muon:
            first = MUON_MOMENTUM * first + (1 - MUON_MOMENTUM) * gradient
            nesterov = MUON_MOMENTUM * first + (1 - MUON_MOMENTUM) * gradient
            by_shape.setdefault(weight.shape, {})[name] = nesterov
        else:
            second = state[f"second.{name}"]
            first = adam_beta1 * first + (1 - adam_beta1) * gradient
            second = ADAM_BETA2 * second + (1 - ADAM_BETA2) * gradient * gradient
            moments[f"second.{name}"] = second
            direction = first / (1 - adam_beta1 ** (step + 1))
            spread = xp.sqrt(second / (1 - ADAM_BETA2 ** (step + 1)))
            updated[name] = value - adam_learning_rate * direction / (spread + ADAM_EPSILON)
        moments[f"first.{name}"] = first
    for shape, matrices in by_shape.items():  # one batched product each
        directions = orthogonalise(xp, xp.stack(list(matrices.values())), muon_dtype)
        directions = directions * max(1.0, shape[0] / shape[1]) ** 0.5
        for i, name in enumerate(matrices):
            kept = values[name] * (1 - muon_learning_rate * weight_decay)
            updated[name] = kept - muon_learning_rate * directions[i]
    return {name: updated[name] for name in table}, moments, norm
