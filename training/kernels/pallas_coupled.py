"""The scan of the beam splitter in JAX on a GPU: one kernel each way, which reads and writes each
activation once and has angles and states in fp32 between, whatever the precision of the arrays.

On a CPU Pallas interprets it, for tests.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ..mixers import primitives

CHANNELS = 64  # of a program
TOKENS = 16  # loaded before the first of them is used, so that loads wait together
WARPS = 1


def agrees() -> bool:
    """With the plain form, in states and gradients: in fp32, and with values in bf16."""
    value, radius = jax.random.normal(jax.random.key(0), (2, 2, 48, CHANNELS + 8))

    def found(scan: Any, dtype: Any) -> Any:
        states, back = jax.vjp(scan, value.astype(dtype), radius, value[:, 0])
        return *states, *back(states)

    plain = functools.partial(primitives.coupled_scan, jnp)
    for dtype, most in ((jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)):
        for one, other in zip(found(scan, dtype), found(plain, dtype), strict=True):
            difference = jnp.linalg.norm(one.astype(jnp.float32) - other.astype(jnp.float32))
            if difference > most * jnp.linalg.norm(other.astype(jnp.float32)):
                return False
    return True


def scan(value: Any, radius: Any, memory: Any) -> tuple[Any, Any]:
    """As `primitives.coupled_scan`; states have the dtype of `value`."""
    states = _scan(value, radius, memory)
    return states, states[:, -1]


@jax.custom_vjp
def _scan(value: Any, radius: Any, memory: Any) -> Any:
    return _call(_kernel, [value], value, radius, memory)


def _forward(*arguments: Any) -> Any:
    states = _scan(*arguments)
    return states, (*arguments, states)


def _backward(kept: Any, gradient: Any) -> Any:
    return _call(_kernel_back, kept[:3], *kept, gradient)


_scan.defvjp(_forward, _backward)


def _call(kernel: Any, like: list[Any], value: Any, *rest: Any) -> Any:
    """`kernel` for each row and block of channels; it writes arrays like these."""
    rows, _, channels = value.shape
    shapes = [
        jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=x.manual_axis_type)
        for x in map(jax.typeof, like)
    ]
    written = pl.pallas_call(
        kernel,
        grid=(rows, pl.cdiv(channels, CHANNELS)),
        out_shape=shapes if len(shapes) > 1 else shapes[0],
        compiler_params=plgpu.CompilerParams(num_warps=WARPS),
        interpret=jax.default_backend() == "cpu",
    )
    return written(value, *rest)


def _kernel(value: Any, radius: Any, memory: Any, states: Any) -> None:
    row, channels, load, store = _block(value)

    def tile(start: Any, memory: Any) -> Any:
        tokens = [(row, start + i, channels) for i in range(_tile(value))]
        read = [(load(value, token), load(radius, token)) for token in tokens]
        for token, (value_here, radius_here) in zip(tokens, read, strict=True):
            angle, _ = _angle(radius_here)
            memory = jnp.cos(angle) * memory + jnp.sin(angle) * value_here
            store(states, token, memory)
        return memory

    _over_tiles(value, tile, load(memory, (row, channels)))


def _kernel_back(
    value: Any,
    radius: Any,
    memory: Any,
    states: Any,
    gradient: Any,
    grad_value: Any,
    grad_radius: Any,
    grad_memory: Any,
) -> None:
    row, channels, load, store = _block(value)
    first = load(memory, (row, channels))

    def tile(start: Any, later: Any) -> Any:
        """later: the gradient of the last state of the tile, by the tokens after it."""
        places = [start + i for i in reversed(range(_tile(value)))]
        read = [
            (
                load(value, (row, place, channels)),
                load(radius, (row, place, channels)),
                load(gradient, (row, place, channels)),
                jnp.where(
                    place > 0, load(states, (row, jnp.maximum(place - 1, 0), channels)), first
                ),
            )
            for place in places
        ]
        for place, (value_here, radius_here, own, before) in zip(places, read, strict=True):
            angle, slope = _angle(radius_here)
            cos, sin, later = jnp.cos(angle), jnp.sin(angle), own + later
            store(grad_value, (row, place, channels), sin * later)
            turned = cos * value_here - sin * before
            store(grad_radius, (row, place, channels), turned * later * slope)
            later = cos * later
        return later

    last = _over_tiles(value, tile, jnp.zeros_like(first), reverse=True)
    store(grad_memory, (row, channels), last)


def _angle(radius: Any) -> tuple[Any, Any]:
    """rho of the encoder's number, and its derivative."""
    share = 1 / (1 + jnp.exp(-radius))
    return math.pi / 2 * share, math.pi / 2 * share * (1 - share)


def _block(array: Any) -> tuple[Any, Any, Any, Any]:
    """This program's row and channels, and how it reads and writes in fp32 those that exist."""
    first = pl.program_id(1) * CHANNELS
    mask = first + jnp.arange(CHANNELS) < array.shape[2]

    def load(array: Any, place: Any) -> Any:
        return plgpu.load(array.at[place], mask=mask, other=0).astype(jnp.float32)

    def store(array: Any, place: Any, found: Any) -> None:
        plgpu.store(array.at[place], found.astype(array.dtype), mask=mask)

    return pl.program_id(0), pl.ds(first, CHANNELS), load, store


def _tile(array: Any) -> int:
    """Tokens of a tile: as many of TOKENS as divide the length."""
    return math.gcd(array.shape[1], TOKENS)


def _over_tiles(array: Any, tile: Any, carried: Any, reverse: bool = False) -> Any:
    count = array.shape[1] // _tile(array)

    def one(i: Any, carried: Any) -> Any:
        return tile((count - 1 - i if reverse else i) * _tile(array), carried)

    return jax.lax.fori_loop(0, count, one, carried)
