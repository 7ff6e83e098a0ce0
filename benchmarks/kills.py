"""A training that is killed again and again, mostly while it saves, against one undisturbed.

    python benchmarks/kills.py                      # one device: a file
    python benchmarks/kills.py --mesh data=2,fsdp=2 # four devices of XLA's own: Orbax's folder

Each step saves a checkpoint. SIGKILL comes at a random moment: of one start in five before the
first step, else up to a second after it. The end tells whether each start found a checkpoint to go
on from, and whether losses, gradient norms and weights are the undisturbed run's, to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from tsm.training.checkpoint import load_model

ROOT = Path(__file__).parent.parent
SHAPE = ["--preset", "tiny", "--width", "32", "--layers", "2"]
TRAINING = ["--engine", "jax", "--data", "shakespeare", "--window", "64", "--batch", "8"]
EVERY = ["--checkpoint-every", "1", "--eval-every", "50", "--eval-windows", "4"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="(default: 100)")
    parser.add_argument("--steps", type=int, default=3000, help="(default: 3,000)")
    parser.add_argument("--mesh", help="as that of train.py; default: one device")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder) / "whole", Path(folder) / "killed"
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        if arguments.mesh:
            environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
        saving = 0
        for _ in track(range(arguments.kills), "kills"):
            process = _start(killed, arguments, environment)
            saving += _kill(process, killed, moments)
        for out in (whole, killed):
            if _start(out, arguments, environment).wait():
                raise SystemExit(f"kills: {(out / 'log').read_text()[-500:]}")
        same = _metrics(whole) == _metrics(killed) and all(
            np.array_equal(*pair) for pair in _pairs(whole, killed)
        )
    found = {"kills": arguments.kills, "steps": arguments.steps, "mesh": arguments.mesh}
    print(json.dumps(found | {"with_a_save_unfinished": saving, "identical": same}))
    return 0 if same else 1


def _start(out: Path, arguments: Any, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "training/train.py"), *TRAINING, *SHAPE, *EVERY]
    command += ["--steps", str(arguments.steps), "--out", str(out)]
    command += ["--mesh", arguments.mesh] if arguments.mesh else []
    out.mkdir(exist_ok=True)
    with (out / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def _kill(process: subprocess.Popen[bytes], out: Path, moments: random.Random) -> bool:
    """Kills it. Whether that left a save unfinished. Fails if it has ended by itself."""
    before, early = _lines(out), moments.random() < 0.2
    begun = time.monotonic()
    limit = moments.uniform(0, 8) if early else 600
    while process.poll() is None and time.monotonic() < begun + limit and _lines(out) <= before:
        time.sleep(0.005)
    if not early:
        time.sleep(moments.uniform(0, 1))
    if process.poll() is not None:
        raise SystemExit(f"kills: a start ended by itself: {(out / 'log').read_text()[-500:]}")
    process.kill()
    process.wait()
    return any("tmp" in path.name or "partial" in path.name for path in out.rglob("*"))


def _lines(out: Path) -> int:
    """Steps that the log has, of a run which may be going back to its last checkpoint."""
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def _metrics(out: Path) -> list[Any]:
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    names = ("kind", "step", "loss", "gradient_norm")
    return [[line.get(name) for name in names] for line in lines]


def _pairs(*folders: Path) -> Any:
    one, other = (load_model(out / "model.safetensors")[1] for out in folders)
    return ((one[name], other[name]) for name in one)


if __name__ == "__main__":
    sys.exit(main())
