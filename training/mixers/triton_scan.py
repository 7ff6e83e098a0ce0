"""The scan of `torch_scan.py` on a GPU: one kernel each way, a tile of tokens at a time."""

from __future__ import annotations

from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]  PyTorch brings it where it has CUDA
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

TOKENS, CHANNELS, WARPS = 64, 32, 4  # of a tile


@triton.jit
def _then(kept_a, written_a, kept_b, written_b):
    """The map m -> kept m + written of a, then that of b."""
    return kept_a * kept_b, kept_b * written_a + written_b


@triton.jit
def _kernel(
    kept,
    written,
    memory,
    out,
    length,
    channels,
    kept_row,
    kept_token,
    kept_channel,
    written_row,
    written_token,
    written_channel,
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
    kept += row * kept_row + channel[None, :] * kept_channel
    written += row * written_row + channel[None, :] * written_channel
    out += row * (length + 1) * channels + channel[None, :]
    memory += row * memory_row + channel * memory_channel
    carried = tl.load(memory, mask=real, other=0).to(tl.float32)[None, :]
    start = length if reverse else 0
    tl.store(out + start * channels, carried, mask=real[None, :])
    for begin in range(0, length, TOKENS):
        step = begin + tl.arange(0, TOKENS)[:, None]
        token = (length - 1 - step if reverse else step).to(tl.int64)
        there = (step < length) & real[None, :]
        k = tl.load(kept + token * kept_token, mask=there, other=1).to(tl.float32)
        w = tl.load(written + token * written_token, mask=there, other=0).to(tl.float32)
        k, w = tl.associative_scan((k, w), 0, _then)
        state = k * carried + w
        tl.store(out + (token if reverse else token + 1) * channels, state, mask=there)
        carried = tl.sum(tl.where(last, state, 0), 0)[None, :]


def scan(kept: Tensor, written: Tensor, memory: Tensor, reverse: bool = False) -> Tensor:
    """m_n = kept_n m_{n-1} + written_n of (rows, N, channels) from `memory` (rows, channels):
    memory and every m, (rows, N+1, channels) in fp32. In reverse from the last token to the first,
    where memory comes after the last. The strides of `kept` may be 0."""
    rows, length, channels = written.shape
    out = written.new_empty((rows, length + 1, channels), dtype=torch.float32)
    kernel: Any = _kernel
    kernel[rows, triton.cdiv(channels, CHANNELS)](
        kept,
        written,
        memory,
        out,
        length,
        channels,
        *kept.stride(),
        *written.stride(),
        *memory.stride(),
        reverse=reverse,
        TOKENS=TOKENS,
        CHANNELS=CHANNELS,
        num_warps=WARPS,
    )
    return out
