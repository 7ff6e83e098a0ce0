"""Training as users run it: it learns, survives kill -9 without a trace, and stops on NaN."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import array_api_compat.numpy as np_xp
import jax.numpy as jnp
import numpy as np
import pytest

from tsm.training import engine_jax, engine_torch, model, optimizer
from tsm.training.checkpoint import load_model, read_arrays, save_model, write_arrays
from tsm.training.corpora import sha256
from tsm.training.schedule import QLearning, ScheduleFree
from tsm.training.spec import PRESETS, SpecError

ROOT = Path(__file__).parent.parent
SHIPPED = ROOT / "models" / "shakespeare.safetensors"
SPEC = PRESETS["tiny"]
SETTINGS = {
    "step": 0,
    "muon_learning_rate": 0.02,
    "adam_learning_rate": 0.003,
    "weight_decay": 0.1,
    "clip": 1.0,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """A text with something to learn: sentences of a small grammar."""
    random = np.random.default_rng(0)
    words = ["the king", "a fool", "my lord", "speaks", "weeps", "laughs", "and", "but"]
    text = " ".join(words[i] for i in random.integers(0, len(words), 6000))
    path = tmp_path_factory.mktemp("data") / "corpus.txt"
    path.write_text(text)
    return path


def command(corpus: Path, out: Path, engine: str, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "training" / "train.py"), "--data", str(corpus)),
        *("--preset", "tiny", "--engine", engine, "--out", str(out), "--steps", "24"),
        *("--window", "64", "--batch", "4", "--warmup-steps", "4", "--eval-windows", "4"),
        *("--eval-every", "8", "--checkpoint-every", "4", "--dropout", "0.1"),
        *("--no-export", *more),
    ]


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def noisy_weights() -> dict[str, np.ndarray]:
    """Of a model in which no matrix is zero, so that every part has a gradient."""
    random = np.random.default_rng(1)
    return {
        n: v + np.float32(0.05) * random.standard_normal(v.shape, np.float32)
        for n, v in model.initialise(SPEC, 0).items()
    }


def metrics(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def killed_and_resumed(corpus: Path, tmp_path: Path, engine: str, *more: str) -> tuple[Path, Path]:
    """The folders of a run never stopped, and of the same one killed between checkpoints."""
    whole = finish(command(corpus, tmp_path / "whole", engine, *more))
    assert whole.returncode == 0, whole.stderr
    arguments, out = command(corpus, tmp_path / "killed", engine, *more), tmp_path / "killed"
    for lines in (7, 19):  # steps 7 and 17: between checkpoints
        process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        path = out / "metrics.jsonl"
        while process.poll() is None and not (
            path.exists() and path.read_text().count("\n") >= lines
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    last = finish(arguments)
    assert last.returncode == 0, last.stderr
    return tmp_path / "whole", out


@pytest.mark.parametrize("engine", ["torch", "jax"])
def test_kill_9_leaves_no_trace(tmp_path, corpus, engine):
    whole, out = killed_and_resumed(corpus, tmp_path, engine)
    assert metrics(out) == metrics(whole)  # losses and norms, bit for bit
    found, wanted = (load_model(folder / "model.safetensors")[1] for folder in (out, whole))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)

    losses = [line["loss"] for line in metrics(out) if line["kind"] == "train"]
    assert len(losses) == 24 and np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.5  # it learns
    changed = finish(command(corpus, out, engine, "--dropout", "0.3"))
    assert changed.returncode == 2
    assert "was started with dropout 0.1, now 0.3" in changed.stderr
    assert "Traceback" not in changed.stderr


def test_kill_9_leaves_no_trace_in_what_q_has_learned(tmp_path, corpus):
    whole, out = killed_and_resumed(corpus, tmp_path, "torch", "--schedule", "q", "--steps", "44")
    assert metrics(out) == metrics(whole)  # with rate, state, action and epsilon
    memory, wanted = (
        json.loads(read_arrays(folder / "checkpoint.safetensors")[1]["memory"])
        for folder in (out, whole)
    )
    assert memory == wanted and memory["decisions"] == 3  # after updates 20, 30 and 40
    assert any(value != QLearning.hope for row in memory["table"] for value in row)
    lines = [line for line in metrics(out) if line["kind"] == "train"]
    assert lines[-1]["epsilon"] == 0.95**2 and lines[-1]["rate"] == memory["rate"]
    changed = finish(command(corpus, out, "torch", "--steps", "44", "--schedule", "wsd"))
    assert changed.returncode == 2 and changed.stderr.count("\n") == 1
    assert "was started with schedule 'q', now 'wsd'" in changed.stderr


def test_a_checkpoint_older_than_an_option_goes_on(tmp_path, corpus):
    """As what it did without the option: its default."""
    subprocess.run(command(corpus, tmp_path, "torch", "--steps", "4"), check=True)
    arrays, metadata = read_arrays(tmp_path / "checkpoint.safetensors")
    record = json.loads(metadata["record"])
    del record["config"]["schedule"]
    older = {**metadata, "record": json.dumps(record)}
    write_arrays(tmp_path / "checkpoint.safetensors", arrays, older)
    other = finish(command(corpus, tmp_path, "torch", "--steps", "8", "--schedule", "q"))
    assert other.returncode == 2 and "was started with schedule 'wsd', now 'q'" in other.stderr
    same = finish(command(corpus, tmp_path, "torch", "--steps", "8"))
    assert same.returncode == 0, same.stderr


def test_a_run_goes_on_from_a_model(tmp_path, corpus):
    subprocess.run(command(corpus, tmp_path / "first", "torch"), check=True)
    start = ["--start", str(tmp_path / "first" / "model.safetensors")]
    subprocess.run(command(corpus, tmp_path / "second", "torch", *start), check=True)
    first, second = (
        [line["loss"] for line in metrics(tmp_path / name) if line["kind"] == "train"]
        for name in ("first", "second")
    )
    assert second[0] < np.mean(first[-4:]) + 0.3 < first[0] - 1
    record = json.loads((tmp_path / "second" / "model.json").read_text())
    assert record["start_sha256"] == sha256(tmp_path / "first" / "model.safetensors")
    (tmp_path / "first" / "model.safetensors").unlink()  # a checkpoint needs it no more
    resumed = finish(command(corpus, tmp_path / "second", "torch", *start, "--steps", "26"))
    assert resumed.returncode == 0, resumed.stderr
    record = json.loads((tmp_path / "second" / "model.json").read_text())
    assert record["step"] == 26 and "start_sha256" in record


def test_a_student_learns_its_teachers_mean():
    """Of two teachers that it begins between, whose mean it comes to, and not the bytes."""
    random = np.random.default_rng(4)
    tokens = random.integers(0, 256, (3, 65))
    values = model.initialise(SPEC, 0)
    teachers = []
    for sign in (1, -1):
        lean = sign * np.outer(np.linspace(-1, 1, 256), np.ones(SPEC.width, np.float32))
        teachers.append((SPEC, {**values, "head": lean.astype(np.float32)}))
    probabilities = []
    for _, weights in teachers:
        state = model.initial_state(np_xp, SPEC, 3, cached=0)
        logits, _ = model.forward(np_xp, SPEC, weights, tokens[:, :-1], state)
        probabilities.append(np.exp(model.log_softmax(np_xp, logits)))
    mean = np.mean(probabilities, axis=0)
    entropy = -np.sum(mean * np.log(mean), axis=-1).mean()
    logits = np.log(
        mean
    )  # a model that is the mean has no less to lose, and no other has as little
    assert model.distillation_loss(np_xp, logits, mean).mean() == pytest.approx(entropy, rel=1e-6)
    for library in (engine_torch, engine_jax):
        engine = library.Engine(SPEC, 0.0, bf16=False, compiled=False, teachers=teachers)
        weights, average = engine.load(values), engine.load(values)
        state, losses = engine.optimizer_state(weights), []
        for step in range(30):
            settings = {**SETTINGS, "step": step}
            weights, state, average, loss, _ = engine.step(
                weights, state, average, tokens, 0, settings, 0.5
            )
            losses.append(loss)
        assert entropy < losses[-1] < losses[0]
        assert losses[-1] - entropy < 0.3 * (losses[0] - entropy)


def test_a_run_with_teachers_goes_on_with_the_same(tmp_path, corpus):
    subprocess.run(command(corpus, tmp_path / "first", "torch"), check=True)
    path = tmp_path / "first" / "model.safetensors"
    taught = command(corpus, tmp_path / "second", "torch", "--teachers", f"{path},{path}")
    subprocess.run(taught, check=True)
    record = json.loads((tmp_path / "second" / "model.json").read_text())
    assert record["teachers_sha256"] == [sha256(path)] * 2
    assert finish([*taught, "--steps", "26"]).returncode == 0
    subprocess.run(command(corpus, tmp_path / "first", "torch", "--steps", "26"), check=True)
    other = finish([*taught, "--steps", "28"])
    assert other.returncode == 2 and "its teachers have changed" in other.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_the_run(tmp_path, corpus, number):
    arguments = command(corpus, tmp_path, "torch", "--steps", "100000")
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "checkpoint.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.01)
    second = finish(arguments)
    assert second.returncode == 2 and "another training is writing there" in second.stderr
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == 128 + number
    assert "the same command goes on" in errors and "Traceback" not in errors
    step = int(read_arrays(tmp_path / "checkpoint.safetensors")[1]["step"])
    assert step == max(line["step"] for line in metrics(tmp_path))  # saved where it stopped


def test_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path, corpus):
    bad = "--adam-learning-rate", "1e30", "--warmup-steps", "0"
    arguments = command(corpus, tmp_path, "torch", *bad)
    subprocess.run(command(corpus, tmp_path / "good", "torch"), capture_output=True, check=True)
    run = finish(arguments)
    assert run.returncode == 1
    assert "stopped. A lower learning rate may help." in run.stderr
    assert not (tmp_path / "checkpoint.safetensors").exists()  # never a bad one

    # A run that goes bad later keeps the file it had.
    out = tmp_path / "good"
    before = (out / "checkpoint.safetensors").read_bytes()
    arrays, metadata = read_arrays(out / "checkpoint.safetensors")
    arrays["weights/head"][0, 0] = np.nan
    write_arrays(out / "checkpoint.safetensors", arrays, metadata)
    poisoned = (out / "checkpoint.safetensors").read_bytes()
    run = finish(command(corpus, out, "torch", "--steps", "40"))
    assert run.returncode == 1
    assert "and the checkpoint of step 24 stay in" in run.stderr
    assert (out / "checkpoint.safetensors").read_bytes() == poisoned != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "/nowhere"], "/nowhere: no such file"),
        (["--out", "/proc/tsm"], "/proc/tsm: "),
        (["--batch", "0"], "--batch 0: wanted at least 1"),
        (["--dropout", "1"], "--dropout 1.0: wanted in [0, 1)"),
        (["--muon-learning-rate", "nan"], "--muon-learning-rate nan: wanted 0 or more"),
        (["--schedule", "steep"], "--schedule: invalid choice: 'steep'"),
        (["--start", "/nowhere"], "/nowhere: no such file, wanted a safetensors file"),
        (
            ["--teachers", f"{SHIPPED},"],
            f"--teachers {SHIPPED},: an empty name, wanted a comma between",
        ),
        (
            ["--teachers", f"{SHIPPED},/nowhere"],
            "/nowhere: no such file, wanted a safetensors file",
        ),
        (["--start", str(SHIPPED)], "its width is 384, the options want 96"),
        (["--window", "1000000"], "wanted at least 10000010"),
    ],
)
def test_bad_input_is_one_line(tmp_path, corpus, arguments, message):
    run = finish(command(corpus, tmp_path / "run", "torch", *arguments))
    assert run.returncode == 2
    assert message in run.stderr and run.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("teachers", "counted"), [(0, False), (2, False), (0, True)])
def test_both_engines_make_the_same_step(teachers, counted):
    values = noisy_weights()
    taught = [(SPEC, model.initialise(SPEC, seed)) for seed in range(1, 1 + teachers)]
    tokens = np.random.default_rng(2).integers(0, 256, (3, 65))
    settings = {**SETTINGS, "step": 3}
    # Of the first row three targets alone count.
    counts = np.ones((3, 64), np.float32)
    counts[0] = np.isin(np.arange(64), (10, 40, 63)) * (64 / 3)
    more = {"counts": counts} if counted else {}
    results = []
    for library in (engine_torch, engine_jax):
        engine = library.Engine(SPEC, 0.0, bf16=False, compiled=False, teachers=taught)
        weights, average = engine.load(values), engine.load(values)
        state = engine.optimizer_state(weights)
        weights, state, average, loss, norm = engine.step(
            weights, state, average, tokens, 0, settings, 0.5, **more
        )
        results.append((engine.save(weights), engine.save(average), loss, norm))
        if not teachers:
            nats = engine.losses(engine.load(values), tokens)
            assert loss == pytest.approx((nats * counts).mean() if counted else nats.mean())
    (one, one_average, loss, norm), (other, other_average, other_loss, other_norm) = results
    assert loss == pytest.approx(other_loss, rel=1e-5)
    assert norm == pytest.approx(other_norm, rel=1e-4)
    for name in one:  # a step of AdamW is about its rate, of Muon about its own
        assert np.abs(one[name] - values[name]).max() > 1e-3
        assert np.abs(one[name] - other[name]).max() < 2e-4, name
        assert np.abs(one_average[name] - (one[name] + values[name]) / 2).max() < 1e-6
        assert np.abs(one_average[name] - other_average[name]).max() < 2e-4


def test_schedule_free_evaluates_the_plain_mean_of_its_weights():
    """Over three updates without warm-up, in both engines alike; gradients are taken between."""
    values = noisy_weights()
    schedule = ScheduleFree(steps=3, warmup_steps=0, decay_fraction=0, average_decay=0, seed=0)
    results = []
    for library in (engine_torch, engine_jax):
        engine = library.Engine(SPEC, 0.0, bf16=False, compiled=False)
        weights, average = engine.load(values), engine.load(values)
        state, trail, losses = engine.optimizer_state(weights), [], []
        for step in range(3):
            tokens = np.random.default_rng(step).integers(0, 256, (3, 65))
            z, x = engine.save(weights), engine.save(average)
            between = {n: np.float32(0.1) * z[n] + np.float32(0.9) * x[n] for n in z}
            wanted = engine.losses(engine.load(between), tokens).mean()
            settings = {**SETTINGS, "step": step, "adam_beta1": schedule.adam_beta1}
            kept, toward = schedule.decay_at(step), schedule.toward_average
            weights, state, average, loss, _ = engine.step(
                weights, state, average, tokens, 0, settings, kept, toward
            )
            assert loss == pytest.approx(wanted, rel=1e-5)
            trail.append(engine.save(weights))
            losses.append(loss)
        for name, found in engine.save(average).items():
            assert np.abs(found - np.mean([w[name] for w in trail], axis=0)).max() < 1e-6, name
        results.append((trail[-1], engine.save(average), losses))
    (one, one_average, losses), (other, other_average, other_losses) = results
    assert losses == pytest.approx(other_losses, rel=1e-4)
    for name in one:
        assert np.abs(one[name] - other[name]).mean() < 2e-4, name
        assert np.abs(one_average[name] - other_average[name]).mean() < 2e-4, name


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(48, 200), (200, 48)])
def test_muon_evens_out_singular_values(shape, dtype):
    random = np.random.default_rng(0).standard_normal(shape)
    left, _, right = np.linalg.svd(random, full_matrices=False)
    matrix = (left * np.logspace(0, -2, 48) @ right).astype(np.float32)
    found = np.asarray(optimizer.orthogonalise(jnp, jnp.asarray(matrix), dtype))
    singular = np.linalg.svd(found, compute_uv=False)
    assert found.dtype == np.float32
    assert singular.min() > 0.6 and singular.max() < 1.25
    assert np.sum(found * (left @ right)) / np.linalg.norm(found) / np.linalg.norm(left) > 0.97


def test_muon_in_stages_is_muon():
    matrix = wide = np.random.default_rng(0).standard_normal((32, 80))
    wide = wide / np.linalg.norm(wide)
    a, b, c = optimizer.NEWTON_SCHULZ
    for _ in range(5):
        gram = wide @ wide.T
        wide = (a * np.eye(32) + b * gram + c * gram @ gram) @ wide
    found = np.asarray(optimizer.orthogonalise(jnp, jnp.asarray(matrix, jnp.float32)))
    assert np.abs(found - wide).max() < 1e-4


def test_dropout_and_averaging_are_deterministic_and_active():
    tokens = np.random.default_rng(2).integers(0, 256, (3, 65))
    settings = {**SETTINGS, "muon_learning_rate": 0.0, "adam_learning_rate": 0.0}
    values = noisy_weights()
    for library in (engine_torch, engine_jax):

        def loss(seed, dropout, library=library):
            engine = library.Engine(SPEC, dropout, bf16=False, compiled=False)
            weights = engine.load(values)
            state, average = engine.optimizer_state(weights), engine.load(values)
            return engine.step(weights, state, average, tokens, seed, settings, 0.9)[3]

        assert loss(0, 0.5) == loss(0, 0.5)
        assert len({loss(0, 0.5), loss(1, 0.5), loss(0, 0.0)}) == 3


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_a_model_file_survives(tmp_path, dtype):
    values = model.initialise(SPEC, 0)
    save_model(tmp_path / "m.safetensors", SPEC, values, dtype, {"hours": 1})
    assert json.loads((tmp_path / "m.json").read_text()) == {"hours": 1}
    save_model(tmp_path / "again.safetensors", SPEC, values, dtype)
    same = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("m", "again")]
    assert same[0] == same[1]
    spec, found = load_model(tmp_path / "m.safetensors")
    assert spec == SPEC
    for name, value in values.items():
        assert np.allclose(found[name], value, rtol=0 if dtype == "F32" else 2**-8)
    size = (tmp_path / "m.safetensors").stat().st_size
    wanted = sum(v.size for v in values.values()) * (4 if dtype == "F32" else 2)
    assert wanted < size < wanted + 8192


def test_unusable_model_files(tmp_path):
    path = tmp_path / "m.safetensors"
    with pytest.raises(SpecError, match="no such file"):
        load_model(path)
    with pytest.raises(SpecError, match="a directory"):
        load_model(tmp_path)
    values = model.initialise(SPEC, 0)
    save_model(path, SPEC, values)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(SpecError, match="not a readable safetensors file"):
        load_model(path)
    path.write_bytes(b"hello")
    with pytest.raises(SpecError, match="not a readable safetensors file"):
        load_model(path)
    with pytest.raises(SpecError, match="not finite"):
        save_model(path, SPEC, {**values, "head": values["head"] * np.nan})
        load_model(path)
