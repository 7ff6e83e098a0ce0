"""The benchmarks' own arithmetic, and that docs/comparison.md is what the results say."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import comparison  # noqa: E402
import cost  # noqa: E402
import quality  # noqa: E402
import recall  # noqa: E402
from results import append, read  # noqa: E402

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
    config = replace(recall.CONFIG, steps=2, batch=1, compiled=False)
    wanted = Namespace(tasks=["mqar"], mixers=["mingru"], seeds=[0, 1], distances=[16], examples=1)
    waiting = list(recall._waiting([], wanted, config))
    assert [config.seed for _, _, config in waiting] == [0, 1]
    found = json.loads(json.dumps(recall.measure(*waiting[0], [16], 1)))
    assert list(recall._waiting([found], wanted, config)) == waiting[1:]
    (row,) = found["rows"]
    assert row["distance"] == 16 and f"({row['byte_accuracy']:.2f})" in recall.table([found])
    assert "1, 1 diverged" in recall.table([found | {"rows": []}])


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


def test_out_of_memory_is_shown_and_not_fitted():
    results = [
        {"kind": "train", "system": "TSM", "length": n, "seconds": n / 100, "peak_bytes": n}
        for n in (1024, 4096)
    ]
    results.append({"kind": "train", "system": "TSM", "length": 16384, "failed": "MemoryError"})
    row = next(line for line in cost.table(results).splitlines() if line.startswith("| TSM"))
    assert row == "| TSM | 100 (0.0) | 100 (0.0) | out of memory | 1.00 |"
