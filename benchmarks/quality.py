"""Loss of every mixer, and of every part of the TSM, at equal parameters and equal tokens.

    python benchmarks/quality.py --workers 2            # goes on where it was stopped
    python benchmarks/quality.py --table                # what has been measured so far

A proxy of about a million parameters, on Tiny Shakespeare; on enwik8 what `--only` names. Each
system is tuned alike: with seed 0 the learning rate is halved and doubled until the best one lies
between two that are worse; the other seeds take it. An ablation, a TSM but for one thing, is made
at that TSM's best rate, with the same seeds. A result is a line of quality.jsonl: the fresh-window
loss over the whole held-out part, of the last weights and of averaged ones. One thread a run.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from results import append, read

from tsm.training.spec import ModelSpec, parameter_count

TSM, MATRIX_TSM = "TSM", "TSM, a matrix per head"
MATRIX = ModelSpec(width=128, layers=4, heads=4, key_width=32, value_width=32)
WIDER = {"key_width": 56, "value_width": 56}  # 4 x 224 x 128 = the matrix form's 7 x 128 x 128
BASE = MATRIX.replace(mixer="beam", rotation=False, **WIDER)
SYSTEMS = {
    TSM: BASE,
    "attention": BASE.replace(mixer="attention"),
    "Performer": BASE.replace(mixer="performer", performer_features=112),
    "Linformer (block-causal)": BASE.replace(mixer="linformer"),
    "minGRU": BASE.replace(mixer="mingru"),
    "GPT-2": BASE.replace(mixer="gpt2", width=144),
    "seed mixer (causal)": BASE.replace(mixer="seed", value_width=75),
    MATRIX_TSM: MATRIX,
}
# What the TSM is made of, each a change to its spec at equal parameters.
ABLATIONS = {
    "rotation": BASE.replace(rotation=True, value_width=37),
    "no coupling": BASE.replace(coupling=False),
    "no short convolution": BASE.replace(short=False),
    "one local attention layer": BASE.replace(mixer="beam,beam,attention,beam", context=64),
    "one matrix layer": BASE.replace(mixer="beam,beam,topological,beam", key_width=28),
    "one addressed layer": BASE.replace(mixer="beam,beam,addressed,beam", key_width=28),
    "two addressed layers": BASE.replace(mixer="beam,addressed,beam,addressed", key_width=28),
}
# And its form with a matrix per head.
MATRIX_ABLATIONS = {
    "matrix: no rotation": MATRIX.replace(rotation=False, value_width=54),
    "matrix: stride 4": MATRIX.replace(stride=4),
    "matrix: no coupling": MATRIX.replace(coupling=False),
    "matrix: no short convolution": MATRIX.replace(short=False),
    "matrix: key width 16": MATRIX.replace(key_width=16, value_width=38),
    "matrix: key width 64": MATRIX.replace(key_width=64, value_width=19),
    "matrix: 16 heads": MATRIX.replace(heads=16, key_width=6, value_width=7),
}
# Ways of training, each a change to `Training`.
TRAININGS: dict[str, dict[str, Any]] = {
    "no dropout": {"dropout": 0.0},
    "no dropout, weight decay 0.4": {"dropout": 0.0, "weight_decay": 0.4},
    "no dropout, weight decay 1": {"dropout": 0.0, "weight_decay": 1.0},
    "dropout 0.2": {"dropout": 0.2},
    "dropout by sequence": {"by_sequence": True},
    "windows of 64": {"window": 64},
    "windows of 1024": {"window": 1024},
    "carried state": {"carried": True},
    "steps of 2,048 bytes": {"tokens": 2048},
    "AdamW alone": {"muon": False},
    "Muon in bf16": {"muon_bf16": True},
    "short convolution from random": {"short_std": 0.3},
    "no dropout, short convolution from random": {"dropout": 0.0, "short_std": 0.3},
    "no dropout, short convolution from random, 0.6": {"dropout": 0.0, "short_std": 0.6},
    "weight decay beside the rate": {"decay_beside": True},
}
# Whether the order of the nearest systems is dropout's doing; their best rates are the TSM's.
NO_DROPOUT = {f"{name}, no dropout": SYSTEMS[name] for name in ("minGRU", "attention")}
TRAININGS |= dict.fromkeys(NO_DROPOUT, {"dropout": 0.0})
for name, spec in (
    ("minGRU", SYSTEMS["minGRU"]),
    ("one addressed layer", ABLATIONS["one addressed layer"]),
):
    started = f"{name}, no dropout, short convolution from random"
    NO_DROPOUT[started], TRAININGS[started] = spec, {"dropout": 0.0, "short_std": 0.3}
# enwik8's first 10 MB in windows of 1,024, the loss that of the 500 KB after them.
ENWIK8 = {
    f"enwik8: {name}": {TSM: BASE, **ABLATIONS}[name]
    for name in (TSM, "one addressed layer", "two addressed layers", "one local attention layer")
}
TRAININGS |= dict.fromkeys(
    ENWIK8, {"corpus": "enwik8", "window": 1024, "short_std": 0.3, "times": 2}
)
SPECS = {**SYSTEMS, **ABLATIONS, **MATRIX_ABLATIONS, **NO_DROPOUT, **ENWIK8}
EVERY = list(dict.fromkeys([*SPECS, *TRAININGS]))
# An optimizer and a number of steps have best rates of their own, as a system has.
TUNED = {*SYSTEMS, "steps of 2,048 bytes", "AdamW alone"}
RATES = (0.01, 0.02)  # to begin with, of Muon; AdamW's is a fraction of it
ADAM_FRACTION = 0.15
SEEDS = (0, 1, 2)
STEPS, TOKENS, WINDOW, WARMUP, DECAY = 400, 4096, 256, 20, 0.5  # TOKENS: of a step
PRECISION = "bf16"  # of matrix products in training; validation is in fp32
AVERAGE_DECAY = 0.98
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    arguments = _parse()
    if not arguments.table:
        context = multiprocessing.get_context("spawn")
        with context.Pool(arguments.workers, maxtasksperchild=1) as pool:
            # In this order the ablations, which want the TSM's best rate, find it.
            how = arguments.steps, SEEDS[: arguments.seeds], arguments.out
            names = arguments.only or [name for name in EVERY if name not in ENWIK8]
            jobs = [(name, *how) for name in names]
            for _ in pool.imap_unordered(_measure, jobs):
                pass
    results = read(arguments.out)
    print(f"{table(results, [n for n in EVERY if n not in ENWIK8])}\n\n{table(results, ENWIK8)}")
    return 0


def _waiting(
    results: list[dict[str, Any]], system: str, seeds: tuple[int, ...] = SEEDS
) -> list[tuple[float, int]]:
    """(rate, seed) of the next runs of a system, as far as the results say which they are."""
    own = MATRIX_TSM if system in MATRIX_ABLATIONS else TSM
    tuned = system if system in TUNED else own
    tried = {
        r["rate"]: r["nats_per_byte"]
        for r in results
        if r["system"] == tuned and r["seed"] == SEEDS[0]
    }
    rates = RATES
    if tried.keys() >= set(RATES):
        best = min(tried, key=tried.__getitem__)
        rates = tuple(rate for rate in (best / 2, best * 2) if rate not in tried)
    if not rates:
        runs = [(best, seed) for seed in seeds]
    else:
        runs = [(rate, SEEDS[0]) for rate in rates] if tuned == system else []
    done = {(r["rate"], r["seed"]) for r in results if r["system"] == system}
    return [run for run in runs if run not in done]


def _measure(job: tuple[str, int, tuple[int, ...], Path]) -> None:
    """All runs of one system that are missing, in one process: they share their compilation."""
    system, steps, seeds, out = job
    engine = None
    while runs := _waiting(read(out), system, seeds):
        rate, seed = runs[0]
        engine = engine or _engine(system)
        found = append(out, _train(engine, system, rate, seed, steps))
        loss = found["nats_per_byte"]
        print(f"{system}: rate {rate}, seed {seed}: {loss:.4f}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Training:
    corpus: str = "shakespeare"
    window: int = WINDOW
    times: int = 1  # as many steps
    tokens: int = TOKENS  # of a step; the fewer, the more steps
    dropout: float = 0.1
    weight_decay: float = 0.1
    by_sequence: bool = False  # one dropout mask for all tokens of a window
    carried: bool = False  # a window goes on where its row's last one ended, with its state
    muon: bool = True  # else AdamW trains the matrices too
    short_std: float = 0.0  # with which the taps of the short convolution start
    decay_beside: bool = False  # weight decay does not fall with the rate
    muon_bf16: bool = False  # its products; in fp32 as they were when most lines were measured


def _variant(system: str) -> tuple[ModelSpec, Training]:
    spec = SPECS.get(system, BASE)
    return spec, Training(**TRAININGS.get(system, {}))


def _engine(system: str) -> Any:
    import torch

    from tsm.training import model
    from tsm.training.engine_torch import Engine, xp

    spec, how = _variant(system)

    class Varied(Engine):
        carried_state: Any = None

        def _noise(self, rows: int, length: int) -> Any:
            return super()._noise(rows, 1 if how.by_sequence else length)

        def _logits(self, spec: ModelSpec, values: Any, tokens: Any, *drop: Any) -> Any:
            if not (how.carried and drop):
                return super()._logits(spec, values, tokens, *drop)
            state = self.carried_state or model.initial_state(xp, spec, len(tokens), 0)
            logits, state = model.forward(xp, spec, values, tokens, state, *drop)
            self.carried_state = {name: part.detach() for name, part in state.items()}
            return logits

    torch.set_num_threads(1)
    # Carried state is a side effect of the loss, which the compiler would not keep.
    engine = Varied(spec, how.dropout, bf16=PRECISION == "bf16", compiled=not how.carried)
    if not how.muon:
        engine.table = {n: replace(w, muon=False) for n, w in engine.table.items()}
    engine.muon_dtype = torch.bfloat16 if how.muon_bf16 else None
    return engine


def _train(engine: Any, system: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    import numpy as np

    from tsm.training import model
    from tsm.training.data import batch, fresh_windows, open_corpus
    from tsm.training.schedule import WarmupStableDecay

    spec, how = _variant(system)
    rows, steps = how.tokens // how.window, how.times * steps * TOKENS // how.tokens
    corpus, window = open_corpus(how.corpus, WINDOW), WINDOW  # of validation
    train, validation = corpus.train, corpus.validation
    if how.corpus == "enwik8":
        train, validation, window = train[:10_000_000], train[10_000_000:10_500_000], how.window

    def draw(step: int) -> np.ndarray:
        if not how.carried:
            return batch(train, seed, step, rows, how.window)
        random = np.random.default_rng(seed)  # where each row's stream starts
        starts = random.integers(0, len(train), rows) + step * how.window
        positions = (starts[:, None] + np.arange(how.window + 1)) % len(train)
        return np.asarray(train)[positions].astype(np.int64)

    warmup, average_decay = WARMUP * TOKENS // how.tokens, AVERAGE_DECAY ** (how.tokens / TOKENS)
    schedule = WarmupStableDecay(steps, warmup, DECAY, average_decay, seed)
    engine.carried_state = None
    initial = model.initialise(spec, seed)
    taps = np.random.default_rng(seed)
    for name in initial:
        if name.endswith(".short") and initial[name].shape[-1] == spec.width:  # not of `addressed`
            initial[name] = how.short_std * taps.standard_normal(initial[name].shape, np.float32)
    weights = engine.load(initial)
    average, state = engine.load(engine.save(weights)), engine.optimizer_state(weights)
    seconds = []
    for step in range(steps):
        fraction = schedule.fraction(step, {})
        settings = {
            "step": step,
            "muon_learning_rate": rate * fraction,
            "adam_learning_rate": rate * ADAM_FRACTION * fraction,
            "weight_decay": how.weight_decay / (fraction if how.decay_beside else 1),
            "clip": 1.0,
        }
        started = time.process_time()
        weights, state, average, loss, _ = engine.step(
            weights, state, average, draw(step), seed * steps + step, settings, average_decay
        )
        seconds.append(time.process_time() - started)
        if not math.isfinite(loss):
            break
    windows, rest = fresh_windows(validation, window)
    at_once = 32 * WINDOW // window

    def validate(values: Any) -> float:
        pieces = [windows[i : i + at_once] for i in range(0, len(windows), at_once)]
        total = sum(float(engine.losses(values, piece).sum()) for piece in [*pieces, rest])
        return total / (len(validation) - 1) if math.isfinite(total) else math.inf

    return {
        "system": system,
        "rate": rate,
        "seed": seed,
        "steps": steps,
        "nats_per_byte": validate(weights),
        "nats_per_byte_averaged": validate(average),
        "tokens_per_cpu_second": how.tokens / statistics.median(seconds),
        "parameters": parameter_count(spec),
        "decode_flops": _decode_flops(spec),
        "precision": PRECISION,
        "spec": spec.to_dict(),
        "training": asdict(how),
    }


def _decode_flops(spec: ModelSpec) -> float:
    """Of one generated byte, as XLA counts them."""
    import jax
    import jax.numpy as jnp

    from tsm.training import model

    values = model.initialise(spec, 0)
    state = model.initial_state(jnp, spec)
    tokens = jnp.zeros((1, 1), jnp.int32)
    step = jax.jit(lambda v, t, s: model.forward(jnp, spec, v, t, s))
    cost: Any = step.lower(values, tokens, state).compile().cost_analysis()
    return float(cost["flops"])


def best(results: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    """The system's runs at its best learning rate, a seed each."""
    own = [r for r in results if r["system"] == system]
    rates = [(r["nats_per_byte"], r["rate"]) for r in own if r["seed"] == SEEDS[0]]
    return [r for r in own if r["rate"] == min(rates)[1]]


def loss(results: list[dict[str, Any]], system: str) -> float:
    return statistics.mean(r["nats_per_byte"] for r in best(results, system))


def table(results: list[dict[str, Any]], systems: Iterable[str] = EVERY) -> str:
    lines = ["| system | nats/byte | spread |", "| --- | --- | --- |"]
    measured = {r["system"] for r in results}
    for system in sorted(measured.intersection(systems), key=lambda s: loss(results, s)):
        losses = [r["nats_per_byte"] for r in best(results, system)]
        spread = f"{statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        lines.append(f"| {system} | {statistics.mean(losses):.4f} | {spread} |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--only", nargs="*", default=[], choices=EVERY, metavar="SYSTEM")
    parser.add_argument("--steps", type=int, default=STEPS, help="default: %(default)s")
    parser.add_argument(
        "--seeds", type=int, default=len(SEEDS), help="as many of the seeds: %(default)s"
    )
    parser.add_argument("--workers", type=int, default=2, help="systems at once: %(default)s")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
