"""The addressed beam splitter alone: what it remembers, that it stays bounded, and its solver."""

from __future__ import annotations

import array_api_compat.numpy as np_xp
import numpy as np
import pytest

from tsm.training.mixers.addressed import chunked_form, step_form, unit_lower_inverse


def steps(keys, values, gain, coupling, decay, memory):
    """(L, K) keys and so on through the step form, one head; the memory after each token."""
    shape = (1, 1, 1, -1)
    for k, v, g, c, a in zip(keys, values, gain, coupling, decay, strict=True):
        parts = (np.full((1, 1, 1), g.real), np.full((1, 1, 1), g.imag))
        if memory.shape[-1] == len(v):
            parts = parts[0], None
        scalars = (np.full((1, 1, 1), x) for x in (c, a))
        arguments = k.reshape(shape), k.reshape(shape), v.reshape(shape), parts, *scalars
        _, memory = step_form(np_xp, *arguments, memory=memory)
        yield memory[0, 0]


def test_a_key_gets_a_new_value_and_the_others_keep_theirs():
    keys, values = np.eye(4)[[0, 1, 2, 1]], np.arange(12.0).reshape(4, 3)
    nothing, all_of_it = np.zeros(4), np.ones(4)  # cos(rho) T = 0: what was held is taken out
    empty = np.zeros((1, 1, 4, 3))
    *_, memory = steps(keys, values, nothing, all_of_it, all_of_it, empty)
    assert np.array_equal(memory, [values[0], values[3], values[2], [0, 0, 0]])


def test_a_mode_changes_its_sign():
    keys, values = np.eye(2)[[0, 0, 0, 1]], np.ones((4, 1))
    coupling = np.array([1.0, 0, 0, 0])
    turns = np.array([0, -1, -1, -1])
    found = [
        m[0, 0] for m in steps(keys, values, turns, coupling, np.ones(4), np.zeros((1, 1, 2, 1)))
    ]
    assert found == [1, -1, 1, 1]


@pytest.mark.parametrize("turn", [0.02, 0.3, 3.1])
def test_the_memory_stays_bounded_under_keys_that_turn(turn):
    """The worst that is known: keys that turn slowly pump what they do not hold into modes beside
    them. Decay a bounds |S| by |v| / (1 - a), whatever the keys."""
    length, a = 4000, 0.99
    angles = turn * np.arange(length)
    keys = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    phase = np.exp(1j * np.random.default_rng(0).uniform(-np.pi, np.pi, length))
    rho = np.random.default_rng(1).uniform(0, np.pi / 2, length)
    empty = np.zeros((1, 1, 2, 2))
    memories = steps(
        keys, np.ones((length, 1)), np.cos(rho) * phase, np.sin(rho), [a] * length, empty
    )
    greatest = max(np.linalg.norm(memory) for memory in memories)
    assert greatest <= 1 / (1 - a)


def test_a_key_that_comes_again_and_again_loses_no_digit():
    """In fp32: the powers of this matrix would reach 1e18."""
    lower = -np.tril(np.ones((1, 64, 64), np.float32), k=-1)
    inverse = unit_lower_inverse(np_xp, lower)[0]
    assert np.array_equal(inverse, np.eye(64) - np.eye(64, k=-1))
    lower = np.tril(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 3, 16, 16)), k=-1)
    assert np.allclose(unit_lower_inverse(np_xp, lower), np.linalg.inv(np.eye(16) - lower))


def test_chunks_are_finite_where_all_is_forgotten():
    """As an encoder asks for it that is far out: the cosine of pi/2 in fp32."""
    ones, forgotten = np.ones((1, 1, 8), np.float32), np.cos(np.float32(np.pi / 2))
    key, memory = ones[..., None], np.ones((1, 1, 1, 1), np.float32)
    read, _ = chunked_form(
        np_xp, key, key, key, (0 * ones, None), ones, forgotten * ones, memory, chunk=8
    )
    assert forgotten < 0 and np.allclose(read, 1)


def test_chunks_are_steps_where_one_key_comes_again_and_again():
    length, random = 100, np.random.default_rng(0)
    keys = np.repeat(np.eye(3)[:1], length, axis=0)
    values, gain = random.standard_normal((length, 2)), random.uniform(-1, 1, length)
    coupling, decay = random.uniform(0, 1, length), random.uniform(0.5, 1, length)
    empty = np.zeros((1, 1, 3, 2))
    *_, wanted = steps(keys, values, gain, coupling, decay, empty)
    row = (1, 1, length)
    parts = (x.astype(np.float32) for x in (coupling.reshape(row), decay.reshape(row)))
    k, v = (x.astype(np.float32).reshape(1, 1, length, -1) for x in (keys, values))
    g = gain.astype(np.float32).reshape(row)
    _, found = chunked_form(np_xp, k, k, v, (g, None), *parts, empty.astype(np.float32), chunk=64)
    assert np.allclose(found[0, 0], wanted, atol=1e-5)
