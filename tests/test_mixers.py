"""Every mixer in the block: the same function in each form and library, and causal; each baseline
against a plain form of its own definition."""

from __future__ import annotations

import array_api_compat.numpy as np_xp
import array_api_compat.torch as torch_xp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from specs import SMALL, noisy_weights

from tsm.export import to_onnx, to_tflite
from tsm.export.tolerance import check
from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.kernels import torch_scan
from tsm.training.mixers import attention, performer, primitives
from tsm.training.spec import MIXERS, PRESETS, SpecError, parameter_count

BASE = SMALL.replace(context=64)
CAUSAL = {name: BASE.replace(mixer=name) for name in MIXERS if name != "seed-leaking"} | {
    "no rotation": BASE.replace(rotation=False),
    "beam, no rotation": BASE.replace(mixer="beam", rotation=False),
    "no coupling": BASE.replace(coupling=False),
    "no short convolution": BASE.replace(short=False),
    "stride": BASE.replace(stride=4),
    "addressed, no rotation": BASE.replace(mixer="addressed", rotation=False),
    "GPT-2": BASE.replace(mixer="gpt2"),
    "hybrid": BASE.replace(mixer="beam,attention", rotation=False, context=16),
}
LENGTH = 75  # past the context, and no whole number of chunks or blocks
PLACE = 42  # of the byte that changes: within a chunk, a block and a stride


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (2, LENGTH))


def in_numpy(spec, tokens, state=None, cached=None):
    state = state or model.initial_state(np_xp, spec, len(tokens), cached)
    return model.forward(np_xp, spec, noisy_weights(spec), tokens, state)


def in_torch(spec, tokens):
    values = {n: torch.from_numpy(v) for n, v in noisy_weights(spec).items()}
    state = model.initial_state(torch_xp, spec, len(tokens))
    logits, _ = model.forward(torch_xp, spec, values, torch.from_numpy(tokens), state)
    return logits.numpy()


def in_jax(spec, tokens):
    state = model.initial_state(jnp, spec, len(tokens))
    run = jax.jit(lambda v, t, s: model.forward(jnp, spec, v, t, s)[0])
    return np.asarray(run(noisy_weights(spec), tokens, state))


@pytest.mark.parametrize("name", CAUSAL)
def test_pieces_of_any_length_are_the_whole(name, tokens):
    spec = CAUSAL[name]
    wanted, wanted_state = in_numpy(spec, tokens)
    for cuts in (list(range(LENGTH + 1)), [0, 30, 37, 38, LENGTH]):
        state, rows = None, []
        for start, end in zip(cuts, cuts[1:], strict=False):
            logits, state = in_numpy(spec, tokens[:, start:end], state)
            rows.append(logits)
        check("forms", np.concatenate(rows, axis=1), wanted)
        for part in wanted_state:
            check("forms", state[part], wanted_state[part])
    check("forms", in_numpy(spec, tokens, cached=0)[0], wanted)  # as training calls it


@pytest.mark.parametrize("name", [*CAUSAL, "seed-leaking"])
@pytest.mark.parametrize("backend", [in_torch, in_jax])
def test_array_libraries_agree(name, backend, tokens):
    spec = CAUSAL.get(name) or BASE.replace(mixer=name)
    check("libraries", backend(spec, tokens), in_numpy(spec, tokens)[0])


def difference(spec, tokens, backend):
    changed = tokens.copy()
    changed[:, PLACE] = (changed[:, PLACE] + 128) % 256
    return np.abs(backend(spec, changed) - backend(spec, tokens)).max(axis=(0, 2))


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize("backend", [lambda s, t: in_numpy(s, t)[0], in_torch, in_jax])
def test_no_logit_sees_a_later_byte(name, backend, tokens):
    moved = difference(CAUSAL[name], tokens, backend)
    assert not moved[:PLACE].any() and moved[PLACE:].any()


def test_the_original_mixer_leaks(tokens):
    """The specimen: a byte moves the logits of bytes before it, back to where its chunk starts."""
    spec = BASE.replace(mixer="seed-leaking")
    moved = difference(spec, tokens, lambda s, t: in_numpy(s, t)[0])
    start = PLACE // spec.compression * spec.compression
    assert start < PLACE and moved[start:PLACE].all() and not moved[:start].any()


def test_nothing_crosses_a_chunk_in_the_original_mixer(tokens):
    """No recurrence: a byte reaches its own chunk alone, however many layers there are."""
    spec = BASE.replace(mixer="seed-leaking")
    moved = difference(spec, tokens, lambda s, t: in_numpy(s, t)[0])
    assert not moved[(PLACE // spec.compression + 1) * spec.compression :].any()


@pytest.mark.parametrize("name", CAUSAL)
def test_every_weight_learns(name, tokens):
    spec = CAUSAL[name]
    values = {n: torch.from_numpy(v).requires_grad_() for n, v in noisy_weights(spec).items()}
    state = model.initial_state(torch_xp, spec, len(tokens), cached=0)
    inputs = torch.from_numpy(tokens)
    logits, _ = model.forward(torch_xp, spec, values, inputs[:, :-1], state)
    model.loss(torch_xp, logits, inputs[:, 1:]).mean().backward()
    for weight, value in values.items():
        assert value.grad is not None and torch.isfinite(value.grad).all(), weight
        assert value.grad.abs().max() > 0, weight


# LiteRT's builtin kernels compute the form without rotation otherwise than XNNPACK and the oracle
# (2.3.0): the exporter refuses it. TensorFlow Lite has no products of complex matrices.
EXPORTED = [
    (name, suffix)
    for name in CAUSAL
    for suffix in (".tflite", ".onnx")
    if name not in ("topological", "no coupling", "no short convolution")
    and (name, suffix) not in (("no rotation", ".tflite"), ("addressed", ".tflite"))
]


@pytest.mark.parametrize(("name", "suffix"), EXPORTED)
def test_every_mixer_becomes_an_artifact(name, suffix, tmp_path):
    """Verified against the oracle by the exporter itself, which else writes nothing."""
    spec, path = CAUSAL[name], tmp_path / "model.safetensors"
    save_model(path, spec, noisy_weights(spec))
    out = tmp_path / f"model{suffix}"
    main = to_tflite.main if suffix == ".tflite" else to_onnx.main
    assert main([str(path), "--quantize", "none", "--out", str(out)]) == 0
    assert out.exists()


def test_attention_is_pytorch_s(tokens):
    spec = BASE.replace(mixer="attention", context=1000)
    values = {n: torch.from_numpy(v) for n, v in noisy_weights(spec).items()}
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((2, LENGTH, spec.width)))
    x, name = x.float(), "blocks.0.mixer"
    state = {"keys": (2, 2, 0, 16), "values": (2, 2, 0, 32), "valid": (2, 0)}
    empty = {n: torch.zeros(shape) for n, shape in state.items()}
    found, _ = attention.attention(torch_xp, spec, values, name, x, empty)
    fused = spec.replace(fused=True)
    wanted, _ = attention.attention(torch_xp, fused, values, name, x, empty)
    assert not np.array_equal(found, wanted)  # another kernel computed it
    check("forms", found.numpy(), wanted.numpy())


def test_rotary_scores_depend_on_distance_alone():
    random = np.random.default_rng(3)
    query, key = (np.tile(random.standard_normal((1, 1, 1, 16)), (1, 1, 40, 1)) for _ in range(2))
    scores = attention.rotate(np_xp, query, 3) @ attention.rotate(np_xp, key, 3).swapaxes(-1, -2)
    for distance in (0, 1, 17):
        band = np.diagonal(scores[0, 0], -distance)
        assert np.ptp(band) < 1e-5
    assert np.ptp(scores) > 1


def test_pytorch_s_own_scan_is_the_plain_one():
    random = np.random.default_rng(8)
    shapes = (2, 3, 21, 1, 1), (2, 3, 21, 4, 5), (2, 3, 4, 5)
    inputs = [torch.from_numpy(random.uniform(0.2, 1, s)).requires_grad_() for s in shapes]
    wanted = primitives.scan(np_xp, *(x.detach().numpy() for x in inputs))
    for found, one in zip(torch_scan.scan(*inputs), wanted, strict=True):
        check("forms", found.detach().numpy(), one)
    assert torch.autograd.gradcheck(torch_scan.scan, inputs)


def test_performer_s_running_sums_are_the_quadratic_form():
    random = np.random.default_rng(4)
    query, key = (np.abs(random.standard_normal((2, 3, 64, 8))) for _ in range(2))
    value = random.standard_normal((2, 3, 64, 5))
    sums = random.standard_normal((2, 3, 8, 5))
    found, last = performer.running_sums(np_xp, query, key, value, sums, chunk=16)
    causal = np.tril(query @ key.swapaxes(-1, -2))
    check("forms", found, causal @ value + query @ sums)
    check("forms", last, sums + key.swapaxes(-1, -2) @ value)


def test_performer_s_features_approximate_softmax():
    """Their products have the mean exp(q.k / sqrt(K)): the error falls with their number."""
    random = np.random.default_rng(5)
    draw = lambda: 0.5 * random.standard_normal((1, 1, 200, 16)).astype(np.float32)  # noqa: E731
    query, key = draw(), draw()
    wanted = np.exp(query @ key.swapaxes(-1, -2) / 4)
    errors = [
        np.abs(
            performer.features(np_xp, query, m)
            @ performer.features(np_xp, key, m).swapaxes(-1, -2)
            / wanted
            - 1
        ).mean()
        for m in (32, 512, 8192)
    ]
    assert errors[0] > 2 * errors[1] > 4 * errors[2] and errors[2] < 0.05


@pytest.mark.parametrize("rotation", [False, True])
def test_beam_is_its_equation(rotation):
    """Channel by channel, in complex numbers."""
    spec = BASE.replace(mixer="beam", rotation=rotation)
    values, name = noisy_weights(spec), "blocks.0.mixer"
    x = np.random.default_rng(8).standard_normal((1, LENGTH, spec.width)).astype(np.float32)
    state = model.initial_state(np_xp, spec.replace(layers=1), 1)
    found, _ = MIXERS["beam"].forward(
        np_xp, spec, values, name, x, {n: s[0] for n, s in state.items()}
    )
    padded = np.concatenate([np.zeros((3, spec.width)), x[0]])
    transmission = np.ones(64, complex)
    if rotation:
        delta = np.pi * np.tanh(values[f"{name}.delta"])
        chi = np.pi / 4 * np.tanh(values[f"{name}.chi"])
        transmission = np.cos(delta / 2) + 1j * np.sin(delta / 2) * np.sin(2 * chi)
    channels, rows = np.zeros(64, complex), []
    for t in range(LENGTH):
        mixed = x[0, t] + (padded[t : t + 4] * values[f"{name}.short"]).sum(axis=0)
        value, radius, gate = np.split(values[f"{name}.in"] @ mixed, [64, 128])
        radius = np.pi / 2 / (1 + np.exp(-radius - values[f"{name}.radius"]))
        channels = np.cos(radius) * transmission * channels + np.sin(radius) * value
        read = np.concatenate([channels.real, channels.imag]) if rotation else channels.real
        read = read / np.sqrt((read**2).mean() + 1e-6) * gate / (1 + np.exp(-gate))
        rows.append(values[f"{name}.out"] @ read)
    check("forms", found[0], np.stack(rows))


def test_mingru_is_its_equation(tokens):
    spec = BASE.replace(mixer="mingru")
    values, name = noisy_weights(spec), "blocks.0.mixer"
    x = np.random.default_rng(6).standard_normal((1, LENGTH, spec.width)).astype(np.float32)
    state = {"hidden": np.zeros((1, 64), np.float32), "history": np.zeros((1, 3, 64), np.float32)}
    found, _ = MIXERS["mingru"].forward(np_xp, spec, values, name, x, state)
    padded = np.concatenate([state["history"], x], axis=1)
    taps = values[f"{name}.short"]
    hidden, rows = np.zeros(64), []
    for t in range(LENGTH):
        mixed = x[0, t] + (padded[0, t : t + 4] * taps).sum(axis=0)
        update, candidate, gate = np.split(values[f"{name}.in"] @ mixed, 3)
        update = 1 / (1 + np.exp(-update - values[f"{name}.bias"]))
        hidden = (1 - update) * hidden + update * candidate
        read = hidden / np.sqrt((hidden**2).mean() + 1e-6) * gate / (1 + np.exp(-gate))
        rows.append(values[f"{name}.out"] @ read)
    check("forms", found[0], np.stack(rows))


def test_linformer_attends_as_it_says(tokens):
    """Token by token: its own block up to itself, and the compressed blocks before it."""
    spec = BASE.replace(mixer="linformer")
    values, name, block = noisy_weights(spec), "blocks.0.mixer", spec.switches["linformer_block"]
    x = np.random.default_rng(7).standard_normal((1, LENGTH, spec.width)).astype(np.float32)
    state = model.initial_state(np_xp, spec.replace(layers=1), 1)
    own = {n: s[0] for n, s in state.items()}
    found, _ = MIXERS["linformer"].forward(np_xp, spec, values, name, x, own)
    query, key, value = attention.project(np_xp, spec, values, name, x)
    rows = []
    for t in range(LENGTH):
        heads, first = [], t // block * block
        for h in range(spec.heads):
            logits, reads = [], []
            for s in range(first, t + 1):
                bias = values[f"{name}.bias.token"][h, t - s]
                logits.append(query[0, h, t] @ key[0, h, s] / 4 + bias)
                reads.append(value[0, h, s])
            table = values[f"{name}.bias.slot"][h]
            for back in range(1, min(len(table), t // block) + 1):
                part = slice(first - back * block, first - (back - 1) * block)
                compress = values[f"{name}.compress"][h]
                slots = compress @ key[0, h, part]
                slots = slots / np.sqrt((slots**2).mean(axis=-1, keepdims=True) + 1e-6)
                logits += list(slots @ query[0, h, t] / 4 + table[back - 1])
                reads += list(compress @ value[0, h, part])
            mass = np.exp(logits)
            heads.append(mass @ np.stack(reads) / mass.sum())
        rows.append(values[f"{name}.out"] @ np.concatenate(heads))
    check("forms", found[0], np.stack(rows))


def test_gpt2_small_has_its_124_million_parameters():
    assert parameter_count(PRESETS["gpt2-small"]) == 124_439_808


def test_a_layer_each():
    with pytest.raises(SpecError, match="3 mixers, wanted 1 or 2"):
        BASE.replace(mixer="topological,attention,attention")
    with pytest.raises(SpecError, match="mixer is 'convolution'"):
        BASE.replace(mixer="topological,convolution")
    assert BASE.replace(mixer="topological,attention").layer_mixers == ["topological", "attention"]
