"""The scan of `torch_scan.py` on a GPU: one kernel each way, a tile of tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  PyTorch brings it where it has CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

TOKENS, CHANNELS, WARPS = 64, 32, 4  # of a tile


@triton.jit
def _then(decay_a, update_a, decay_b, update_b):
    """The map m -> decay m + update of a, then that of b."""
    return decay_a * decay_b, decay_b * update_a + update_b


@triton.jit
def _kernel(
    decay,
    update,
    memory,
    out,
    length,
    channels,
    decay_row,
    decay_token,
    decay_channel,
    update_row,
    update_token,
    update_channel,
    memory_row,
    memory_channel,
    reverse: tl.constexpr,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """A program a row and a block of channels. Strides in elements; `out` is contiguous, one token
    longer, its first (in reverse: its last) the memory that the scan starts from."""
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = channel < channels
    last = tl.arange(0, TOKENS)[:, None] == TOKENS - 1
    decay += row * decay_row + channel[None, :] * decay_channel
    update += row * update_row + channel[None, :] * update_channel
    out += row * (length + 1) * channels + channel[None, :]
    memory += row * memory_row + channel * memory_channel
    carried = tl.load(memory, mask=real, other=0).to(tl.float32)[None, :]
    start = length if reverse else 0
    tl.store(out + start * channels, carried, mask=real[None, :])
    for begin in range(0, length, TOKENS):
        step = begin + tl.arange(0, TOKENS)[:, None]
        token = (length - 1 - step if reverse else step).to(tl.int64)
        there = (step < length) & real[None, :]
        k = tl.load(decay + token * decay_token, mask=there, other=1).to(tl.float32)
        w = tl.load(update + token * update_token, mask=there, other=0).to(tl.float32)
        k, w = tl.associative_scan((k, w), 0, _then)
        state = k * carried + w
        tl.store(out + (token if reverse else token + 1) * channels, state, mask=there)
        carried = tl.sum(tl.where(last, state, 0), 0)[None, :]


def scan(decay: Tensor, update: Tensor, memory: Tensor, reverse: bool = False) -> Tensor:
    """m_n = decay_n m_{n-1} + update_n of (rows, N, channels) from `memory` (rows, channels):
    memory and every m, (rows, N+1, channels) in fp32. In reverse from the last token to the first,
    where memory comes after the last. The strides of `decay` may be 0."""
    rows, length, channels = update.shape
    out = update.new_empty((rows, length + 1, channels), dtype=torch.float32)
    kernel: Any = _kernel
    kernel[rows, triton.cdiv(channels, CHANNELS)](
        decay,
        update,
        memory,
        out,
        length,
        channels,
        *decay.stride(),
        *update.stride(),
        *memory.stride(),
        reverse=reverse,
        TOKENS=TOKENS,
        CHANNELS=CHANNELS,
        num_warps=WARPS,
    )
    return out
