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
HALF_TURN = math.pi / 2


@triton.jit
def _angle(radius, HALF_TURN: tl.constexpr):
    """rho of the encoder's number, and its derivative."""
    share = 1 / (1 + tl.exp(-radius))
    return HALF_TURN * share, HALF_TURN * share * (1 - share)


@triton.jit
def _kernel(
    value,
    radius,
    memory,
    every,
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
    HALF_TURN: tl.constexpr,
):
    """A program a row and a block of channels. Strides in elements; `every` is contiguous, one
    token longer, `memory` first."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    exist = channel < channels
    last = tl.arange(0, TOKENS)[:, None] == TOKENS - 1
    value += row * value_row + channel * value_channel
    radius += row * radius_row + channel * radius_channel
    every += row * (length + 1) * channels + channel
    before = tl.load(memory + row * memory_row + channel * memory_channel, mask=exist, other=0)
    before = before.to(tl.float32)
    tl.store(every, before, mask=exist)
    for begin in range(0, length, TOKENS):
        token = (begin + tl.arange(0, TOKENS)[:, None]).to(tl.int64)
        there = (token < length) & exist
        angle, _ = _angle(
            tl.load(radius + token * radius_token, mask=there, other=0).to(tl.float32), HALF_TURN
        )
        update = tl.load(value + token * value_token, mask=there, other=0).to(tl.float32)
        decay, update = tl.associative_scan((tl.cos(angle), tl.sin(angle) * update), 0, _then)
        state = decay * before + update
        tl.store(every + (token + 1) * channels, state, mask=there)
        before = tl.sum(tl.where(last, state, 0), 0)[None, :]


@triton.jit
def _kernel_back(
    value,
    radius,
    every,
    gradient,
    of_value,
    of_radius,
    of_memory,
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
    HALF_TURN: tl.constexpr,
):
    """From the last token to the first; but for value and radius all are contiguous, `gradient`
    that of `every`."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    exist = channel < channels
    last = tl.arange(0, TOKENS)[:, None] == TOKENS - 1
    value += row * value_row + channel * value_channel
    radius += row * radius_row + channel * radius_channel
    every += row * (length + 1) * channels + channel
    gradient += row * (length + 1) * channels + channel
    of_value += row * length * channels + channel
    of_radius += row * length * channels + channel
    later = tl.zeros((1, CHANNELS), tl.float32)  # the gradient of the state after, by all after it
    for begin in range(0, length, TOKENS):
        token = (length - 1 - begin - tl.arange(0, TOKENS)[:, None]).to(tl.int64)
        there = (token >= 0) & exist
        after, _ = _angle(
            tl.load(
                radius + (token + 1) * radius_token, mask=there & (token + 1 < length), other=0
            ).to(tl.float32),
            HALF_TURN,
        )
        own = tl.load(gradient + (token + 1) * channels, mask=there, other=0).to(tl.float32)
        decay, whole = tl.associative_scan((tl.cos(after), own), 0, _then)
        whole += decay * later
        later = tl.sum(tl.where(last, whole, 0), 0)[None, :]
        angle, slope = _angle(
            tl.load(radius + token * radius_token, mask=there, other=0).to(tl.float32), HALF_TURN
        )
        cos, sin = tl.cos(angle), tl.sin(angle)
        there_value = tl.load(value + token * value_token, mask=there, other=0).to(tl.float32)
        before = tl.load(every + token * channels, mask=there, other=0).to(tl.float32)
        tl.store(of_value + token * channels, sin * whole, mask=there)
        turned = (cos * there_value - sin * before) * whole * slope
        tl.store(of_radius + token * channels, turned, mask=there)
        own = tl.load(gradient, mask=exist, other=0).to(tl.float32)
        of_first = tl.where(token == 0, cos * whole, 0)
        tl.store(
            of_memory + row * channels + channel,
            own + tl.sum(of_first, 0)[None, :],
            mask=exist & (begin + TOKENS >= length),
        )


@torch.library.custom_op("tsm::coupled_scan", mutates_args=())
def _scan(value: Tensor, radius: Tensor, memory: Tensor) -> Tensor:
    """memory and every state, (B, L+1, D), of the type of `value`."""
    rows, length, channels = value.shape
    every = value.new_empty((rows, length + 1, channels))
    _over(
        _kernel,
        value,
        (value, radius, memory, every, length, channels),
        (*value.stride(), *radius.stride(), *memory.stride()),
    )
    return every


@torch.library.custom_op("tsm::coupled_scan_backward", mutates_args=())
def _scan_backward(
    value: Tensor, radius: Tensor, every: Tensor, gradient: Tensor
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
        (value, radius, every, gradient.contiguous(), *found, length, channels),
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
        HALF_TURN=HALF_TURN,
        num_warps=WARPS,
    )


@_scan.register_fake
def _(value: Tensor, radius: Tensor, memory: Tensor) -> Tensor:
    rows, length, channels = value.shape
    return value.new_empty((rows, length + 1, channels))


@_scan_backward.register_fake
def _(value: Tensor, radius: Tensor, every: Tensor, gradient: Tensor) -> tuple[Tensor, ...]:
    rows, _, channels = value.shape
    return (
        value.new_empty(value.shape),
        radius.new_empty(radius.shape),
        value.new_empty((rows, channels)),
    )


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.memory_type = inputs[2].dtype
    ctx.save_for_backward(inputs[0], inputs[1], output)


def _back(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    of_value, of_radius, of_memory = _scan_backward(*ctx.saved_tensors, gradient)
    return of_value, of_radius, of_memory.to(ctx.memory_type)


_scan.register_autograd(_back, setup_context=_save)


def scan(value: Tensor, radius: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """As `primitives.coupled_scan`."""
    states = _scan(value, radius, memory)[:, 1:]
    return states, states[:, -1]


def agrees(device: str = "cuda") -> bool:
    """With the plain form, in states and gradients, within 1e-4."""

    def states_and_gradients(scan: Any) -> Any:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randn((3, 2, 2 * TOKENS + 5, CHANNELS + 8), generator=generator).to(device)
        arguments = [x.requires_grad_() for x in (drawn[0], drawn[1], drawn[2, :, 0])]
        states = scan(*arguments)
        loss = torch.stack([(x * x).sum() for x in states]).sum()
        return *states, *torch.autograd.grad(loss, arguments)

    plain = functools.partial(primitives.coupled_scan, xp)
    pairs = zip(*map(states_and_gradients, (scan, plain)), strict=True)
    return all(torch.allclose(one, other, atol=1e-4) for one, other in pairs)
