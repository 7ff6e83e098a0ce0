"""Training that begins with other models: --lora, what is forgotten, --ensemble."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_train import SETTINGS, SPEC, corpus, finish, killed_and_resumed, metrics, noisy_weights
from test_train import command as train

from tsm.training import engine_jax, engine_torch, model, tasks
from tsm.training.checkpoint import load_model, read_arrays, save_model
from tsm.training.config import RunError, TrainConfig, check
from tsm.training.corpora import sha256
from tsm.training.data import open_corpus
from tsm.training.lora import Adapters, adapter_table, merged
from tsm.training.run import Run, advance, mean_loss, original_corpus, scheduled

__all__ = ["corpus"]  # a fixture
RANK = 3


@pytest.fixture(scope="module")
def start(tmp_path_factory, corpus) -> Path:
    """A model that was trained on the corpus."""
    out = tmp_path_factory.mktemp("start") / "run"
    done = finish(train(corpus, out, "torch"))
    assert done.returncode == 0, done.stderr
    return out / "model.safetensors"


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """Another text."""
    random = np.random.default_rng(1)
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text(" ".join(random.choice(["one", "two", "three", "four", "five"], 3000)))
    return path


def test_both_engines_train_the_same_products_and_nothing_else():
    base, table = noisy_weights(), adapter_table(SPEC, RANK)
    adapters = Adapters(base, table)
    tokens = np.random.default_rng(2).integers(0, 256, (3, 65))
    results = []
    for library in (engine_torch, engine_jax):
        engine = library.Engine(SPEC, 0.0, bf16=False, compiled=False, adapters=adapters)
        plain = library.Engine(SPEC, 0.0, bf16=False, compiled=False)
        values = model.initialise_table(table, 0)
        before = engine.losses(engine.load(values), tokens)
        assert np.array_equal(before, plain.losses(plain.load(base), tokens))  # as it was
        weights, average = engine.load(values), engine.load(values)
        state = engine.optimizer_state(weights)
        for step in range(3):
            settings = {**SETTINGS, "step": step}
            weights, state, average, loss, _ = engine.step(
                weights, state, average, tokens, 0, settings, 0.0
            )
        whole = engine.save(engine.whole(weights))
        assert engine.losses(weights, tokens).mean() < before.mean()
        assert engine.losses(weights, tokens) == pytest.approx(
            plain.losses(plain.load(whole), tokens), abs=1e-5
        )
        for name, value in whole.items():
            rank = np.linalg.matrix_rank(value - base[name], tol=1e-5) if value.ndim == 2 else 0
            assert rank == (RANK if f"{name}.up" in table else 0), name
        results.append((loss, engine.save(weights)))
    (loss, one), (other_loss, two) = results
    assert loss == pytest.approx(other_loss, rel=1e-4)
    for name in one:
        assert np.abs(one[name] - two[name]).mean() < 2e-4, name
    assert merged(base, one).keys() == base.keys()


def test_fine_tuning_killed_goes_on_as_if_it_had_not_been(tmp_path, other, start):
    options = "--start", str(start), "--lora", "2"
    whole, out = killed_and_resumed(other, tmp_path, "torch", *options)
    assert metrics(out) == metrics(whole)
    spec, weights = load_model(out / "model.safetensors")  # plain weights
    assert np.array_equal(weights["head"], load_model(start)[1]["head"])
    arrays, _ = read_arrays(out / "checkpoint.safetensors")
    assert {name.rpartition(".")[2] for name in arrays} == {"up", "down"}

    record = json.loads((out / "model.json").read_text())
    assert record["original_nats_at_start"] > 0
    forgotten = [line for line in metrics(out) if line["kind"] == "original"]
    assert forgotten[0]["nats_per_byte"] == record["original_nats_at_start"]
    assert "validation of the text it came from" in (out / "report.html").read_text()

    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(start.read_bytes())
    options = "--start", str(moved), "--lora", "2", "--steps", "4"
    assert original_corpus(TrainConfig(start=str(moved))) is None  # no record beside it
    moved.with_suffix(".json").write_bytes(start.with_suffix(".json").read_bytes())
    done = finish(train(other, tmp_path / "moved", "torch", *options, "--replay", "0.5"))
    assert re.search(r"on the text that it came from: \d\.\d{4} nats/byte, ", done.stderr)
    save_model(moved, SPEC, model.initialise(SPEC, 5))
    done = finish(train(other, tmp_path / "moved", "torch", *options, "--replay", "0.5"))
    assert done.returncode == 2 and "has changed since" in done.stderr


def test_a_part_of_each_batch_is_replayed(corpus, other):
    """Rows of the text, then rows of the original's."""
    drawn = []

    class Engine:
        def rows(self, batch):
            return slice(None)

        def step(self, weights, optimizer, average, tokens, *rest):
            drawn.append(tokens)
            return weights, optimizer, average, 1.0, 1.0

    config = TrainConfig(batch=4, window=32, start="x", replay=0.25, warmup_steps=0)
    text, original = open_corpus(other, 32), open_corpus(corpus, 32)
    run = Run(0, {}, {}, {}, {})
    for _ in range(2):
        advance(Engine(), run, scheduled(config), config, text, original)
    texts = [bytes(text.train), bytes(original.train)]
    for tokens in drawn:
        rows = [bytes(row.astype(np.uint8)) for row in tokens]
        assert [row in texts[0] for row in rows] == [True, True, True, False]
        assert rows[3] in texts[1]


def test_passages_are_a_part_of_each_batch_and_their_answers_alone_count(corpus):
    drawn = []

    class Engine:
        def rows(self, batch):
            return slice(None)

        def step(self, weights, optimizer, average, tokens, *rest, counts):
            drawn.append((tokens, counts))
            return weights, optimizer, average, 1.0, 1.0

    config = TrainConfig(batch=4, window=200, recall=0.05, warmup_steps=0)
    text, run = open_corpus(corpus, 200), Run(0, {}, {}, {}, {})
    for _ in range(2):
        advance(Engine(), run, scheduled(config), config, text)
    for step, (tokens, counts) in enumerate(drawn):
        rows = [bytes(row.astype(np.uint8)) for row in tokens]
        assert [row in bytes(text.train) for row in rows] == [True, True, True, False]
        passages, answers = tasks.windows(tasks.practice(text.train), config.seed, step, 1, 200)
        assert (tokens[3] == passages[0]).all() and (counts[3] == answers[0]).all()
        assert (counts[:3] == 1).all()
    assert (drawn[0][0] != drawn[1][0]).any()


@pytest.mark.parametrize(
    "given", [{"replay": 0.5, "recall": 0.5}, {"recall": 0.1, "teachers": "x"}]
)
def test_recall_wants_text_beside_it_and_no_teachers(given):
    with pytest.raises(RunError, match=r"--recall 0\.\d: wanted "):
        check(TrainConfig(start="x", **given))


@pytest.mark.parametrize("given", [{"lora": 4}, {"replay": 0.5}])
def test_fine_tuning_wants_a_model_to_start_from(given):
    with pytest.raises(RunError, match=r": wanted --start"):
        check(TrainConfig(**given))


def test_an_ensemble_is_one_command_that_goes_on(tmp_path, corpus):
    options = "--ensemble", "2", "--steps", "12"
    whole = finish(train(corpus, tmp_path / "whole", "torch", *options))
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "stopped"
    command = train(corpus, out, "torch", *options)
    finish_until(command, out / "teacher-2" / "metrics.jsonl")
    assert finish(command).returncode == 0
    for folder in ("teacher-1", "teacher-2", "."):
        assert metrics(out / folder) == metrics(tmp_path / "whole" / folder)

    teachers = [load_model(out / f"teacher-{n}/model.safetensors") for n in (1, 2)]
    record = json.loads((out / "model.json").read_text())
    paths = [out / f"teacher-{n}" / "model.safetensors" for n in (1, 2)]
    assert record["teachers_sha256"] == [sha256(path) for path in paths]
    assert not np.array_equal(teachers[0][1]["head"], teachers[1][1]["head"])
    floor = re.search(r"the floor of this student: ([\d.]+)", whole.stderr)
    assert floor
    losses = [
        json.loads((path.parent / "model.json").read_text())["validation_nats_per_byte"]
        for path in paths
    ]
    assert float(floor[1]) < np.mean(losses) + 1e-4


def finish_until(command: list[str], log: Path) -> None:
    """Runs a training, and kills it once it has made 3 steps that `log` has."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") >= 3):
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_the_mean_of_teachers_is_of_their_probabilities():
    tokens = np.random.default_rng(2).integers(0, 256, (2, 33))
    values = model.initialise(SPEC, 0)
    lean = np.outer(np.linspace(-1, 1, 256), np.ones(SPEC.width)).astype(np.float32)
    teachers = [(SPEC, {**values, "head": sign * lean}) for sign in (1, -1)]
    engine = engine_torch.Engine(SPEC, 0.0, bf16=False, compiled=False)
    one, two = (np.exp(-engine.losses(engine.load(w), tokens)) for _, w in teachers)
    wanted = -np.log((one + two) / 2).mean()
    assert mean_loss(TrainConfig(precision="fp32"), teachers, tokens) == pytest.approx(wanted)
