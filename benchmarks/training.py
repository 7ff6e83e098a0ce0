"""Whole updates of training: tokens/s, share of the device's peak (MFU) and memory, by window,
beside nanoGPT's GPT with fused attention in PyTorch.

    python benchmarks/training.py             # on a GPU if PyTorch sees one, else on one core
    python benchmarks/training.py --table     # what has been measured so far

All have the same number of parameters, but for GPT's positions, the same optimizer and tokens an
update, and are compiled, in bf16 where that is fast. GPT is that of `training/gpt2.py` with
PyTorch's scaled_dot_product_attention. Each measurement has a fresh process; systems take turns,
`--rounds` times, and medians count. On a CPU it is the process's own time on one core, so that
neighbours matter little. MFU counts products of weights alone; memory is what the peak grew by
since before the first update.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results import append, machine, read

from tsm.training.spec import PRESETS, ModelSpec, parameter_count

SYSTEMS = {  # name: engine, shape
    "TSM, JAX": ("jax", PRESETS["shakespeare"]),
    "TSM, PyTorch": ("torch", PRESETS["shakespeare"]),
    "GPT, PyTorch": ("torch", PRESETS["shakespeare"].replace(mixer="gpt2", width=432)),
}
WINDOWS = {"gpu": (256, 1024, 16_384), "cpu": (256, 1024, 8192)}
TOKENS = {"gpu": 65_536, "cpu": 8192}  # of an update
STEPS = {"gpu": 20, "cpu": 5}
SKIPPED = 2  # while it compiles
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    arguments = _parse()
    if arguments.one:
        print(json.dumps(_measure(*arguments.one)))
        return 0
    device = "gpu" if _gpu_is_here() else "cpu"
    for _ in range(0 if arguments.table else arguments.rounds):
        for window in WINDOWS[device]:
            for system in arguments.only or SYSTEMS:
                command = [sys.executable, __file__, "--one", device, system, str(window)]
                run = subprocess.run(command, capture_output=True, text=True, check=False)
                said = (run.stdout if run.returncode == 0 else run.stderr).strip().splitlines()
                found = {"device": device, "system": system, "window": window}
                if run.returncode:
                    found |= {"failed": (said or [f"exit code {run.returncode}"])[-1][:200]}
                else:
                    found |= json.loads(said[-1])
                print(append(RESULTS, found), file=sys.stderr)
    print(table(read(RESULTS)))
    return 0


def _gpu_is_here() -> bool:
    import torch

    return torch.cuda.is_available()


def _measure(device: str, system: str, window: str) -> dict[str, Any]:
    if device == "cpu":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # XLA's pool takes all that it sees
    import numpy as np
    import torch

    from tsm.training import gpt2, model
    from tsm.training.view import share_of_peak

    engine_name, shape = SYSTEMS[system]
    spec = shape.replace(context=int(window))
    gpt2.attend = _fused_attention
    torch.set_num_threads(1)
    engine = _engine(engine_name, spec)
    values = engine.load(model.initialise(spec, 0))
    average, state = engine.load(engine.save(values)), engine.optimizer_state(values)
    now: Callable[[], float] = time.process_time if device == "cpu" else time.perf_counter
    random, rows, before = np.random.default_rng(0), TOKENS[device] // int(window), _memory(engine)
    settings = {"muon_learning_rate": 0.02, "adam_learning_rate": 0.003}
    settings |= {"weight_decay": 0.1, "clip": 1.0}
    seconds = []
    for step in range(STEPS[device]):
        tokens = random.integers(0, 256, (rows, int(window) + 1))
        started = now()
        values, state, average, *_ = engine.step(
            values, state, average, tokens, step, {"step": step, **settings}, 0.9
        )
        seconds.append(now() - started)
    speed = TOKENS[device] / statistics.median(seconds[SKIPPED:])
    return {
        "tokens_per_second": speed,
        "share_of_peak": share_of_peak(engine.device_name(), parameter_count(shape), speed),
        "peak_bytes": _memory(engine) - before,
        "parameters": parameter_count(spec),
        "gpu_kernel": hasattr(engine.xp, "coupled_scan"),
        "tokens": TOKENS[device],
        "on": machine() if device == "cpu" else engine.device_name(),
    }


def _engine(name: str, spec: ModelSpec) -> Any:
    if name == "jax":
        from tsm.training import engine_jax

        return engine_jax.Engine(spec, 0.0, engine_jax.bf16_is_fast(), compiled=True)
    from tsm.training import engine_torch

    return engine_torch.Engine(spec, 0.0, engine_torch.bf16_is_fast(), compiled=True)


def _fused_attention(xp: Any, query: Any, key: Any, value: Any, *_: Any) -> Any:
    from torch.nn.functional import scaled_dot_product_attention

    return scaled_dot_product_attention(query, key, value, is_causal=True)


def _memory(engine: Any) -> int:
    """The most bytes so far, of the GPU or of this process."""
    return engine.memory_bytes() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(results: list[dict[str, Any]]) -> str:
    """Tokens/s, in brackets MFU where it is known and MB; medians over the rounds."""
    blocks = []
    for device, on in sorted({(r["device"], r["on"]) for r in results if "on" in r}):
        names = ["system", *(f"{window:,}" for window in WINDOWS[device])]
        lines = [f"{on}, updates of {TOKENS[device]:,} tokens", ""]
        lines += ["| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]
        for system in SYSTEMS:
            here = [r for r in results if r["device"] == device and r.get("on", on) == on]
            cells = [_cell(here, device, system, window) for window in WINDOWS[device]]
            lines.append("| " + " | ".join([system, *cells]) + " |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cell(results: list[dict[str, Any]], device: str, system: str, window: int) -> str:
    runs = [r for r in results if (r["system"], r["window"]) == (system, window)]
    runs, failed = [r for r in runs if "failed" not in r], [r for r in runs if "failed" in r]
    if not runs:
        return "failed" if failed else ""
    speed, peak = (
        statistics.median(r[name] for r in runs) for name in ("tokens_per_second", "peak_bytes")
    )
    share = runs[-1]["share_of_peak"]
    plain = device == "gpu" and system.startswith("TSM") and not runs[-1]["gpu_kernel"]
    about = [f"{share:.1%}"] if share else []
    about += ["without its kernel"] if plain else []
    return f"{speed:,.0f} ({', '.join([*about, f'{peak / 1e6:,.0f} MB'])})"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, metavar="SYSTEM", help="some alone")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    parser.add_argument("--one", nargs=3, metavar=("DEVICE", "SYSTEM", "WINDOW"), help="inner call")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
