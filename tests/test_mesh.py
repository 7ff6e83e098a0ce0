"""JAX on many devices and in several processes: the losses of one device, and what happens when a
process dies. XLA is told how many devices to make of the processor before it is imported, so each
test has processes of its own.

pytest tests/test_mesh.py            two processes
pytest tests/test_mesh.py -m slow    four, one of which is killed; two go on
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsm.training import mesh
from tsm.training.config import RunError, TrainConfig
from tsm.training.kernels import jax_scan
from tsm.training.mixers import primitives
from tsm.training.run import CHECKPOINT_OF_MESH, checkpoint_in, read_checkpoint
from tsm.training.spec import PRESETS

ROOT = Path(__file__).parent.parent
STEPS = 50
TOLERANCE = 1e-5  # relative, of losses: sums of another order in fp32
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"

# Losses of 50 steps on 8 devices in each mesh, of one device, and how the arrays were spread.
LOSSES = """
import json, sys
import numpy as np
from tsm.training import engine_jax, mesh, model
from tsm.training.data import batch
from tsm.training.spec import PRESETS

spec = PRESETS["tiny"].replace(width=32, heads=4, value_width=8)
teacher = {n: v + np.float32(0.1) for n, v in model.initialise(spec, 1).items()}
teachers = [(spec, teacher)] * (sys.argv[1] == "taught")
text = np.random.default_rng(0).integers(97, 117, 8192).astype(np.uint8)
text[1::2] = text[::2]
results = {}
for name in ["", *sys.argv[2:]]:
    arguments = spec, 0.1, sys.argv[1] == "bf16", True, teachers
    if name:
        engine = mesh.Engine(mesh.make_mesh(name), *arguments)
    else:
        engine = engine_jax.Engine(*arguments)
    values = engine.load(model.initialise(spec, 0)), engine.load(model.initialise(spec, 0))
    weights, average, losses = *values, []
    state = engine.optimizer_state(weights)
    for step in range(5 if teachers else 50):
        settings = {"step": step, "muon_learning_rate": 0.02, "adam_learning_rate": 0.003}
        settings |= {"weight_decay": 0.1, "clip": 1.0}
        tokens = batch(text, 0, step, 8, 64)
        weights, state, average, loss, norm = engine.step(
            weights, state, average, tokens, step, settings, 0.9
        )
        losses += [loss, norm]
    losses.append(float(engine.losses(average, batch(text, 1, 0, 3, 64)).mean()))
    kept = [weights["head"], state["first.blocks.0.mixer.in"], average["embed"]]
    parts = [array.addressable_shards[0].data.size / array.size for array in kept]
    results[name] = {"losses": losses, "parts": parts}
print(json.dumps(results))
"""


def environment(devices: int = 1) -> dict[str, str]:
    flags = f"{ONE_THREAD} --xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags}


def losses_of(kind: str, *meshes: str) -> dict[str, dict[str, list[float]]]:
    run = subprocess.run(
        [sys.executable, "-c", LOSSES, kind, *meshes],
        env=environment(8),
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def test_eight_devices_have_the_losses_of_one():
    meshes = "data=8", "fsdp=8", "sequence=8", "fsdp=2,sequence=2"
    found = losses_of("plain", *meshes)
    wanted = found[""]["losses"]
    assert wanted[-3] < wanted[0] - 0.5  # it learns
    for name in meshes:
        assert found[name]["losses"] == pytest.approx(wanted, rel=TOLERANCE), name
        part = {"fsdp=8": 1 / 8, "fsdp=2,sequence=2": 1 / 2}.get(name, 1)
        assert found[name]["parts"] == [part] * 3, name


def test_eight_devices_in_bf16_learn_as_one():
    found = losses_of("bf16", "data=8", "fsdp=2,sequence=2")
    for name in ("data=8", "fsdp=2,sequence=2"):
        assert found[name]["losses"][:-1:2] == pytest.approx(found[""]["losses"][:-1:2], rel=0.03)


def test_a_student_on_a_mesh_learns_as_on_one_device():
    found = losses_of("taught", "fsdp=2,sequence=2")
    assert found["fsdp=2,sequence=2"]["losses"] == pytest.approx(found[""]["losses"], rel=TOLERANCE)


@pytest.mark.parametrize("kept", [1, 5])
def test_the_scan_with_its_own_gradient_is_the_plain_one(kept):
    random = np.random.default_rng(0)
    decay = random.uniform(0.2, 1, (2, 3, 37, kept)).astype(np.float32)
    update, memory, weight = (
        random.standard_normal(shape).astype(np.float32)
        for shape in ((2, 3, 37, 5), (2, 3, 5), (2, 3, 37, 5))
    )

    def summed(scan):
        def run(*arrays):
            before, last = scan(*arrays)
            return jnp.sum(before * weight) + jnp.sum(last * weight[:, :, 0])

        return jax.jit(jax.value_and_grad(run, (0, 1, 2)))(decay, update, memory)

    plain = summed(lambda *arrays: primitives.scan(jnp, *arrays))
    results = [summed(jax_scan.scan), plain]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        assert np.abs(one - other).max() < 1e-4


@pytest.mark.parametrize(
    ("shape", "changes", "message"),
    [
        ((8, 1, 1), {}, "--batch 4: wanted a multiple of 8, data times fsdp"),
        ((1, 1, 3), {}, "--window 64: wanted a multiple of 3, as sequence has"),
        ((1, 4, 1), {"width": 66}, "--width 66: wanted a multiple of 4, as fsdp has"),
        ((1, 1, 32), {}, "--window 64: wanted 96 or more, as sequence has"),
        ((1, 1, 2), {"mixer": "attention"}, "the mixer attention of this shape wants a whole"),
        ((1, 1, 2), {"rotation": True}, "the mixer beam of this shape wants a whole window"),
    ],
)
def test_what_does_not_fit_a_mesh_is_one_line(shape, changes, message):
    spec = PRESETS["tiny"].replace(**changes)
    fake = SimpleNamespace(shape=dict(zip(mesh.AXES, shape, strict=True)))
    with pytest.raises(RunError, match=message):
        mesh.check(fake, TrainConfig(batch=4, window=64), [spec])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows=2", "found 'rows=2', wanted NAME=N, of data, fsdp, sequence"),
        ("data=0", "found 'data=0', wanted NAME=N"),
        ("fsdp=2", "--mesh fsdp=2: 2 devices, found 1"),
    ],
)
def test_a_mesh_that_is_not_there_is_one_line(text, message):
    with pytest.raises(RunError, match=message):
        mesh.make_mesh(text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    random = np.random.default_rng(0)
    words = ["the king", "a fool", "my lord", "speaks", "weeps", "laughs", "and", "but"]
    path = tmp_path_factory.mktemp("data") / "corpus.txt"
    path.write_text(" ".join(words[i] for i in random.integers(0, len(words), 6000)))
    return path


def command(corpus: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, str(ROOT / "training" / "train.py"), "--data", str(corpus)),
        *("--preset", "tiny", "--width", "32", "--layers", "1", "--channels", "32"),
        *("--engine", "jax", "--out", str(out), "--steps", str(STEPS), "--threads", "1"),
        *("--window", "64", "--batch", "4", "--warmup-steps", "4", "--eval-windows", "4"),
        *("--eval-every", "20", "--checkpoint-every", "10", "--dropout", "0.1"),
        *("--no-export", *more),
    ]


def started(count: int, corpus: Path, out: Path) -> list[subprocess.Popen[str]]:
    """The same command as `count` processes of one run."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    of_run = "--coordinator", address, "--processes", str(count), "--process-id"
    return [
        subprocess.Popen(
            command(corpus, out, *of_run, str(index)),
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]


def metrics(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def numbers(out: Path) -> list[float]:
    return [line.get("loss", line.get("nats_per_byte", 0)) for line in metrics(out)]


def one_killed(corpus: Path, out: Path, count: int, killed: int) -> None:
    """After step 25, of 50; every other process says so in a line and ends."""
    processes = started(count, corpus, out)
    while len(metrics(out)) < 25:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.01)
    processes[killed].kill()
    for index, process in enumerate(processes):
        told = process.communicate()[1]
        if index != killed:
            assert process.returncode == 1, told
            assert told.count("another process of the run has died: stopped. The last check") == 1
            assert "Traceback" not in told and "Terminating process" not in told
    assert len(metrics(out)) < STEPS + 3


def gone_on(corpus: Path, out: Path, count: int) -> None:
    for index, process in enumerate(started(count, corpus, out)):
        told = process.communicate()[1]
        assert process.returncode == 0, told
        assert ("going on from" in told) == (index == 0)


def killed_and_gone_on(corpus: Path, tmp_path: Path, counts: tuple[int, int], killed: int) -> None:
    """Of a run whose process dies, the losses are those of one process that never did."""
    subprocess.run(command(corpus, tmp_path / "one"), env=environment(), check=True)
    one_killed(corpus, tmp_path / "several", counts[0], killed)
    gone_on(corpus, tmp_path / "several", counts[1])
    wanted = numbers(tmp_path / "one")
    assert len(wanted) == STEPS + 3
    assert numbers(tmp_path / "several") == pytest.approx(wanted, rel=TOLERANCE)


def test_killed_within_the_first_save_a_run_starts_anew(tmp_path):
    checkpoints = checkpoint_in(tmp_path, on_mesh=True)
    checkpoints.close()
    assert (tmp_path / CHECKPOINT_OF_MESH).is_dir() and read_checkpoint(tmp_path) is None


def test_of_two_processes_one_dies_and_the_other_goes_on(tmp_path, corpus):
    killed_and_gone_on(corpus, tmp_path, (2, 1), killed=0)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_of_four_processes_one_dies_and_two_go_on(tmp_path, corpus, killed):
    killed_and_gone_on(corpus, tmp_path, (4, 2), killed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--processes", "2"], "--coordinator None: wanted HOST:PORT"),
        (["--coordinator", "here"], "--coordinator here: wanted HOST:PORT"),
        (["--coordinator", "h:1", "--processes", "2"], "--process-id None: wanted how many"),
        (["--mesh", "data=2", "--lora", "2"], "found data=2 and --lora, wanted one of them"),
    ],
)
def test_bad_input_is_one_line(tmp_path, corpus, arguments, message):
    out = tmp_path / "run"
    run = subprocess.run(
        command(corpus, out, *arguments), capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert message in run.stderr and run.stderr.count("\n") == 1
    assert not out.exists()
