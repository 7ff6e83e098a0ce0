"""The scan of the beam splitter in PyTorch on a GPU: one kernel each way, which reads and writes
each activation once and has angles and states in fp32 between. Triton's own interpreter
(TRITON_INTERPRET=1) runs it on a CPU, for tests."""

from __future__ import annotations

import functools
import math
from typing import Any

import array_api_compat.torch as xp
import torch
import triton  # pyright: ignore[reportMissingImports]  PyTorch brings it where it has CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

from ..mixers import primitives
from .triton_scan import WARPS, _then

TOKENS, CHANNELS = 32, 32  # of a tile: with more, registers go to memory
QUARTER_TURN = math.pi / 2


@triton.jit
def _angle(radius, QUARTER_TURN: tl.constexpr):
    """rho of the encoder's number, and its derivative."""
    share = 1 / (1 + tl.exp(-radius))
    return QUARTER_TURN * share, QUARTER_TURN * share * (1 - share)


@triton.jit
def _block(channels, CHANNELS: tl.constexpr):
    """This program's row and channels, and which of those exist."""
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    return tl.program_id(0).to(tl.int64), channel, channel < channels


@triton.jit
def _load(pointer, mask):
    return tl.load(pointer, mask=mask, other=0).to(tl.float32)


@triton.jit
def _kernel(
    value,
    radius,
    memory,
    states,
    length,
    channels,
    value_row,
    value_token,
    value_channel,
    radius_row,
    radius_token,
    radius_channel,
    memory_row,
    memory_channel,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUARTER_TURN: tl.constexpr,
):
    """A program a row and a block of channels. Strides in elements; `states` is contiguous, one
    token longer, `memory` first."""
    row, channel, channel_mask = _block(channels, CHANNELS)
    last = tl.arange(0, TOKENS)[:, None] == TOKENS - 1
    value += row * value_row + channel * value_channel
    radius += row * radius_row + channel * radius_channel
    states += row * (length + 1) * channels + channel
    before = _load(memory + row * memory_row + channel * memory_channel, channel_mask)
    tl.store(states, before, mask=channel_mask)
    for begin in range(0, length, TOKENS):
        token = (begin + tl.arange(0, TOKENS)[:, None]).to(tl.int64)
        mask = (token < length) & channel_mask
        angle, _ = _angle(_load(radius + token * radius_token, mask), QUARTER_TURN)
        update = _load(value + token * value_token, mask)
        decay, update = tl.associative_scan((tl.cos(angle), tl.sin(angle) * update), 0, _then)
        state = decay * before + update
        tl.store(states + (token + 1) * channels, state, mask=mask)
        before = tl.sum(tl.where(last, state, 0), 0)[None, :]


@triton.jit
def _kernel_back(
    value,
    radius,
    states,
    gradient,
    grad_value,
    grad_radius,
    grad_memory,
    length,
    channels,
    value_row,
    value_token,
    value_channel,
    radius_row,
    radius_token,
    radius_channel,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
    QUARTER_TURN: tl.constexpr,
):
    """From the last state to the first; but for value and radius all are contiguous, `gradient`
    that of `states`."""
    row, channel, channel_mask = _block(channels, CHANNELS)
    last = tl.arange(0, TOKENS)[:, None] == TOKENS - 1
    value += row * value_row + channel * value_channel
    radius += row * radius_row + channel * radius_channel
    states += row * (length + 1) * channels + channel
    gradient += row * (length + 1) * channels + channel
    grad_value += row * length * channels + channel
    grad_radius += row * length * channels + channel
    grad_memory += row * channels + channel
    later = tl.zeros((1, CHANNELS), tl.float32)  # the whole gradient of the state after a tile
    for begin in range(0, length + 1, TOKENS):
        place = (length - begin - tl.arange(0, TOKENS)[:, None]).to(tl.int64)  # in `states`
        token = place - 1  # that made the state there
        mask = (place >= 0) & channel_mask
        token_mask, next_mask = mask & (place > 0), mask & (place < length)
        angle, _ = _angle(_load(radius + place * radius_token, next_mask), QUARTER_TURN)
        own = _load(gradient + place * channels, mask)
        decay, whole = tl.associative_scan((tl.cos(angle), own), 0, _then)
        whole += decay * later
        later = tl.sum(tl.where(last, whole, 0), 0)[None, :]
        tl.store(grad_memory + tl.zeros_like(place), whole, mask=mask & (place == 0))
        angle, slope = _angle(_load(radius + token * radius_token, token_mask), QUARTER_TURN)
        cos, sin = tl.cos(angle), tl.sin(angle)
        before = _load(states + token * channels, token_mask)
        turned = cos * _load(value + token * value_token, token_mask) - sin * before
        tl.store(grad_value + token * channels, sin * whole, mask=token_mask)
        tl.store(grad_radius + token * channels, turned * whole * slope, mask=token_mask)


@torch.library.custom_op("tsm::coupled_scan", mutates_args=())
def _scan(value: Tensor, radius: Tensor, memory: Tensor) -> Tensor:
    """memory and every state, (B, L+1, D), of the dtype of `value`."""
    rows, length, channels = value.shape
    states = value.new_empty((rows, length + 1, channels))
    _over(
        _kernel,
        value,
        (value, radius, memory, states, length, channels),
        (*value.stride(), *radius.stride(), *memory.stride()),
    )
    return states


@torch.library.custom_op("tsm::coupled_scan_backward", mutates_args=())
def _scan_backward(
    value: Tensor, radius: Tensor, states: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of value, radius and memory."""
    rows, length, channels = value.shape
    found = (
        value.new_empty(value.shape),
        radius.new_empty(radius.shape),
        value.new_empty((rows, channels)),
    )
    _over(
        _kernel_back,
        value,
        (value, radius, states, gradient.contiguous(), *found, length, channels),
        (*value.stride(), *radius.stride()),
    )
    return found


def _over(kernel: Any, value: Tensor, arrays: tuple[Any, ...], strides: tuple[int, ...]) -> None:
    """`kernel` for every row and block of channels."""
    kernel[value.shape[0], triton.cdiv(value.shape[2], CHANNELS)](
        *arrays,
        *strides,
        TOKENS=TOKENS,
        CHANNELS=CHANNELS,
        QUARTER_TURN=QUARTER_TURN,
        num_warps=WARPS,
    )


@_scan.register_fake
def _(value: Tensor, radius: Tensor, memory: Tensor) -> Tensor:
    rows, length, channels = value.shape
    return value.new_empty((rows, length + 1, channels))


@_scan_backward.register_fake
def _(value: Tensor, radius: Tensor, states: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    rows, _, channels = value.shape
    return (
        value.new_empty(value.shape),
        radius.new_empty(radius.shape),
        value.new_empty((rows, channels)),
    )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.memory_dtype = inputs[2].dtype
    ctx.save_for_backward(inputs[0], inputs[1], output)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    grad_value, grad_radius, grad_memory = _scan_backward(*ctx.saved_tensors, gradient)
    return grad_value, grad_radius, grad_memory.to(ctx.memory_dtype)


_scan.register_autograd(_back, setup_context=_save)


def scan(value: Tensor, radius: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """As `primitives.coupled_scan`."""
    states = _scan(value, radius, memory)[:, 1:]
    return states, states[:, -1]


def agrees(device: str = "cuda") -> bool:
    """With the plain form on the CPU, in states and gradients: of slices, as the model has them, in
    fp32, and with values in bf16."""
    inner, generator = CHANNELS + 8, torch.Generator().manual_seed(0)
    projected = torch.randn((2, 2 * TOKENS + 5, 3 * inner), generator=generator)
    first = torch.randn((2, inner), generator=generator)

    def found(scan: Any, device: str, dtype: torch.dtype) -> list[Tensor]:
        inputs = [x.to(device).requires_grad_() for x in (projected, first)]
        whole = inputs[0].to(dtype)
        value, radius = whole[..., :inner], whole[..., inner : 2 * inner].float()
        states, last = scan(value, radius, inputs[1])
        loss = states.float().square().sum() + last.float().square().sum()
        return [x.float().cpu() for x in (states, last, *torch.autograd.grad(loss, inputs))]

    plain = functools.partial(primitives.coupled_scan, xp)
    for dtype, most in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        pairs = zip(found(scan, device, dtype), found(plain, "cpu", dtype), strict=True)
        if any((one - other).norm() > most * other.norm() for one, other in pairs):
            return False
    return True
