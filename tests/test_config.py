"""The settings of a training that follow from its text and from what is given."""

from __future__ import annotations

import pytest

from tsm.runtime.engines.native import computes
from tsm.training.config import RunError, TrainConfig, check, for_text, spec_of
from tsm.training.spec import PRESETS, parameter_count
from tsm.training.threads import default_threads


@pytest.mark.parametrize(
    ("size", "preset", "steps"),
    [(3_000, "tiny", 100), (58_000, "tiny", 623), (300_000, "small", 1611)]
    + [(1_115_394, "shakespeare", 2995), (10**9, "shakespeare", 3000)],
)
def test_a_larger_text_has_a_larger_model_and_more_steps(size, preset, steps):
    config = for_text(size, {})
    check(config)
    assert (config.preset, config.steps) == (preset, steps)
    assert config.warmup_steps < steps / 4 and steps // config.eval_every >= 5


def test_what_is_given_stays():
    given = {"preset": "medium", "batch": 3, "steps": 2000, "warmup_steps": 0, "eval_every": 7}
    config = for_text(58_000, given)
    assert given.items() <= vars(config).items()
    assert for_text(58_000, {"start": "x", "adam_learning_rate": 0.1}).adam_learning_rate == 0.1


def test_the_presets_of_a_large_text_have_long_windows():
    for name in ("enwik8", "attention", "mingru"):
        config = for_text(10**8, {"preset": name})
        check(config)
        assert (config.window, config.weight_decay) == (1024, 0.1)
        assert abs(parameter_count(PRESETS[name]) - 13_600_000) <= 100_000
        assert for_text(10**8, {"preset": name, "window": 256}).window == 256


def test_fine_tuning_is_short_and_gentle_and_keeps_the_shape():
    config, fresh = for_text(58_000, {"start": "x"}), for_text(58_000, {})
    assert config.steps < fresh.steps and config.muon_learning_rate < fresh.muon_learning_rate
    assert spec_of(config, PRESETS["hybrid"]) == PRESETS["hybrid"]
    with pytest.raises(RunError, match="x: its layers is 6, the options want 5"):
        spec_of(TrainConfig(preset="", start="x", layers=5), PRESETS["shakespeare"])


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("tiny", 0.27), ("small", 1.05), ("medium", 3.16), ("shakespeare", 13.63), ("memory", 13.64)],
)
def test_presets_run_in_the_c_engine(name, parameters):
    assert parameter_count(PRESETS[name]) / 1e6 == pytest.approx(parameters, abs=0.01)
    assert computes(PRESETS[name].to_dict(), "int8")


def test_the_shape_of_an_addressed_memory_is_one_that_the_c_engine_computes():
    spec = spec_of(TrainConfig(preset="memory", width=128, channels=320))
    assert spec.value_width == 32 and computes(spec.to_dict(), "int4")
    with pytest.raises(RunError, match="--channels 200: wanted a multiple of 160"):
        spec_of(TrainConfig(preset="memory", channels=200))


def test_one_thread_for_a_tiny_model(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(16), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert default_threads(PRESETS["tiny"]) == 1
    assert default_threads(PRESETS["small"]) == 2
    assert default_threads(PRESETS["shakespeare"]) == 16
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert default_threads(PRESETS["tiny"]) == 3
