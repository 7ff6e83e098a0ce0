"""The scan in PyTorch on a CPU, with its gradient by hand: one pass each way, and nothing kept
but the result, where the plain `primitives.scan` keeps every round of its doubling. Operators of
their own, which torch.compile takes as they are: traced, the loops would be unrolled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("tsm::scan", mutates_args=())
def _scan(kept: Tensor, written: Tensor, memory: Tensor) -> Tensor:
    """As `primitives.scan`, but all in one: (B, H, N+1, ...), `memory` first."""
    every = torch.cat([memory[:, :, None], written], dim=2)
    for n in range(written.shape[2]):
        every[:, :, n + 1].addcmul_(kept[:, :, n], every[:, :, n])
    return every


@torch.library.custom_op("tsm::scan_backward", mutates_args=())
def _scan_backward(gradient: Tensor, kept: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of kept, gradient of memory and written as in `every`)."""
    gradient = gradient.clone(memory_format=torch.contiguous_format)
    for n in range(kept.shape[2] - 1, -1, -1):
        gradient[:, :, n].addcmul_(kept[:, :, n], gradient[:, :, n + 1])
    return (gradient[:, :, 1:] * every[:, :, :-1]).sum_to_size(kept.shape), gradient


@_scan.register_fake
def _(kept: Tensor, written: Tensor, memory: Tensor) -> Tensor:
    return torch.cat([memory[:, :, None], written], dim=2)


@_scan_backward.register_fake
def _(gradient: Tensor, kept: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    return kept.new_empty(kept.shape), gradient.new_empty(gradient.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_kept, of_every = _scan_backward(gradient, *ctx.saved_tensors)
    return of_kept, of_every[:, :, 1:], of_every[:, :, 0]


_scan.register_autograd(_back, setup_context=_keep)


def scan(kept: Tensor, written: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    every = _scan(kept, written, memory)
    return every[:, :, :-1], every[:, :, -1]
