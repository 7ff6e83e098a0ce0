"""Keys that completion saves, against a trigram model of words, on text held out from both.

    python benchmarks/completion.py --prepare    # writes the texts, trains and exports
    python benchmarks/completion.py              # measures; wants nltk from PyPI
    python benchmarks/completion.py --table      # what has been measured
    python benchmarks/completion.py --fit        # how much of the probability a repetition gets

A text is typed key by key. Where a completion of the word is shown and right, one key takes it; the
keystroke saving rate is 1 - keys / characters. Precision: of the completions shown, a new one with
each key, how many are right. Both systems have learned the same text, complete the same words,
and are shown from a threshold of probability on. What --prepare trains is trained for this
benchmark; on Tiny Shakespeare the shipped model is measured.

The sweep takes a completion at each place of the text; the keys of any threshold follow from these.
The default threshold is typed again, to the clock, and once more with a typing error, of a fixed
seed, in one word of ten: an error stays unless a completion that replaces it is taken.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import exp
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from completion_corpora import CORPORA
from ngram import LAST_WORD, Trigrams
from results import append, read
from rich.progress import track

from tsm.runtime import Model, load
from tsm.runtime.complete import (
    CANDIDATES,
    HISTORY_BYTES,
    REPEATED,
    THRESHOLD,
    Completer,
    _repeated,
)

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "completion"
SHIPPED = ROOT / "runtime" / "shakespeare-int8.tflite"
TRAINED = {  # by corpus: what else train.py is told
    "python": ("--preset", "medium", "--batch", "16", "--steps", "2600"),
    "debian": ("--preset", "small", "--batch", "8", "--steps", "6000"),
}
RESULTS = Path(__file__).with_suffix(".jsonl")
PASSAGES, PASSAGE_CHARACTERS = 8, 1250
BEFORE_CHARACTERS = 20_000  # of the text before a passage
THRESHOLDS = [0.03, *(n / 20 for n in range(1, 20))]
SHOWN = (0.1, 0.5, 0.9)  # in the table
PRECISIONS = (0.6, 0.7)  # at which the systems are compared
ERROR_RATE, ERROR_CHARACTERS = 0.1, 3  # of words, of so many characters at least
SEED = 0
FIT_BYTES = 40_000

ROWS = {
    "tsm_typed": "TSM, default threshold",
    "tsm_mistyped": "TSM, with typing errors",
    "trigrams_typed": "trigrams, their best threshold",
    "trigrams_mistyped": "trigrams, with typing errors",
}

Suggestion = tuple[str, float, int]  # text, probability, characters replaced
Suggest = Callable[[str], "list[Suggestion]"]  # after a text; those that save most keys first


@dataclass
class Count:
    """What typing a text has cost."""

    characters: int = 0  # keys without completion
    keys: int = 0
    shown: int = 0
    right: int = 0

    @property
    def saved(self) -> float:
        return 1 - self.keys / self.characters

    @property
    def precision(self) -> float:
        return self.right / self.shown if self.shown else 1.0


def main() -> int:
    arguments = _parse()
    if arguments.fit:
        for name in TRAINED:
            print(name, *fit(name, arguments.runs))
        return 0
    if arguments.table:
        print(table(read(arguments.out)))
        return 0
    for name in arguments.corpora:
        if arguments.prepare:
            prepare(name, arguments.runs)
        else:
            found = measure(name, arguments)
            print(shown(append(arguments.out, found)))
    return 0


def prepare(name: str, runs: Path) -> None:
    """Writes what is learned from, trains on it, and exports the model."""
    if name not in TRAINED:
        return
    runs.mkdir(parents=True, exist_ok=True)
    folder, (text, held_out) = runs / name, texts_of(name, runs)
    for path, part in zip((text, held_out), CORPORA[name](), strict=True):
        path.write_bytes(part)
    train = ("training/train.py", "--data", text, "--out", folder, *TRAINED[name], "--compiled")
    for script in (
        (*train, "--patience", "0", "--no-export"),
        ("export/to_onnx.py", folder / "model.safetensors"),
    ):
        subprocess.run([sys.executable, *map(str, script)], cwd=ROOT, check=True)


def texts_of(name: str, runs: Path) -> tuple[Path, Path]:
    """What is learned from, and what is held out: as they were when the model was trained."""
    return runs / f"{name}.txt", runs / f"{name}-held-out.txt"


def fit(name: str, runs: Path) -> Iterator[str]:
    """By how many bytes at least are alike: the part of the probability of the byte that repeats
    the text under which the text is likeliest, by expectation maximization. Of text that the model
    has not learned: the tenth that train.py holds out."""
    learned = texts_of(name, runs)[0].read_bytes()
    text = learned[len(learned) * 9 // 10 :][:FIT_BYTES]
    with load(runs / name / "model-int8.onnx") as model:
        logits = model.engine.logits_of(text)
    pairs: dict[int, list[tuple[float, bool]]] = {least: [] for least, _ in REPEATED}
    for at in range(FIT_BYTES // 4, len(text)):  # what is before has little to repeat
        length, byte = _repeated(text[max(0, at - HISTORY_BYTES) : at])
        if length >= min(pairs):
            row = logits[256 * (at - 1) : 256 * at]
            total = sum(map(exp, row))  # of logits, which are small
            found = exp(row[text[at]]) / total, byte == text[at]
            pairs[max(least for least in pairs if least <= length)].append(found)
    for least, found in pairs.items():
        part = 0.3
        for _ in range(50):
            shares = [part * hit / (part * hit + (1 - part) * p) for p, hit in found]
            part = sum(shares) / len(shares)
        yield f"{least}: {part:.2f}"


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    if name in TRAINED:
        artifact = arguments.runs / name / "model-int8.onnx"
        parts = tuple(path.read_bytes() for path in texts_of(name, arguments.runs))
    else:
        artifact, parts = SHIPPED, CORPORA[name]()
    learned, held_out = (part.decode("utf-8", "replace") for part in parts)
    texts = list(passages(held_out, arguments.passages))
    trigrams = Trigrams(learned)
    rng = random.Random(SEED)
    plain = [(before, words(passage)) for before, passage in texts]
    wrong = [(before, with_errors(tokens, rng)) for before, tokens in plain]
    found: dict[str, Any] = {"corpus": name, "learned_bytes": len(learned.encode())}
    found["characters"] = sum(len(passage) for _, passage in texts)
    with load(artifact) as model:
        found["model"] = {"file": artifact.name, "sha256": model.engine.artifact.sha256}
        systems = {
            "tsm": completer(model, THRESHOLDS[0]),
            "trigrams": baseline(trigrams),
        }
        for system, suggest in systems.items():
            offers = offered(texts, suggest, f"{name}, {system}")
            found[system] = sweep(texts, offers)
            if system == "tsm":
                found["tsm_punctuation"] = sweep(texts, offers, punctuation=True)
        best = max(found["trigrams"], key=lambda row: row["saved"])["threshold"]
        ours = completer(model, THRESHOLD)
        for system, text, suggest, threshold in (
            ("tsm_typed", plain, ours, THRESHOLD),
            ("tsm_mistyped", wrong, ours, THRESHOLD),
            ("trigrams_typed", plain, systems["trigrams"], best),
            ("trigrams_mistyped", wrong, systems["trigrams"], best),
        ):
            count, ms = typed(text, suggest, threshold)
            found[system] = {"threshold": threshold, **row(count), **ms}
    return found


def passages(text: str, count: int) -> Iterator[tuple[str, str]]:
    """Evenly spaced ones that begin with a line, each with some of the text before it."""
    for n in range(count):
        start = text.find("\n", n * len(text) // count) + 1
        before = text[max(0, start - BEFORE_CHARACTERS) : start]
        yield before, text[start : start + min(PASSAGE_CHARACTERS, len(text) // count)]


def completer(model: Model, threshold: float) -> Suggest:
    completes = Completer(model, threshold)

    def suggest(before: str) -> list[Suggestion]:
        completes.follow(before)
        found = completes.complete(count=CANDIDATES)
        return [(one.text, one.probability, one.replaced) for one in found]

    return suggest


def baseline(trigrams: Trigrams) -> Suggest:
    """With the same choice among as many candidates."""

    def suggest(before: str) -> list[Suggestion]:
        found = trigrams.suggest(before, CANDIDATES)
        found.sort(key=lambda one: one[1] * (len(one[0]) - 1), reverse=True)
        return [(*one, 0) for one in found]

    return suggest


def first(
    found: list[Suggestion], threshold: float, punctuation: bool = False
) -> Suggestion | None:
    """What is shown of them. punctuation: also what begins with a character of no word."""
    words = (one for one in found if punctuation or re.match(r"\w", one[0]))
    return next((one for one in words if one[1] >= threshold), None)


Offers = list[list["list[Suggestion]"]]


def offered(texts: list[tuple[str, str]], suggest: Suggest, name: str) -> Offers:
    """What is suggested at each place of each text."""
    return [
        [suggest(before + passage[:i]) for i in range(len(passage))]
        for before, passage in track(texts, name)
    ]


def sweep(
    texts: list[tuple[str, str]], offers: Offers, punctuation: bool = False
) -> list[dict[str, float]]:
    """A row for each threshold. punctuation: with what begins with a character of no word."""
    rows = []
    for threshold in THRESHOLDS:
        count = Count()
        for (_, passage), by_place in zip(texts, offers, strict=True):
            at = 0
            while at < len(passage):
                step = 1
                if found := first(by_place[at], threshold, punctuation):
                    text, _, replaced = found
                    count.shown += 1
                    ends = r"(?!\w)" if re.search(r"\w\Z", text) else r"(?=\n)"
                    if not replaced and re.match(re.escape(text) + ends, passage[at:]):
                        count.right += 1
                        step = len(text)
                count.keys += 1
                count.characters += step
                at += step
        rows.append({"threshold": threshold, **row(count)})
    return rows


def row(count: Count) -> dict[str, float]:
    return {"saved": count.saved, "precision": count.precision, "shown": count.shown}


def words(text: str) -> list[tuple[str, str]]:
    """Words and what is between them, as meant and as typed."""
    return [(piece, piece) for piece in re.findall(r"\w+|\W+", text)]


def with_errors(pieces: list[tuple[str, str]], rng: random.Random) -> list[tuple[str, str]]:
    """One of ten words has an error; those of fewer than ERROR_CHARACTERS have none."""
    short = [len(meant) < ERROR_CHARACTERS for meant, _ in pieces if LAST_WORD.fullmatch(meant)]
    rate = ERROR_RATE * len(short) / max(1, short.count(False))
    return [
        (meant, mistyped(meant, rng))
        if LAST_WORD.fullmatch(meant) and len(meant) >= ERROR_CHARACTERS and rng.random() < rate
        else (meant, meant)
        for meant, _ in pieces
    ]


def mistyped(word: str, rng: random.Random) -> str:
    """The word with one character too many, missing or wrong, or two in the wrong order."""
    while True:
        at, other = rng.randrange(len(word)), rng.choice("abcdefghijklmnopqrstuvwxyz")
        typed = rng.choice(
            [
                word[:at] + other + word[at:],
                word[:at] + word[at + 1 :],
                word[:at] + other + word[at + 1 :],
                word[:at] + word[at : at + 2][::-1] + word[at + 2 :],
            ]
        )
        if typed != word:
            return typed


def typed(
    texts: list[tuple[str, list[tuple[str, str]]]], suggest: Suggest, threshold: float
) -> tuple[Count, dict[str, float]]:
    """Types the texts; and the milliseconds from a key to what is shown then."""
    count, ms, processor_ms = Count(), [], []
    for before, pieces in track(texts, f"typing, from {threshold:.2f} on"):
        suggest(before)  # the jump there
        for meant, typed_word in pieces:
            count.characters += len(typed_word)
            at = 0
            while at < len(typed_word):
                written = typed_word[:at]
                started, computed = time.perf_counter(), time.thread_time()
                found = first(suggest(before + written), threshold)
                ms.append((time.perf_counter() - started) * 1000)
                processor_ms.append((time.thread_time() - computed) * 1000)
                count.keys += 1
                if found:
                    text, _, replaced = found
                    count.shown += 1
                    if written[: len(written) - replaced] + text == meant and replaced <= at:
                        count.right += 1
                        typed_word = meant
                        break
                at += 1
            before += typed_word
    times = {"": ms, "processor_": processor_ms}  # the latter also where others compute, too
    return count, {
        kind + name: value
        for kind, found in times.items()
        for name, value in (("median_ms", median(found)), ("p95_ms", quantiles(found, n=20)[-1]))
    }


def saved_at(rows: list[dict[str, float]], precision: float) -> float | None:
    """Keys saved at a precision, between two thresholds linearly; None: never that precise."""
    for low, high in itertools.pairwise(rows):
        if low["precision"] <= precision <= high["precision"]:
            part = (precision - low["precision"]) / (high["precision"] - low["precision"] or 1)
            return low["saved"] + part * (high["saved"] - low["saved"])
    return rows[0]["saved"] if rows[0]["precision"] > precision else None


def shown(found: dict[str, Any]) -> str:
    """The two curves, and what was typed."""
    lines = [f"{found['corpus']}, {found['characters']:,} characters"]
    lines += [
        f"{'threshold':>10}{'TSM saves':>12}{'precision':>12}{'trigrams':>12}{'precision':>12}"
    ]
    for ours, theirs in zip(found["tsm"], found["trigrams"], strict=True):
        values = [r[name] for r in (ours, theirs) for name in ("saved", "precision")]
        lines.append(f"{ours['threshold']:10.2f}" + "".join(f"{value:12.3f}" for value in values))
    for name in ROWS:
        lines.append(f"{name}: " + ", ".join(f"{n} {v:.3f}" for n, v in found[name].items()))
    return "\n".join(lines)


def table(results: list[dict[str, Any]]) -> str:
    """Two, of the latest of each corpus: at equal precision, at best and at the default threshold;
    and the curves of TSM and the trigrams."""
    latest = {found["corpus"]: found for found in results}
    lines: list[str] = []

    def add(name: str, cells: Iterable[str]) -> None:
        lines.append("| " + " | ".join([name, *cells]) + " |")

    def begin(name: str) -> None:
        add(name, latest)
        lines.append("| --- " * (len(latest) + 1) + "|")

    def against(ours: float | None, theirs: float | None) -> str:
        times = f" ({ours / theirs:.2f})" if ours and theirs else ""
        return "/".join(f"{x:.3f}" if x else "–" for x in (ours, theirs)) + times

    begin("keys saved, TSM/trigrams (times)")
    for system, what in (("tsm", ""), ("tsm_punctuation", ", with punctuation")):
        for precision in PRECISIONS:
            pairs = (
                [saved_at(found[name], precision) for name in (system, "trigrams")]
                for found in latest.values()
            )
            add(f"at precision {precision}{what}", (against(*pair) for pair in pairs))
        pairs = ((_best(found[system]), _best(found["trigrams"])) for found in latest.values())
        add(f"at its best threshold{what}", (against(*pair) for pair in pairs))
    default = THRESHOLDS.index(THRESHOLD)
    extra = {"tsm_default": "TSM with punctuation, default threshold"}
    rows = [
        {**found, "tsm_default": found["tsm_punctuation"][default]} for found in latest.values()
    ]
    for name, label in {**extra, **ROWS}.items():
        cells = (found[name] for found in rows)
        add(label, (f"{r['saved']:.3f}@{r['precision']:.2f}" for r in cells))
    cells = (found["tsm_typed"] for found in latest.values())
    add(
        "ms a key, p95 (processor)",
        (f"{r['p95_ms']:.1f} ({r['processor_p95_ms']:.1f})" for r in cells),
    )
    lines.append("")
    begin("threshold: saved@precision, TSM/trigrams")
    for i, threshold in enumerate(THRESHOLDS):
        if threshold in SHOWN:
            pairs = ([found[name][i] for name in ("tsm", "trigrams")] for found in latest.values())
            cells = (
                "/".join(f"{r['saved']:.3f}@{r['precision']:.2f}" for r in pair) for pair in pairs
            )
            add(f"{threshold:.2f}", cells)
    return "\n".join(lines)


def _best(rows: list[dict[str, float]]) -> float:
    return max(r["saved"] for r in rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prepare", action="store_true", help="train what is measured")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--runs", type=Path, default=RUNS, help="default: %(default)s")
    parser.add_argument("--passages", type=int, default=PASSAGES, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument(
        "--fit", action="store_true", help="only find the parts of what repeats the text"
    )
    parser.add_argument("--table", action="store_true", help="only print what is there")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
