"""A loop over the tokens of a block of any length, as PyTorch's tracer knows it: ONNX's Scan."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

Arrays = Sequence[Any]


def exporting(x: Any) -> bool:
    """Whether PyTorch traces x, for a file of ONNX."""
    torch = sys.modules.get("torch")
    return bool(torch and isinstance(x, torch.Tensor) and torch.compiler.is_exporting())


def scan_tokens(
    step: Callable[[Arrays, Arrays, Arrays], tuple[Arrays, Arrays]],
    carry: Arrays,
    rows: Arrays,
    weights: Arrays = (),
    axis: int = 1,
) -> tuple[Arrays, Arrays]:
    """`step` takes (carry, one token of each of `rows`, weights) to (carry, what it gives for the
    token). Returns the last carry, and what all tokens were given. `axis` is that of the tokens;
    what a step uses besides its arguments must be numbers."""
    import torch
    from torch._higher_order_ops.scan import scan_op  # without Dynamo, which knows no NumPy

    def flat(*inputs: Any) -> list[Any]:
        end = len(carry) + len(rows)
        parts = inputs[: len(carry)], inputs[len(carry) : end], inputs[end:]
        outputs = [part for side in step(*parts) for part in side]
        # No output may share memory with another, nor be laid out otherwise than what came in.
        return [torch.clone(part, memory_format=torch.contiguous_format) for part in outputs]

    rows = [part.movedim(axis, 0) for part in rows]
    found = scan_op(flat, list(carry), list(rows), tuple(weights))
    return found[: len(carry)], [part.movedim(0, axis) for part in found[len(carry) :]]
