"""The scan in PyTorch, with its gradient by hand: one pass each way, and nothing kept but the
result, where the plain `primitives.scan` keeps every round of its doubling. Operators of their own,
which torch.compile takes as they are: traced, the loops would be unrolled."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor

TRITON = importlib.util.find_spec("triton") is not None


def supports(device: torch.device) -> bool:
    """On a GPU a loop over tokens would wait for its own launches: it takes a kernel."""
    return device.type == "cpu" or (device.type == "cuda" and TRITON)


@torch.library.custom_op("tsm::scan", mutates_args=())
def _scan(kept: Tensor, written: Tensor, memory: Tensor) -> Tensor:
    """As `primitives.scan`, but all in one: (B, H, N+1, ...), `memory` first."""
    if written.is_cuda:
        return _on_gpu(kept, written, memory)
    every = torch.cat([memory[:, :, None], written], dim=2)
    for n in range(written.shape[2]):
        every[:, :, n + 1].addcmul_(kept[:, :, n], every[:, :, n])
    return every


@torch.library.custom_op("tsm::scan_backward", mutates_args=())
def _scan_backward(gradient: Tensor, kept: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of kept, gradient of memory and written as in `every`)."""
    if gradient.is_cuda:
        gradient = _on_gpu(kept, gradient[:, :, :-1], gradient[:, :, -1], reverse=True)
    else:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        for n in range(kept.shape[2] - 1, -1, -1):
            gradient[:, :, n].addcmul_(kept[:, :, n], gradient[:, :, n + 1])
    return (gradient[:, :, 1:] * every[:, :, :-1]).sum_to_size(kept.shape), gradient


def _on_gpu(kept: Tensor, written: Tensor, memory: Tensor, reverse: bool = False) -> Tensor:
    from tsm.training.mixers import triton_scan

    every = triton_scan.scan(
        kept.expand(written.shape).flatten(0, 1).flatten(2),
        written.flatten(0, 1).flatten(2),
        memory.flatten(0, 1).flatten(1),
        reverse,
    )
    return every.reshape(*written.shape[:2], -1, *written.shape[3:])


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
