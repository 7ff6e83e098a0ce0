"""The scan over chunks in PyTorch, with its gradient by hand: one pass each way, and nothing kept
but the result, where the plain `primitives.scan` keeps every round of its doubling."""

from __future__ import annotations

from typing import Any

import torch


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kept: Any, written: Any, memory: Any) -> Any:
        """As `primitives.scan`, but all in one: (B, H, N+1, ...), `memory` first."""
        every = torch.cat([memory[:, :, None], written], dim=2)
        for n in range(written.shape[2]):
            every[:, :, n + 1].addcmul_(kept[:, :, n], every[:, :, n])
        ctx.save_for_backward(kept, every)
        return every

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (kept, every), (gradient,) = ctx.saved_tensors, gradients
        gradient = gradient.clone()
        for n in range(kept.shape[2] - 1, -1, -1):
            gradient[:, :, n].addcmul_(kept[:, :, n], gradient[:, :, n + 1])
        of_written = gradient[:, :, 1:]
        of_kept = (of_written * every[:, :, :-1]).sum_to_size(kept.shape)
        return of_kept, of_written, gradient[:, :, 0]


def scan(kept: Any, written: Any, memory: Any) -> tuple[Any, Any]:
    every = _Scan.apply(kept, written, memory)
    return every[:, :, :-1], every[:, :, -1]
