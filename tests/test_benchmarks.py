"""The benchmarks' own arithmetic, and that docs/comparison.md is what the results say."""

from __future__ import annotations

import functools
import json
import random
import sys
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import comparison  # noqa: E402
import cost  # noqa: E402
import logs  # noqa: E402
import quality  # noqa: E402
import recall  # noqa: E402
import schedules  # noqa: E402
import service_log  # noqa: E402
from results import append, read  # noqa: E402

from tsm.training import engine_jax, model  # noqa: E402
from tsm.training.data import Corpus  # noqa: E402
from tsm.training.run import advance, fresh, scheduled  # noqa: E402
from tsm.training.spec import parameter_count  # noqa: E402


def test_the_exponent_is_that_of_a_power():
    assert cost.exponent([(n, 3 * n**1.5) for n in (256, 1024, 4096)]) == pytest.approx(1.5)


def test_systems_have_equal_parameters():
    for systems, base in ((quality.SPECS, quality.BASE), (cost.SYSTEMS, cost.BASE)):
        for name, spec in systems.items():
            if "124M" not in name:
                ratio = parameter_count(spec) / parameter_count(base)
                assert 0.97 < ratio < 1.03, name


def test_recall_compares_equal_parameters_and_goes_on():
    base = parameter_count(recall.MIXERS["topological"])
    for mixer, spec in recall.MIXERS.items():
        assert 0.97 < parameter_count(spec) / base < 1.03, mixer
    config = replace(recall.CONFIG, steps=2, batch=1)
    wanted = Namespace(
        tasks=["mqar"],
        seeds=[0, 1],
        rates=[0.02],
        distances=[16],
        examples=1,
        width=128,
        head=None,
        answers=False,
    )
    waiting = list(recall._waiting([], wanted, "mingru", config))
    assert [config.seed for _, config in waiting] == [0, 1]
    found = list(recall.measure("mingru", waiting, wanted))
    found = json.loads(json.dumps(found))
    assert [len(result["curve"]) for result in found] == [1, 1]
    assert not list(recall._waiting(found, wanted, "mingru", config))
    assert list(recall._waiting(found[:1], wanted, "mingru", config)) == waiting[1:]
    (row,) = found[0]["rows"]
    assert row["distance"] == 16
    right = [row["byte_accuracy"], 0.0]  # a run that diverged has no rows
    table = recall.table([found[0], found[1] | {"rows": []}])
    assert f"| mingru, 2 steps | {np.mean(right):.2f} |" in table


def test_runs_trained_together_are_those_trained_alone():
    """By the product's own loop; and a run that diverges takes no other with it."""
    spec = recall.MIXERS["beam"]
    config = replace(
        recall.CONFIG,
        steps=3,
        batch=2,
        window=32,
        muon_learning_rate=0.02,
        adam_learning_rate=0.003,
    )
    text = np.random.default_rng(0).integers(0, 256, 1000).astype(np.uint8)
    bad = replace(config, seed=2, adam_learning_rate=np.inf)
    configs = [config, replace(config, seed=1, muon_learning_rate=0.01), bad]
    draws = [functools.partial(recall._text, text, c) for c in configs]
    together, finite, _ = recall.train(spec, configs, draws, "")
    assert finite.tolist() == [True, True, False]
    for i, config in enumerate(configs[:2]):
        engine, schedule = engine_jax.Engine(spec, 0.0, False, True), scheduled(config)
        run = fresh(engine, schedule, model.initialise(spec, config.seed))
        for _ in range(config.steps):
            advance(engine, run, schedule, config, Corpus("", Path(), text, text, text[:0]))
        for name, alone in engine.save(run.average).items():
            assert np.abs(together[name][i] - alone).max() < 2e-4, name


def test_recall_whose_answers_alone_count_is_small_and_has_a_table_of_its_own(
    tmp_path, monkeypatch
):
    out = tmp_path / "recall.jsonl"
    command = "--answers --width 32 --tasks mqar-4 --mixers mingru --seeds 0 --steps 2 --batch 1"
    command += " --window 64 --distances 16 --examples 1"
    monkeypatch.setattr(sys, "argv", ["recall.py", *command.split(), "--out", str(out)])
    assert recall.main() == 0
    (result,) = read(out)
    assert result["spec"]["heads"] == 1 and result["parameters"] < 60_000
    assert recall.main() == 0 and len(read(out)) == 1  # it is there
    assert recall.of_every_byte([result]) == []
    (row,) = result["rows"]
    wanted = f"| mqar-4 | mingru | 32 | 2 | 64 | {row['accuracy']:.2f} |"
    assert wanted in recall.answers_table([result])


def test_the_table_of_recall_has_the_best_learning_rate():
    def result(rate, seed, right):
        rows = [{"distance": d, "accuracy": 0.5, "byte_accuracy": right} for d in (16, 1024)]
        config = {"steps": 3, "muon_learning_rate": rate, "seed": seed}
        return {"task": "mqar", "mixer": "beam", "parameters": 9, "config": config, "rows": rows}

    found = [result(0.01, 0, 0.4), result(0.02, 0, 0.9), result(0.02, 1, 0.7)]
    table = recall.table(found)
    assert "| beam, 3 steps | 0.80 | 0.80 |" in table


def test_each_system_is_tuned_before_its_other_seeds_run():
    def result(rate, seed, loss):
        return {"system": "TSM", "rate": rate, "seed": seed, "nats_per_byte": loss}

    found = [result(0.01, 0, 1.9)]
    assert quality._waiting(found, "TSM") == [(0.02, 0)]
    found.append(result(0.02, 0, 2.0))
    assert quality._waiting(found, "TSM") == [(0.005, 0)]
    assert not quality._waiting(found, "no coupling")  # which takes the TSM's rate
    found.append(result(0.005, 0, 2.1))
    assert quality._waiting(found, "TSM") == [(0.01, 1), (0.01, 2)]
    assert quality._waiting(found, "no coupling", (0, 1)) == [(0.01, 0), (0.01, 1)]
    assert not quality._waiting(found, "matrix: stride 4")  # of another TSM
    found += [result(0.01, 1, 1.0), result(0.01, 2, 1.0)]
    assert not quality._waiting(found, "TSM")
    assert quality._waiting(found, "AdamW alone") == [(0.01, 0), (0.02, 0)]


def test_results_say_where_and_when(tmp_path):
    path = tmp_path / "results.jsonl"
    written = append(path, {"a": 1})
    assert read(path) == [written] and {"a", "machine", "date"} == written.keys()


def test_the_comparison_is_what_the_results_say():
    page = comparison.page(**comparison.everything())
    assert (ROOT / "docs" / "comparison.md").read_text() == page


def test_a_setting_that_came_later_leaves_results_in_the_table():
    (result, *_) = schedules.alike(read(schedules.RESULTS))
    older = {name: value for name, value in result["config"].items() if name != "teachers"}
    assert schedules.alike([{**result, "config": older}])
    assert not schedules.alike([{**result, "config": older | {"steps": 1}}])


def test_out_of_memory_is_shown_and_not_fitted():
    results = [
        {"kind": "train", "system": "TSM", "length": n, "seconds": n / 100, "peak_bytes": n}
        for n in (1024, 4096)
    ]
    results.append({"kind": "train", "system": "TSM", "length": 16384, "failed": "MemoryError"})
    row = next(
        line for line in cost.table(results, "train").splitlines() if line.startswith("| TSM")
    )
    assert row == "| TSM | 100 (0) | 100 (0) | out of memory | 1.00 |"


def test_the_area_is_the_part_of_the_pairs_in_order():
    draw = random.Random(0)
    for values in (range(3), range(100)):
        positive = [draw.choice(values) + 0.1 * draw.choice(values) for _ in range(50)]
        negative = [draw.choice(values) for _ in range(70)]
        pairs = [(a > b) + (a == b) / 2 for a in positive for b in negative]
        assert logs.area(positive, negative) == pytest.approx(np.mean(pairs))


def test_faults_of_a_log_are_of_every_kind_and_a_log_without_has_none():
    plain = list(islice(service_log.lines(1), 3000))
    assert plain == list(islice(service_log.lines(1), 3000))
    assert not any(step.fault for _, step in plain)
    assert 0 < sum(step.rare for _, step in plain) < 60
    odd = list(islice(service_log.lines(2, 0.5), 3000))
    counts = Counter(step.fault for _, step in odd)
    assert counts.keys() == {"", *service_log.KINDS}
    assert counts["order"] > 1.5 * counts["missing"] > counts["missing"] > 30
    assert all(b"\n" not in line for line, _ in odd)


def test_a_real_log_gets_faults_where_they_are_labelled():
    lines = [b"2026-01-01 00:00:00 step %d of job %d" % (n % 3, n) for n in range(900)]
    found = list(logs.with_faults(lines, 0.2, seed=1))
    counts = Counter(fault for _, fault in found)
    assert counts.keys() == {"", *logs.REAL_KINDS}
    normal = [line for line, fault in found if not fault]
    assert normal == sorted(normal, key=lines.index) and len(normal) > 600
    assert all(line in lines for line, fault in found if fault in ("missing", "order", "repeated"))
    assert not any(line in lines for line, fault in found if fault == "message")
