"""The model's function: the same in every array library and form, causal, and bounded."""

from __future__ import annotations

import math

import array_api_compat.numpy as np_xp
import array_api_compat.torch as torch_xp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from specs import SMALL, noisy_weights

from tsm.export.tolerance import check
from tsm.training import model
from tsm.training.mixers import topological
from tsm.training.spec import (
    PRESETS,
    ModelSpec,
    SpecError,
    check_weights,
    parameter_count,
    state_shapes,
    weights,
)

SPEC = SMALL
LENGTH = 75  # two whole chunks of 32 and a tail


@pytest.fixture(scope="module")
def values() -> dict[str, np.ndarray]:
    return noisy_weights(SPEC)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (2, LENGTH))


def in_numpy(values, tokens, state=None):
    state = state or model.initial_state(np_xp, SPEC, len(tokens))
    return model.forward(np_xp, SPEC, values, tokens, state)


def in_torch(values, tokens, state=None):
    state = state or model.initial_state(np_xp, SPEC, len(tokens))
    state = {n: torch.from_numpy(s) for n, s in state.items()}
    values = {n: torch.from_numpy(v) for n, v in values.items()}
    logits, state = model.forward(torch_xp, SPEC, values, torch.from_numpy(tokens), state)
    return logits.numpy(), {n: s.numpy() for n, s in state.items()}


def in_jax(values, tokens, state=None):
    state = state or model.initial_state(np_xp, SPEC, len(tokens))
    run = jax.jit(lambda v, t, s: model.forward(jnp, SPEC, v, t, s))
    logits, state = run(values, tokens, state)
    return np.asarray(logits), {n: np.asarray(s) for n, s in state.items()}


BACKENDS = {"numpy": in_numpy, "torch": in_torch, "jax": in_jax}


def by_steps(values, tokens, backend=in_numpy):
    state, rows = None, []
    for t in range(tokens.shape[1]):
        logits, state = backend(values, tokens[:, t : t + 1], state)
        rows.append(logits)
    return np.concatenate(rows, axis=1), state


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_array_libraries_agree(values, tokens, backend):
    wanted, wanted_state = in_numpy(values, tokens)
    found, found_state = BACKENDS[backend](values, tokens)
    check("libraries", found, wanted)
    for name in wanted_state:
        check("libraries", found_state[name], wanted_state[name])


def test_gradients_agree(values, tokens):
    def jax_loss(v):
        state = model.initial_state(jnp, SPEC, 2)
        logits, _ = model.forward(jnp, SPEC, v, tokens[:, :-1], state)
        return model.loss(jnp, logits, jnp.asarray(tokens[:, 1:])).mean()

    wanted = jax.jit(jax.grad(jax_loss))(values)
    leaves = {n: torch.from_numpy(v).requires_grad_() for n, v in values.items()}
    state = model.initial_state(torch_xp, SPEC, 2)
    inputs = torch.from_numpy(tokens)
    logits, _ = model.forward(torch_xp, SPEC, leaves, inputs[:, :-1], state)
    model.loss(torch_xp, logits, inputs[:, 1:]).mean().backward()
    for name, leaf in leaves.items():
        check("gradients", leaf.grad.numpy(), np.asarray(wanted[name]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_chunked_form_is_the_step_form(values, tokens, backend):
    wanted, wanted_state = by_steps(values, tokens)
    found, found_state = BACKENDS[backend](values, tokens)
    check("forms", found, wanted)
    for name in wanted_state:
        check("forms", found_state[name], wanted_state[name])


def test_step_form_is_the_equation(values, tokens):
    """S_t = cos(rho) T S + sin(rho) key (x) value with NumPy's own complex numbers."""
    random = np.random.default_rng(3)
    shape = (2, SPEC.heads, LENGTH)
    query, key = (random.standard_normal((*shape, SPEC.key_width)) for _ in range(2))
    value = random.standard_normal((*shape, SPEC.value_width))
    delta = random.uniform(-math.pi, math.pi, shape)
    chi = random.uniform(-math.pi / 4, math.pi / 4, shape)
    radius = random.uniform(0, math.pi / 2, shape)
    memory = np.zeros((2, SPEC.heads, SPEC.key_width, SPEC.value_width), complex)
    reads = []
    for t in range(LENGTH):
        turn = np.cos(delta[..., t] / 2) + 1j * np.sin(delta[..., t] / 2) * np.sin(2 * chi[..., t])
        kept = np.cos(radius[..., t]) * turn
        written = np.einsum("bhk,bhv->bhkv", key[:, :, t], value[:, :, t])
        memory = kept[..., None, None] * memory + np.sin(radius[..., t])[..., None, None] * written
        reads.append(np.einsum("bhk,bhkv->bhv", query[:, :, t], memory))
    wanted = np.stack(reads, axis=2)
    empty = np.zeros((2, SPEC.heads, SPEC.key_width, 2 * SPEC.value_width))
    found, last = topological.chunked_form(
        np_xp, query, key, value, delta, chi, radius, empty, chunk=16
    )
    check("forms", found, np.concatenate([wanted.real, wanted.imag], axis=-1))
    check("forms", last, np.concatenate([memory.real, memory.imag], axis=-1))


@pytest.mark.parametrize("chunk", [1, 7, 16, LENGTH, 1000])
def test_chunk_length_does_not_change_the_function(values, tokens, chunk):
    state = model.initial_state(np_xp, SPEC, 2)
    found, _ = model.forward(np_xp, SPEC.replace(chunk=chunk), values, tokens, state)
    check("forms", found, in_numpy(values, tokens)[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("position", [0, 31, 32, 40, LENGTH - 1])
def test_no_logit_sees_a_later_byte(values, tokens, backend, position):
    changed = tokens.copy()
    changed[:, position] = (changed[:, position] + 128) % 256
    before, _ = BACKENDS[backend](values, tokens)
    after, _ = BACKENDS[backend](values, changed)
    assert np.array_equal(before[:, :position], after[:, :position])
    assert not np.array_equal(before[:, position:], after[:, position:])


def test_the_past_reaches_across_chunks(values, tokens):
    changed = tokens.copy()
    changed[:, 0] = (changed[:, 0] + 128) % 256
    difference = in_numpy(values, tokens)[0] - in_numpy(values, changed)[0]
    assert np.abs(difference[:, -1]).max() > 1e-6  # 74 bytes later: over two chunks


def test_transmission_stays_in_the_unit_disk():
    delta, chi = np.meshgrid(
        np.linspace(-math.pi, math.pi, 101), np.linspace(-math.pi / 4, math.pi / 4, 101)
    )
    real, imaginary = topological.poincare(np_xp, delta, chi)
    assert np.hypot(real, imaginary).max() <= 1 + 1e-12
    assert np.allclose(np.hypot(real, imaginary)[[0, -1]], 1)  # |chi| = pi/4: a pure rotation


def test_extreme_angles_stay_finite(values, tokens):
    """Saturated squashings (T = 0, cos(radius) = 0) in the form that takes a logarithm."""
    wild = {n: v * (1000 if "encoder" in n else 1) for n, v in values.items()}
    logits, state = in_numpy(wild, tokens)
    assert np.isfinite(logits).all() and np.isfinite(state["memory"]).all()


def test_reference_shape():
    spec = PRESETS["shakespeare"]
    for name in ("shakespeare", "matrix", "hybrid"):
        assert abs(parameter_count(PRESETS[name]) - 13_600_000) <= 100_000, name
    assert 4 * parameter_count(spec) + 65_536 <= 56_000_000  # fp32 file, header included
    made = model.initialise(SPEC, 0)
    check_weights(SPEC, made, "initialise")
    assert parameter_count(SPEC) == sum(v.size for v in made.values())
    assert {n: v.shape for n, v in model.initial_state(np_xp, SPEC, 3).items()} == state_shapes(
        SPEC, 3
    )


def test_initialisation_depends_on_seed_and_name_alone():
    one, same, other = (model.initialise(SPEC, seed) for seed in (0, 0, 1))
    wider = model.initialise(SPEC.replace(layers=3), 0)
    for name in one:
        assert np.array_equal(one[name], same[name])
        assert np.array_equal(one[name], wider[name])
    assert not np.array_equal(one["embed"], other["embed"])


def test_every_weight_names_its_axes():
    for name, weight in weights(SPEC).items():
        assert len(weight.axes) == len(weight.shape), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "wanted an object"),
        ('{"width": 3, "depth": 2}', "wanted only"),
        (SMALL.to_json().replace('"layers"', '"lairs"'), "lairs"),
        (SMALL.to_json().replace('"layers": 2', '"layers": 0'), "layers is 0"),
        (SMALL.to_json().replace('"layers": 2', '"layers": "2"'), "layers is '2'"),
        (SMALL.to_json().replace("topological", "tropical"), "mixer is 'tropical'"),
    ],
)
def test_a_bad_spec_is_refused(text, message):
    with pytest.raises(SpecError, match=".*".join(map(str, [message.replace("'", ".")]))):
        ModelSpec.from_json(text)


def test_a_spec_survives_its_file():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC
    assert ModelSpec.from_json("{}") == ModelSpec()  # of a version that knew fewer keys


def test_wrong_weights_are_named():
    made = model.initialise(SPEC, 0)
    lacking = {n: v for n, v in made.items() if n != "blocks.1.mlp.out"}
    with pytest.raises(SpecError, match=r"19 weights, spec wants 20 \(missing blocks.1.mlp.out\)"):
        check_weights(SPEC, lacking, "model.safetensors")
    with pytest.raises(SpecError, match="unknown extra"):
        check_weights(SPEC, {**made, "extra": made["head"]}, "model.safetensors")
    with pytest.raises(SpecError, match=r"head has shape \(3, 3\)"):
        check_weights(SPEC, {**made, "head": np.zeros((3, 3))}, "model.safetensors")
