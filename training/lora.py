"""Low-rank fine-tuning, `train.py --start MODEL --lora RANK`: the model's weights stay, and to each
hidden matrix a product is added that is trained in their place, up (out, RANK) times down (RANK,
in). What is evaluated and written are plain weights, the products added. Hu et al., 2021, arXiv
2106.09685.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .mixers.table import Init, Weight
from .spec import ModelSpec, weights


@dataclass(frozen=True)
class Adapters:
    base: dict[str, np.ndarray]  # the weights of the model that is fine-tuned
    table: dict[str, Weight]  # what is trained


def adapter_table(spec: ModelSpec, rank: int) -> dict[str, Weight]:
    """At the start up is zero: the model is what it was."""
    table = {}
    for name, weight in weights(spec).items():
        if weight.muon:
            out, into = zip(weight.axes, weight.shape, strict=True)
            shape, axes = (rank, into[1]), ("rank", into[0])
            table[f"{name}.down"] = Weight(shape, axes, Init(std=into[1] ** -0.5))
            table[f"{name}.up"] = Weight((out[1], rank), (out[0], "rank"))
    return table


def merged(base: dict[str, Any], adapters: dict[str, Any]) -> dict[str, Any]:
    """Plain weights, in any array library."""
    return {
        name: weight + adapters[f"{name}.up"] @ adapters[f"{name}.down"]
        if f"{name}.up" in adapters
        else weight
        for name, weight in base.items()
    }
