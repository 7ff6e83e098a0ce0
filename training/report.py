"""A run on one page, report.html in its folder: curves, samples, what surprises it, settings.

    python training/report.py runs/mine

train.py writes it at its end. The page has all that it shows in itself.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from ..runtime.command import Parser, needs, run_command
from ..runtime.files import written

with needs("tsm-report", "train"):
    import jinja2
    import numpy as np

    from .checkpoint import load_model
    from .config import RunError
    from .corpora import sha256
    from .data import text_at
    from .run import MODEL, RECORD, read_best, seconds_taken
    from .sample import surprise
    from .spec import SpecError
    from .view import duration

REPORT = "report.html"
POINTS = 400  # of a curve
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 44, 24  # of a chart
TICKS = 5
SAMPLES = 5
PASSAGE_BYTES = 800
FULL_NATS = 6.0  # a character, from which the colour is full


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        parser = Parser("tsm-report", __doc__)
        parser.add_argument("run", type=Path, help="the folder of a run, --out of train.py")
        print(write(parser.parse_args(argv).run))

    return run_command("tsm-report", work, RunError, SpecError)


def write(out: Path) -> Path:
    """The report of the run in a folder, from its files. Raises RunError, SpecError or OSError."""
    path = out / REPORT
    environment = jinja2.Environment(autoescape=True, loader=jinja2.FileSystemLoader(_HERE))
    page = environment.get_template(REPORT).render(_content(out))
    with written(path) as file:
        file.write(page.encode())
    return path


_HERE = Path(__file__).parent


def _content(out: Path) -> dict[str, Any]:
    best = read_best(out / RECORD)
    if not best:
        raise RunError(f"{out}: no {RECORD} in it, wanted the folder of a run")
    try:
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_bytes().splitlines()]
        seconds = seconds_taken(out)
        train = [line for line in lines if line["kind"] == "train"]
        validation = [line for line in lines if line["kind"] == "validation"]
        steps = [line["step"] for line in train]
        losses = {
            "training": (steps, [line["loss"] for line in train]),
            "validation": (
                [line["step"] for line in validation],
                [line["nats_per_byte"] for line in validation],
            ),
        }
        original = [line for line in lines if line["kind"] == "original"]
        if original:
            losses["validation of the text it came from"] = (
                [line["step"] for line in original],
                [line["nats_per_byte"] for line in original],
            )
        rates = {"": (steps, [line["rate"] for line in train])}
        passage, no_passage = _passage(out, best)
        return {
            "title": f"Training of {out.resolve().name}",
            "outcome": f"{best['validation_nats_per_byte']:.4f} nats a byte on held-out text at "
            f"step {best['step']}, {best['parameters']:,} parameters, {duration(seconds)}.",
            "planned": _planned(best, train, seconds),
            "loss": _chart("nats a byte, by step", losses),
            "rate": _chart("part of its peak, by step", rates),
            "samples": _spaced([(x["step"], x["sample"]) for x in validation if "sample" in x]),
            "passage": passage,
            "no_passage": no_passage,
            "full": f"{FULL_NATS:g}",
            "facts": _facts(best),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{out}: not the files of a run ({error!r}), wanted those of train.py"
        ) from None


def _planned(best: dict[str, Any], train: list[dict], seconds: float) -> list[tuple[str, ...]]:
    plan = best.get("plan")
    if not plan:
        return []
    speed = 1 / np.mean([1 / line["tokens_per_second"] for line in train])
    rows = [
        ("training", duration(plan["seconds"]), duration(seconds)),
        ("bytes a second", f"{plan['tokens_per_second']:,.0f}", f"{speed:,.0f}"),
    ]
    if plan["nats_per_byte"]:
        found = best["validation_nats_per_byte"]
        rows.append(("nats a byte, held out", f"{plan['nats_per_byte']:.2f}", f"{found:.2f}"))
    return rows


def _facts(best: dict[str, Any]) -> list[tuple[str, Any]]:
    config = {n: v for n, v in best["config"].items() if v not in ("", 0, False)}
    facts = {
        "command": best["command"],
        "documents": best.get("documents"),
        "machine": best["machine"],
        "threads": best["threads"],
        "parameters": f"{best['parameters']:,}",
        "SHA-256 of the text": best["data_sha256"],
        **{name.replace("_", " "): value for name, value in config.items()},
    }
    return [(name, value) for name, value in facts.items() if value]


def _passage(out: Path, best: dict[str, Any]) -> tuple[list[tuple[str, str, str]], str]:
    """(character, nats, heat) of a part of the held-out text; or none, and why."""
    data = best.get("data") or {}
    path = Path(data.get("path", ""))
    if not path.is_file():
        return [], "The text is no longer where it was."
    if sha256(path) != best["data_sha256"]:
        return [], "The text has changed since."
    held_out = text_at(path)[data["train_bytes"] :][: data["validation_bytes"]]
    start = max(0, len(held_out) // 2 - PASSAGE_BYTES)
    part = np.asarray(held_out[start : start + 2 * PASSAGE_BYTES]).tobytes()
    line = part.find(b"\n", 0, PASSAGE_BYTES) + 1  # 0, where none begins
    passage = np.frombuffer(part[line : line + PASSAGE_BYTES], np.uint8)
    nats = surprise(*load_model(out / MODEL), passage)
    shown, at = [], 0
    for character in passage[1:].tobytes().decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        value = float(nats[at : at + size].sum())
        at += size
        visible = character.encode("utf-8", "replace").decode() if character.isprintable() else "·"
        visible = "↵\n" if character == "\n" else visible
        shown.append((visible, f"{value:.2f}", f"{min(value / FULL_NATS, 1):.2f}"))
    return shown, ""


def _spaced(samples: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """The first, the last, and some between whose steps grow by a factor."""
    if len(samples) <= SAMPLES:
        return samples
    chosen = np.geomspace(1, len(samples), SAMPLES).round().astype(int) - 1
    return [samples[i] for i in dict.fromkeys(chosen.tolist())]


def _chart(name: str, series: dict[str, tuple[list[int], list[float]]]) -> dict[str, Any]:
    """A chart of lines: their points, and ticks with their labels, in the units of the SVG."""
    x_ticks = _ticks([x for steps, _ in series.values() for x in (0, *steps)])
    y_ticks = _ticks([y for _, values in series.values() for y in values])
    right = WIDTH - 16

    def x_of(step: float) -> float:
        return round(LEFT + (right - LEFT) * step / x_ticks[-1], 1)

    def y_of(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(8 + (HEIGHT - BOTTOM - 12) * (1 - share), 1)

    lines = []
    for number, (label, (steps, values)) in enumerate(series.items()):
        parts = range(min(len(steps), POINTS))
        means = [[np.array_split(x, len(parts))[i].mean() for x in (steps, values)] for i in parts]
        points = " ".join(f"{x_of(x)},{y_of(y)}" for x, y in means)
        lines.append({"name": label, "points": points, "style": number})
    return {
        "name": name,
        **{"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": right, "lines": lines},
        "x_ticks": [(x_of(x), f"{x:,.10g}") for x in x_ticks],
        "y_ticks": [(y_of(y), f"{y:.3g}") for y in y_ticks],
    }


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, the values between the first and the last of them."""
    low, high = min(values, default=0), max(values, default=1)
    rough = (high - low or 1.0) / TICKS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = scale * next(factor for factor in (1, 2, 5, 10) if factor * scale >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]


if __name__ == "__main__":
    sys.exit(main())
