"""What each part of the fast training step is worth: tokens a second of whole steps.

    python benchmarks/step.py

Each variant adds one thing to the one before it and runs in a fresh process, on one thread, whose
own processor time counts, so that neighbours matter little; the whole list is gone through
`--rounds` times, and the median of all steps counts. The loss of the last step shows that
nothing was bought with quality: it differs by the noise of dropout alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from results import append, read

VARIANTS = ["eager fp32", "eager bf16", "+ a scan of its own", "+ pages kept"]
VARIANTS += ["+ dropout from bytes", "+ compiled", "+ Muon in bf16"]
STEPS, SKIPPED = 10, 3
BATCH, WINDOW, DROPOUT = 16, 256, 0.2
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    arguments = _parse()
    if arguments.one:
        print(json.dumps(_measure(VARIANTS.index(arguments.one))))
        return 0
    for _ in range(arguments.rounds):
        for variant in VARIANTS:
            command = [sys.executable, __file__, "--one", variant]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            found = json.loads(run.stdout.splitlines()[-1])
            print(append(RESULTS, {"variant": variant, **found}), file=sys.stderr)
    print(table(read(RESULTS)))
    return 0


def _measure(level: int) -> dict[str, Any]:
    import torch

    from tsm.training import engine_torch, model
    from tsm.training.data import batch, open_corpus
    from tsm.training.mixers import primitives
    from tsm.training.spec import PRESETS

    class PlainDropout(engine_torch.Engine):
        def _noise(self, rows: int, length: int) -> Any:
            return None

        def _loss(self, values: Any, tokens: Any, noise: Any, *_: Any) -> Any:
            drop = lambda x: torch.nn.functional.dropout(x, self.dropout)  # noqa: E731
            with self.cast:
                logits = self._logits(self.spec, values, tokens[:, :-1], drop)
            return model.loss(engine_torch.xp, logits.float(), tokens[:, 1:]).mean()

    if level < 2:
        primitives.LONG_SCAN = WINDOW + 1  # rounds of doubling instead
    if level < 3:
        engine_torch._keep_pages = lambda: None
    torch.set_num_threads(1)
    kind = PlainDropout if level < 4 else engine_torch.Engine
    spec, corpus = PRESETS["shakespeare"], open_corpus("shakespeare", WINDOW)
    engine = kind(spec, DROPOUT, bf16=level > 0, compiled=level > 4)
    if level < 6:
        engine.muon_dtype = None
    weights = engine.load(model.initialise(spec, 0))
    average, state = engine.load(engine.save(weights)), engine.optimizer_state(weights)
    seconds, loss = [], 0.0
    for step in range(STEPS):
        settings = {"step": step, "muon_learning_rate": 0.02, "adam_learning_rate": 0.003}
        settings |= {"weight_decay": 0.1, "clip": 1.0}
        tokens = batch(corpus.train, 0, step, BATCH, WINDOW)
        started = time.process_time()
        weights, state, average, loss, _ = engine.step(
            weights, state, average, tokens, step, settings, 0.9
        )
        seconds.append(time.process_time() - started)
    rate = BATCH * WINDOW / statistics.median(seconds[SKIPPED:])
    return {"tokens_per_second": rate, "loss": loss, "first_seconds": seconds[0]}


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| variant | tokens/CPU s | of eager bf16 | loss |", "| --- | --- | --- | --- |"]

    def median(variant: str, name: str) -> float:
        return statistics.median(r[name] for r in results if r["variant"] == variant)

    base = median("eager bf16", "tokens_per_second")
    for variant in VARIANTS:
        rate, loss = median(variant, "tokens_per_second"), median(variant, "loss")
        lines.append(f"| {variant} | {rate:,.0f} | {rate / base:.2f} | {loss:.3f} |")
    return "\n".join(lines)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--one", choices=VARIANTS, help="inner call")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
