"""What training has silenced is left out of an artifact, and nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from specs import SMALL, noisy_weights

from tsm.export import to_tflite
from tsm.export.prune import prune
from tsm.export.tolerance import check
from tsm.export.verify import PASSAGE, run_oracle
from tsm.runtime.artifact import open_artifact
from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.spec import ModelSpec, parameter_count

BEAM = SMALL.replace(mixer="beam", rotation=False, heads=4, value_width=24)
SILENT_CHANNELS, SILENT_HIDDEN = (30, 70), (50, 100)  # of the two layers' 96 and 256
SHRUNK = np.float32(1e-9)


def silenced(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Half of the silent units are not written to, the others not read from."""
    random = np.random.default_rng(5)
    made = {
        name: (value + 0.1 * random.standard_normal(value.shape)).astype(np.float32)
        for name, value in model.initialise(spec, 0).items()
    }
    for i, mixer in enumerate(spec.layer_mixers):
        units = random.permutation(spec.mlp_width)[: SILENT_HIDDEN[i]]
        made[f"blocks.{i}.mlp.in"][units[::2]] *= SHRUNK
        made[f"blocks.{i}.mlp.out"][:, units[1::2]] *= SHRUNK
        if mixer == "beam":
            inner = spec.heads * spec.value_width
            units = random.permutation(inner)[: SILENT_CHANNELS[i]]
            made[f"blocks.{i}.mixer.in"][units] *= SHRUNK
            made[f"blocks.{i}.mixer.out"][:, units[1::2]] *= SHRUNK
    return made


def same(spec: ModelSpec, weights: dict[str, np.ndarray]) -> ModelSpec:
    less, kept = prune(spec, weights)
    assert sum(w.size for w in kept.values()) == parameter_count(less)
    found, wanted = run_oracle(less, kept, PASSAGE)[0], run_oracle(spec, weights, PASSAGE)[0]
    check("pruned", found, wanted, logits=True)
    return less


def test_silent_units_are_left_out_as_far_as_every_layer_can():
    """96 - 30 = 66 channels, in sixteens 80; 256 - 50 = 206 hidden units, in eights 208."""
    less = same(BEAM, silenced(BEAM))
    assert (less.heads * less.value_width, less.mlp_width) == (80, 208)
    assert less == BEAM.replace(value_width=20, mlp_ratio=208 / 64)


def test_where_nothing_is_silent_all_stays():
    weights = noisy_weights(BEAM)
    less, kept = prune(BEAM, weights)
    assert less == BEAM
    for name, value in weights.items():
        assert np.array_equal(kept[name], value)


def test_an_untrained_model_keeps_sixteen_units():
    """Its layers write nothing: what is read from them is zeros."""
    less = same(BEAM, model.initialise(BEAM, 0))
    assert (less.heads * less.value_width, less.mlp_width) == (16, 16)


@pytest.mark.parametrize("mixer", ["topological", "beam,attention", "mingru"])
def test_other_mixers_keep_their_channels(mixer):
    spec = BEAM.replace(mixer=mixer, key_width=16)
    less = same(spec, silenced(spec))
    assert less == spec.replace(mlp_ratio=208 / 64)


def test_gpt2_is_left_as_it_is():
    spec = SMALL.replace(mixer="gpt2")
    weights = model.initialise(spec, 0)
    assert prune(spec, weights) == (spec, weights)


@pytest.mark.parametrize("quantization", ["int8", "int4", "none"])
def test_an_artifact_has_no_silent_units_unless_asked(tmp_path, capfd, quantization):
    save_model(tmp_path / "model.safetensors", BEAM, silenced(BEAM))
    found = []
    for options in ([], ["--no-prune"]):
        out = tmp_path / f"{len(options)}.tflite"
        command = [str(tmp_path / "model.safetensors"), "--quantize", quantization, "--json"]
        assert to_tflite.main([*command, "--out", str(out), *options]) == 0
        found.append(json.loads(capfd.readouterr().out))
        assert ModelSpec.from_dict(open_artifact(out).spec) == (
            BEAM if options else prune(BEAM, silenced(BEAM))[0]
        )
    less, all_of_it = found
    assert less["parameters"] < all_of_it["parameters"] == less["trained_parameters"]
    assert less["file_bytes"] < all_of_it["file_bytes"]


def test_what_is_not_silent_is_missed(tmp_path, monkeypatch, capfd):
    """By the check before an export, with a threshold that takes live units for silent ones."""
    monkeypatch.setattr("tsm.export.prune.NEGLIGIBLE", 0.25)
    save_model(tmp_path / "model.safetensors", BEAM, silenced(BEAM))
    command = [str(tmp_path / "model.safetensors"), "--out", str(tmp_path / "x.tflite")]
    assert to_tflite.main(command) == 1
    printed = capfd.readouterr().err
    assert printed.count("\n") == 1 and "--no-prune leaves no unit out" in printed
    assert not (tmp_path / "x.tflite").exists()
    assert to_tflite.main([*command, "--no-prune"]) == 0
