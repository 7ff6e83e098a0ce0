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
def _scan(decay: Tensor, update: Tensor, memory: Tensor) -> Tensor:
    """As `primitives.scan`, but all in one: (B, H, N+1, ...), `memory` first."""
    if update.is_cuda:
        return _on_gpu(decay, update, memory)
    every = torch.cat([memory[:, :, None], update], dim=2)
    states = every.unbind(2)  # all views at once: one by one they were half of the scan
    for before, after, factor in zip(states, states[1:], decay.unbind(2), strict=False):
        after.addcmul_(factor, before)
    return every


@torch.library.custom_op("tsm::scan_backward", mutates_args=())
def _scan_backward(gradient: Tensor, decay: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    """(gradient of decay, gradient of memory and update as in `every`)."""
    if gradient.is_cuda:
        gradient = _on_gpu(decay, gradient[:, :, :-1], gradient[:, :, -1], reverse=True)
    else:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        states, factors = gradient.unbind(2)[::-1], decay.unbind(2)[::-1]
        for after, before, factor in zip(states, states[1:], factors, strict=False):
            before.addcmul_(factor, after)
    return (gradient[:, :, 1:] * every[:, :, :-1]).sum_to_size(decay.shape), gradient


def _on_gpu(decay: Tensor, update: Tensor, memory: Tensor, reverse: bool = False) -> Tensor:
    from . import triton_scan

    every = triton_scan.scan(
        decay.expand(update.shape).flatten(0, 1).flatten(2),
        update.flatten(0, 1).flatten(2),
        memory.flatten(0, 1).flatten(1),
        reverse,
    )
    return every.reshape(*update.shape[:2], -1, *update.shape[3:])


@_scan.register_fake
def _(decay: Tensor, update: Tensor, memory: Tensor) -> Tensor:
    return torch.cat([memory[:, :, None], update], dim=2)


@_scan_backward.register_fake
def _(gradient: Tensor, decay: Tensor, every: Tensor) -> tuple[Tensor, Tensor]:
    return decay.new_empty(decay.shape), gradient.new_empty(gradient.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_decay, of_every = _scan_backward(gradient, *ctx.saved_tensors)
    return of_decay, of_every[:, :, 1:], of_every[:, :, 0]


_scan.register_autograd(_back, setup_context=_save)


def scan(decay: Tensor, update: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    every = _scan(decay, update, memory)
    return every[:, :, :-1], every[:, :, -1]
