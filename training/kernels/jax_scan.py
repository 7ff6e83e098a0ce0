"""The scan in JAX, with its gradient by hand: nothing kept but the result; and over a text that is
split across devices, each of which scans its part and hands the state on."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp


def scan(decay: Any, update: Any, memory: Any, axis: str | None = None) -> Any:
    """As `primitives.scan`. axis: of the mesh, within a shard_map, over which axis 2 is split;
    `memory` is what the first part starts from, the last memory returned that after its own."""
    dtype = jnp.result_type(decay, update, memory)
    every: Any = _scan(*(x.astype(dtype) for x in (decay, update, memory)), axis)
    return every[:, :, :-1], every[:, :, -1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _scan(decay: Any, update: Any, memory: Any, axis: str | None) -> Any:
    """All in one: (B, H, N+1, ...), first what this part starts from."""
    decays, states = _scan_part(decay, update)
    before = _handed(decays[:, :, -1], states[:, :, -1], memory, axis)[:, :, None]
    return jnp.concat([before, states + decays * before], axis=2)


def _scan_part(decay: Any, update: Any, reverse: bool = False) -> tuple[Any, Any]:
    """The map m -> decay m + update of all tokens up to each, as such a pair."""

    def then(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    found: Any = jax.lax.associative_scan(then, (decay, update), reverse, axis=2)
    return found


def _handed(decay: Any, update: Any, start: Any, axis: str | None, reverse: bool = False) -> Any:
    """What this part starts from, if each part maps m to decay m + update."""
    if axis is None:
        return start
    decays, updates = (jax.lax.all_gather(x, axis) for x in (decay, update))
    count, here = decays.shape[0], jax.lax.axis_index(axis)
    handed = carried = start
    for part in reversed(range(count)) if reverse else range(count):
        handed = jnp.where(part == here, carried, handed)
        carried = decays[part] * carried + updates[part]
    return handed


def _forward(decay: Any, update: Any, memory: Any, axis: str | None) -> Any:
    every = _scan(decay, update, memory, axis)
    return every, (decay, every)


def _backward(axis: str | None, kept: Any, gradient: Any) -> Any:
    """Back through a token the gradient g of its state becomes decay g; to it comes what the state
    before it has of its own."""
    decay, every = kept
    own = gradient[:, :, :-1]
    # From the last token: back[t] = decay[t] (back[t+1] + gradient[t+1]), of the state before t.
    decays, back = _scan_part(decay, decay * gradient[:, :, 1:], reverse=True)
    after = jnp.zeros_like(every[:, :, 0])
    handed = _handed(decays[:, :, 0], back[:, :, 0] + own[:, :, 0], after, axis, reverse=True)
    back = back + decays * handed[:, :, None]
    states = gradient[:, :, 1:] + jnp.concat([back[:, :, 1:], handed[:, :, None]], axis=2)
    of_decay = states * every[:, :, :-1]
    extra = tuple(i for i, n in enumerate(decay.shape) if n < of_decay.shape[i])
    start = back[:, :, 0] + own[:, :, 0]
    if axis is not None:
        start = jnp.where(jax.lax.axis_index(axis) == 0, start, 0)
    return jnp.sum(of_decay, axis=extra, keepdims=True), states, start


_scan.defvjp(_forward, _backward)
