"""Writes docs/comparison.md and its plots from the results that the benchmarks have left.

    python benchmarks/comparison.py

The files *.jsonl beside this one are what it reads; each line names its machine and date, and so do
the tables. A benchmark that has not run has no section.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cost
import quality
import recall
import schedules
from results import read

DOCS = Path(__file__).parent.parent / "docs"
KINDS = ("eager", "fused")  # of attention: with all its scores in memory, and without
STYLES = [("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "x"), ("--", "v"), (":", "P")]


def main() -> int:
    results = everything()
    (DOCS / "comparison.md").write_text(page(**results))
    if any(r["kind"] == "train" for r in results["costs"]):
        plot(results["costs"], DOCS / "comparison.svg")
        plot_recall(results["recalls"], DOCS / "recall.svg")
    return 0


def everything() -> dict[str, list[dict[str, Any]]]:
    """What the benchmarks have measured so far, as `page` takes it."""
    return {
        "losses": read(quality.RESULTS),
        "costs": read(cost.RESULTS),
        "rates": schedules.alike(read(schedules.RESULTS)),
        "recalls": read(recall.RESULTS),
    }


def page(
    losses: list[dict[str, Any]],
    costs: list[dict[str, Any]],
    rates: list[dict[str, Any]],
    recalls: list[dict[str, Any]],
) -> str:
    parts = [
        "# Comparison",
        "Every system is a mixer in the same block (GPT-2 has its own), trained by the same loop "
        "on the same batches. No system sees a later byte (`tests/test_mixers.py`); the Linformer "
        "is block-causal for that. Written by `python benchmarks/comparison.py` from "
        "`benchmarks/*.jsonl`; do not edit.",
    ]
    if losses and costs and recalls:
        parts += ["## What to take from it", _summary(losses, costs)]
    if losses:
        parts += [
            "## Loss at equal parameters and tokens",
            f"Tiny Shakespeare, about {losses[0]['parameters'] / 1e6:.1f}M parameters, "
            f"{losses[0]['steps']} steps of {quality.TOKENS:,} bytes, dropout 0.1; loss on the "
            f"last 10% in fresh windows of {quality.WINDOW}; mean and standard deviation of "
            f"{len(quality.SEEDS)} seeds, each system at its own best learning rate. "
            f"`python benchmarks/quality.py`; {_where(losses)}",
            quality.table(losses, quality.SYSTEMS),
            "### What the TSM is made of",
            "One thing changed, at equal parameters.",
            quality.table(losses, ["TSM", *quality.ABLATIONS, quality.MATRIX_TSM]),
            "### On enwik8",
            "The first 10 MB in windows of 1,024, 800 steps; the loss of the 500 KB after them.",
            quality.table(losses, quality.ENWIK8),
            "### How it is trained",
            "The same number of bytes; the TSM unless another system is named. Dropout and more "
            "weight decay harm where a text is seen 1.6 times, as here; on more passes weight "
            "decay helps (`docs/decisions.md`). Differences below 0.005 are left out.",
            quality.table(losses, [quality.TSM, *_that_matter(losses)]),
        ]
    if rates:
        parts += [
            "## Learning-rate schedules",
            "Warm-up, constant, linear decay (wsd) is best, and least sensitive to its learning "
            "rate. Each schedule has four learning rates, the best one three seeds. "
            f"`python benchmarks/schedules.py`; {_where(rates)}",
            schedules.table(rates),
        ]
    if recalls:
        of_every_byte = recall.of_every_byte(recalls)
        parts += [
            "## Recall",
            "The share of answer bytes that are right, by distance in bytes. Attention is better "
            "within the training windows of 256, the TSM beyond them; one attention layer of two "
            "copies best. mqar is associative recall of 8 pairs. Two layers, one learning rate, "
            f"{recall.CONFIG.steps:,} steps, three seeds (one for 10,000 steps): what fails may "
            "succeed otherwise. "
            f"`python benchmarks/recall.py`; {_where(recalls)}",
            recall.table(of_every_byte),
            "An addressed memory, where in training the answers alone counted (`--answers`), one "
            "seed: the share of whole answers; of the bytes of mqar-64 0.95 to 0.98.",
            recall.answers_table(recalls),
            "![The share of whole answers by distance](recall.svg)",
        ]
    if costs:
        parts += [
            "## Cost by length",
            "13.6M parameters (GPT-2 Small: 124M), fp32, PyTorch on one thread, in processor time. "
            "The exponent is that of the time from 1,000 bytes on: 1 is linear. "
            f"`python benchmarks/cost.py`; {_where(costs)}",
            "### Training: tokens/s (MB above the weights), by window",
            cost.table(costs, "train"),
            "![Tokens per second and memory by length](comparison.svg)",
            "### Generating: ms a byte (MB of state), by position",
            "Attention's cache is copied at every byte here. Engines made for it do not: "
            "`benchmarks/results.md` compares llama.cpp.",
            cost.table(costs, "decode"),
        ]
        if any(r["kind"] == "gpu" for r in costs):
            parts += [
                "### Training on an H100: tokens/s (MB above the weights), by window",
                "bf16, 16,384 bytes a pass, PyTorch without compilation: the fast systems wait for "
                "its launches. `python benchmarks/cost.py --kinds gpu`.",
                cost.table(costs, "gpu"),
            ]
    return "\n\n".join(parts) + "\n"


def _that_matter(losses: list[dict[str, Any]]) -> list[str]:
    """Ways of training whose loss differs from the TSM's."""
    measured = {r["system"] for r in losses} - {*quality.ENWIK8}
    of_tsm = quality.loss(losses, quality.TSM)
    names = measured.intersection(quality.TRAININGS)
    return [name for name in names if abs(quality.loss(losses, name) - of_tsm) >= 0.005]


def _summary(losses: list[dict[str, Any]], costs: list[dict[str, Any]]) -> str:
    loss = {s: f"{quality.loss(losses, s):.3f}" for s in ("TSM", "minGRU", "attention", "GPT-2")}
    times, sizes = (
        [f"{cost.ratio(costs, 'train', f'attention, {kind}', 4096, n):.1f}" for kind in KINDS]
        for n in ("seconds", "peak_bytes")
    )
    state = cost.ratio(costs, "decode", "attention, eager", 4000, "state_bytes")
    return "\n".join(
        [
            f"- **Quality**: at equal size and tokens the TSM has the lowest loss: {loss['TSM']} "
            f"nats/byte, minGRU {loss['minGRU']}, attention {loss['attention']}, GPT-2 "
            f"{loss['GPT-2']}.",
            "- **Training cost** grows linearly with the window. At 4,096 bytes on a CPU attention "
            f"takes {times[0]} times the time and {sizes[0]} times the memory, fused attention "
            f"{times[1]} and {sizes[1]}.",
            "- **Generation** takes the same time and memory at any position. At 4,000 attention "
            f"keeps {state:,.0f} times the state.",
            "- **Recall**: attention is better within its window, the TSM beyond it; an addressed "
            "memory, trained for it, up to 16,384 bytes.",
        ]
    )


def _where(results: list[dict[str, Any]]) -> str:
    """The makers of the machines, which the lines of the results have whole, and the dates."""
    machines = {r["machine"].split(",")[0] for r in results}
    dates = sorted({r["date"] for r in results})
    return f"{'; '.join(sorted(machines))}; {' to '.join(dict.fromkeys((dates[0], dates[-1])))}."


def plot(costs: list[dict[str, Any]], path: Path) -> None:
    """Speed and memory of a training step by length; told apart without colour."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for system, (line, mark) in zip(cost.SYSTEMS, STYLES * 2, strict=False):
        runs = [r for r in costs if (r["kind"], r["system"]) == ("train", system)]
        runs = sorted((r for r in runs if "failed" not in r), key=lambda r: r["length"])
        lengths = [r["length"] for r in runs]
        style = _style(line, mark)
        axes[0].plot(lengths, [r["length"] / r["seconds"] for r in runs], label=system, **style)
        axes[1].plot(lengths, [r["peak_bytes"] / 1e6 for r in runs], label=system, **style)
    for axis, title in zip(axes, ("tokens/s", "MB above the weights"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="window, bytes", title=title)
    axes[0].legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def plot_recall(recalls: list[dict[str, Any]], path: Path) -> None:
    """The share of whole answers by distance, of runs whose answers alone counted."""
    figure, axis = _pyplot().subplots(figsize=(7, 4), layout="constrained")
    groups = recall.of_answers(recalls).items()
    for (key, shares), (line, mark) in zip(groups, STYLES * 2, strict=False):
        name = f"{key[0]}, {key[1]}, windows of {key[-1]}"
        axis.plot([*shares], [*shares.values()], label=name, **_style(line, mark))
    axis.set(xscale="log", xlabel="distance, bytes", ylabel="whole answers")
    axis.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tsm"  # the same results, the same file
    from matplotlib import pyplot

    return pyplot


def _style(line: str, mark: str) -> dict[str, Any]:
    return {"linestyle": line, "marker": mark, "color": "black", "markersize": 4}


if __name__ == "__main__":
    sys.exit(main())
