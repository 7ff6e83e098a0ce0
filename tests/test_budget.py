"""train.py --budget: what is chosen for a time, and what loss is expected."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tsm.training import budget, loss_law
from tsm.training.budget import Speed, choose
from tsm.training.config import RunError, TrainConfig, check
from tsm.training.data import Corpus
from tsm.training.spec import PRESETS, parameter_count

ROOT = Path(__file__).parent.parent
WORDS = ["the", "king", "a", "fool", "my", "lord", "speaks", "weeps", "laughs", "and", "but"]


def corpus_of(data: bytes) -> Corpus:
    values, split = np.frombuffer(data, np.uint8), len(data) * 9 // 10
    return Corpus("a text", Path("text"), *np.split(values, [split, len(values)]))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    random = np.random.default_rng(0)
    return corpus_of(" ".join(random.choice(WORDS, 100_000)).encode())  # half a megabyte


def chosen(corpus, monkeypatch, given, tokens_per_second, threads=None):
    """On a machine of so many tokens a second with `tiny`, larger shapes as much slower."""

    def measured(corpus, config, spec, initial, teachers, counts):
        scale = parameter_count(PRESETS["tiny"]) / parameter_count(spec)
        seconds = config.batch * config.window / (tokens_per_second * scale)
        return Speed(counts[0], 0.5, seconds, evaluation_seconds=0.5, slowness=1.0)

    monkeypatch.setattr(budget, "_measured", measured)
    return choose(corpus, given, [], threads, time.monotonic(), export=True)


@pytest.mark.parametrize("time_given", ["90s", "5m", "0.5h"])
def test_a_run_fits_its_time(corpus, monkeypatch, time_given):
    config, plan = chosen(corpus, monkeypatch, {"budget": time_given}, 20_000)
    seconds = {"90s": 90, "5m": 300, "0.5h": 1800}[time_given]
    assert plan.seconds + plan.export_seconds <= seconds
    read = config.steps * config.batch * config.window
    assert plan.seconds + plan.export_seconds > 0.85 * seconds or read > 10 * len(corpus.train)
    assert config.warmup_steps < config.steps / 4 and config.steps / config.eval_every >= 5
    assert f"{config.steps:,} steps" in plan.shown(config, len(corpus.train))


def test_more_time_and_a_faster_machine_have_a_larger_model(corpus, monkeypatch):
    sizes = [
        parameter_count(PRESETS[chosen(corpus, monkeypatch, {"budget": b}, speed)[0].preset])
        for b, speed in (("2m", 5_000), ("8h", 5_000), ("10m", 10_000_000))
    ]
    assert sizes[0] < sizes[1] and sizes[0] < sizes[2]


def test_what_is_given_stays(corpus, monkeypatch):
    given = {"budget": "5m", "preset": "small", "batch": 3, "window": 128, "steps": 30}
    config, plan = chosen(corpus, monkeypatch, given, 20_000, threads=7)
    assert given.items() <= vars(config).items() and plan.threads == 7
    assert plan.seconds < 60


def test_too_short_a_time_says_what_is_wanted(corpus, monkeypatch):
    with pytest.raises(RunError, match=r"--budget 5s: wanted 1\ds or more"):
        chosen(corpus, monkeypatch, {"budget": "5s"}, 20_000)


@pytest.mark.parametrize("text", ["5", "m", "0m", "-5m", "5 minutes", "1e9s"])
def test_no_time_is_one_line(text):
    with pytest.raises(RunError, match="wanted a time such as 90s, 30m, 8h"):
        check(TrainConfig(budget=text))


def test_the_ngram_loss_is_that_of_witten_and_bell():
    """Against their recursion, written with dictionaries."""
    data = b"abracadabra, said the magician; abracadabra! " * 3 + b"cadabrac and a zebra"
    corpus = corpus_of(data)
    text, held_out = bytes(corpus.train), bytes(corpus.validation)
    order, nats = loss_law.ORDER, []

    def chance(context: bytes, byte: int) -> float:
        shorter = chance(context[1:], byte) if context else 1 / 256
        begins = range(order - len(context), len(text) - len(context))
        after = [text[i + len(context)] for i in begins if text[i:].startswith(context)]
        kinds = len(set(after))
        if not after:
            return shorter
        return (after.count(byte) + kinds * shorter) / (len(after) + kinds)

    for i in range(order, len(held_out)):
        nats.append(-math.log(chance(held_out[i - order : i], held_out[i])))
    assert loss_law.ngram_loss(corpus) == pytest.approx(np.mean(nats), rel=1e-9)


def test_a_text_read_again_is_worth_less_than_a_new_one():
    worths = [loss_law.worth(1000, tokens) for tokens in (1000, 2000, 20_000, 200_000)]
    assert 900 < worths[0] < 1000 and worths[1] < 2000 and worths[3] - worths[2] < 500
    assert worths == sorted(worths)


def test_the_law_is_the_fit_to_the_runs_and_within_a_quarter_of_each(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    spec = importlib.util.spec_from_file_location("fit", ROOT / "benchmarks/loss_law.py")
    assert spec and spec.loader
    fit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fit)
    rows = fit.read(fit.RESULTS)
    law = loss_law.SCALE, loss_law.TOKENS, loss_law.PARAMETERS
    assert fit.fit(rows) == pytest.approx(law, abs=0.001)
    assert len(rows) >= 10
    for row in rows:
        assert 0.8 < fit.expected(row, *law) / row["nats_per_byte"] < 1.25, row
    sys.modules.pop("results", None)


def test_a_run_with_a_budget_says_what_to_expect_and_goes_on_by_its_plan(tmp_path):
    (tmp_path / "text").write_bytes(b" ".join(w.encode() for w in WORDS * 120))
    out = tmp_path / "run"
    command = [sys.executable, str(ROOT / "training/train.py"), "--data", str(tmp_path / "text")]
    command += ["--out", str(out), "--budget", "5m", "--preset", "tiny", "--window", "64"]
    command += ["--checkpoint-every", "10", "--patience", "0", "--no-export"]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoint.safetensors").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.kill()
    planned = re.search(r"planned: .+", first.communicate()[1])
    assert planned
    steps = re.search(
        r"planned: tiny, (\d+) steps of 4 x 64 bytes at [\d,]+ a second, "
        r"11.\d epochs: [\dms ]+ in all, about [\d.]+ nats/byte on held-out text",
        planned[0],
    )
    assert steps
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert planned[0] in second.stderr and "took " in second.stderr
    record = json.loads((out / "model.json").read_text())
    assert record["config"]["steps"] == int(steps[1]) and record["plan"]["seconds"] > 0
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == int(steps[1])
    assert "<h2>Planned, and what came</h2>" in (out / "report.html").read_text()
