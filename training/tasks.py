"""Recall tasks as bytes: texts whose answers stand earlier in the text, at a chosen distance.

    python training/tasks.py mqar --bytes 2000000 --out mqar.txt
    python training/train.py --data mqar.txt --out runs/mqar
    python training/evaluate.py runs/mqar/model.safetensors --task mqar

mqar     multi-query associative recall (Arora et al., 2023, arXiv 2312.04927): keys with their
         values, then every key once more, in another order:       aXbY......?bYaX
         of 8 pairs; mqar-4, mqar-16 and mqar-64 of as many
copying  selective copying (Gu and Dao, 2023, arXiv 2312.00752): letters at random places among
         noise, then the letters alone:                            ..d.a....f.?daf
passkey  passkey retrieval (Mohtashami and Jaggi, 2023, arXiv 2305.16300): a number in a sentence,
         irrelevant sentences, then the question for it, in words of the paper
parity   of the bits so far, which a state has to count (Grazzi et al., 2024, arXiv 2411.12537):
                                                                   0110?0
permutation  where three things are after swaps of the first two (1) or the last two (2), which do
         not commute, and of none (0):                             1021?cba

An example is one line, a function of (seed, distance) alone. Its distance, in bytes, is from the
start of what is to be remembered to the start of the question. In mqar a pair's query comes one
byte more than that after it, in the mean over the pairs. The noise is one constant byte, as in Gu
and Dao, so that little of a training text's loss is noise. A window of training should be longer
than an example; `windows` makes such, whose answers alone count.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    from by_path import PACKAGE as __package__

from ..runtime.command import Parser, needs, run_command
from ..runtime.files import written

with needs("tsm-tasks", "train"):
    import numpy as np
    from jaxtyping import Float, Int

    from .data import DataError, Text

KEYS, VALUES = b"abcdefghijklmnopqrstuvwxyz", b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MANY_KEYS = bytes(range(128, 256))  # for more pairs than there are letters
PAIRS = 8  # of mqar; the paper's fewest is 4
LETTERS, COPIED = b"abcdefghijklmnop", 8  # of copying; the paper copies 16, of a vocabulary of 16
DIGITS, PASSKEY_DIGITS = b"0123456789", 5  # of passkey, as in the paper
BITS, SWAPS, THINGS = b"01", b"012", b"abc"
REPEATED = 16, 64  # bytes of text that come again, at least and at most
KNOWN_AGAIN = 4  # bytes, after which what comes can be told
NOISE, ASK = b".", b"?"
STATEMENT = b"The pass key is "
QUESTION = b"What is the pass key? " + STATEMENT
GARBAGE = (
    b"The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
)

# Example i of a corpus has the seed corpus_seed * 2^32 + i; those of evaluation begin above all.
CORPUS_SEEDS, CORPUS_EXAMPLES = 2**31, 2**32
EVALUATION_SEED = CORPUS_SEEDS * CORPUS_EXAMPLES
SHORTEST, LONGEST = 16, 192  # distances of a corpus, for train.py's windows of 256


@dataclass(frozen=True)
class Example:
    text: bytes  # one line, with its newline
    answers: tuple[int, ...]  # positions in `text` of the bytes that only recall can give


@dataclass(frozen=True)
class Task:
    make: Callable[[int, int], Example]  # (seed, distance in bytes)
    shortest: int  # distance, bytes
    answer_bytes: int  # of an example
    alphabet: int  # as many bytes can stand at a place of an answer
    states: int = 0  # of what is tracked: whole answers there are; 0: of every byte its alphabet

    def example(self, seed: int, distance: int) -> Example:
        if distance < self.shortest:
            name = next(name for name, task in TASKS.items() if task is self)
            raise DataError(f"{name}: distance {distance} bytes, wanted at least {self.shortest}")
        return self.make(seed, distance)

    @property
    def chance_accuracy(self) -> float:
        """Of one who knows the task's form, reads nothing and guesses the whole answer."""
        return 1 / (self.states or self.alphabet**self.answer_bytes)

    @property
    def chance_nats_per_byte(self) -> float:
        return math.log(self.alphabet)


def mqar(seed: int, distance: int, count: int = PAIRS) -> Example:
    random = _random(seed, distance)
    known = KEYS if count <= len(KEYS) else MANY_KEYS
    keys = random.permutation(np.frombuffer(known, np.uint8))[:count]
    pairs = np.stack([keys, _draw(random, VALUES, count)], axis=1)  # (pairs, 2)
    shown = pairs.tobytes().ljust(distance, NOISE) + ASK
    queries = random.permutation(pairs).tobytes()
    return Example(shown + queries + b"\n", _places(len(shown) + 1, count, step=2))


def copying(seed: int, distance: int) -> Example:
    random = _random(seed, distance)
    letters = _draw(random, LETTERS, COPIED)
    shown = np.full(distance, NOISE[0], np.uint8)
    shown[np.sort(random.permutation(distance)[:COPIED])] = letters
    text = shown.tobytes() + ASK + letters.tobytes() + b"\n"
    return Example(text, _places(distance + 1, COPIED))


def passkey(seed: int, distance: int) -> Example:
    random = _random(seed, distance)
    digits = _draw(random, DIGITS, PASSKEY_DIGITS).tobytes()
    before = GARBAGE[random.integers(len(GARBAGE)) :]
    after = (b". " + GARBAGE * (distance // len(GARBAGE) + 1))[: distance - PASSKEY_DIGITS]
    text = before + STATEMENT + digits + after + QUESTION
    return Example(text + digits + b".\n", _places(len(text), PASSKEY_DIGITS))


def parity(seed: int, distance: int) -> Example:
    bits = _draw(_random(seed, distance), BITS, distance)
    answer = bytes([BITS[bits.tobytes().count(BITS[1]) % 2]])
    return Example(bits.tobytes() + ASK + answer + b"\n", (distance + 1,))


def permutation(seed: int, distance: int) -> Example:
    swaps, order = _draw(_random(seed, distance), SWAPS, distance), bytearray(THINGS)
    for swap in swaps.tobytes():
        place = SWAPS.index(swap)
        order[max(0, place - 1) : place + 1] = order[max(0, place - 1) : place + 1][::-1]
    text = swaps.tobytes() + ASK + bytes(order) + b"\n"
    return Example(text, _places(distance + 1, len(THINGS)))


def mqar_of(pairs: int) -> Task:
    return Task(functools.partial(mqar, count=pairs), 2 * pairs, pairs, len(VALUES))


TASKS = {
    "mqar": mqar_of(PAIRS),
    "copying": Task(copying, COPIED, COPIED, len(LETTERS)),
    "passkey": Task(passkey, PASSKEY_DIGITS + 2, PASSKEY_DIGITS, len(DIGITS)),
    "mqar-4": mqar_of(4),
    "mqar-16": mqar_of(16),
    "mqar-64": mqar_of(64),
    "parity": Task(parity, 1, 1, len(BITS)),
    "permutation": Task(permutation, 1, len(THINGS), len(THINGS), states=6),
}


def repetition(text: Text) -> Task:
    """A stretch of this text (bytes), more of it, and the stretch again, which from then on can be
    told. Of a text too short for a distance, what there is again and again."""

    def make(seed: int, distance: int) -> Example:
        random = _random(seed, distance)
        count = int(random.integers(REPEATED[0], min(distance, REPEATED[1]) + 1))
        start = int(random.integers(len(text)))
        stretch = np.asarray(text[start : start + distance], np.uint8)
        shown = np.resize(stretch, distance).tobytes()
        answers = range(distance + KNOWN_AGAIN, distance + count)
        return Example(shown + shown[:count] + b"\n", tuple(answers))

    return Task(make, REPEATED[0], REPEATED[1] - KNOWN_AGAIN, 256)


def practice(text: Text) -> list[Task]:
    """What train.py's --recall mixes into a text."""
    return [TASKS["mqar-4"], TASKS["mqar"], TASKS["copying"], TASKS["passkey"], repetition(text)]


def corpus(task: str, size: int, seed: int = 0, longest: int = LONGEST) -> bytes:
    """Whole examples, together at least `size` bytes; as many of distances 16 to 32 as of 32 to
    64 and so on up to `longest`."""
    text = bytearray()
    for example in _corpus_examples(task, seed, longest):
        if len(text) >= size:
            break
        text += example.text
    return bytes(text)


def windows(
    practised: Sequence[Task], seed: int, step: int, rows: int, window: int
) -> tuple[Int[np.ndarray, "rows {window}+1"], Float[np.ndarray, "rows {window}"]]:
    """Training windows number `step`: whole examples of these tasks, those that fit, at distances
    log-uniform from a task's shortest on, and what each target counts: an answer's bytes alone,
    together as much as the bytes of a window of text. A function of its arguments. Raises DataError
    where none fits."""
    random = _random(seed, step)
    tokens = np.full((rows, window + 1), NOISE[0], np.int64)
    counts = np.zeros((rows, window), np.float32)
    row, end, refused = 0, 0, 0
    while row < rows:
        task = practised[int(random.integers(len(practised)))]
        longest = max(task.shortest, window)
        distance = int(math.exp(random.uniform(math.log(task.shortest), math.log(longest))))
        number = int(random.integers(EVALUATION_SEED))
        example = task.example(number, max(task.shortest, distance))
        if len(example.text) > window + 1:
            refused += 1
            if refused == 1000:
                wanted = len(example.text) - 1
                raise DataError(f"window of {window} bytes, wanted {wanted} for passages to recall")
            continue
        refused = 0
        if end + len(example.text) > window + 1:
            row, end = row + 1, 0
        if row < rows:
            tokens[row, end : end + len(example.text)] = list(example.text)
            counts[row, np.array(example.answers) + end - 1] = 1
            end += len(example.text)
    return tokens, counts * (window / counts.sum(axis=1, keepdims=True))


def evaluation_examples(task: str, distance: int, count: int) -> list[Example]:
    """Always the same; none has the seed of an example of a corpus."""
    return [TASKS[task].example(EVALUATION_SEED + i, distance) for i in range(count)]


def _corpus_examples(task: str, seed: int, longest: int) -> Iterator[Example]:
    if not 0 <= seed < CORPUS_SEEDS:
        raise DataError(f"corpus seed {seed}, wanted 0 to {CORPUS_SEEDS - 1}")
    shortest = max(SHORTEST, TASKS[task].shortest)
    if longest < shortest:
        raise DataError(f"longest distance {longest} bytes, wanted at least {shortest}")
    for number in range(seed * CORPUS_EXAMPLES, (seed + 1) * CORPUS_EXAMPLES):
        spread = _random(number, 0).uniform(math.log(shortest), math.log(longest + 1))
        yield TASKS[task].example(number, int(math.exp(spread)))


def _random(seed: int, distance: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=np.array([seed, distance], np.uint64)))


def _draw(random: np.random.Generator, alphabet: bytes, count: int) -> np.ndarray:
    return np.frombuffer(alphabet, np.uint8)[random.integers(len(alphabet), size=count)]


def _places(first: int, count: int, step: int = 1) -> tuple[int, ...]:
    return tuple(range(first, first + count * step, step))


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        arguments = _parse(argv)
        text = corpus(arguments.task, arguments.bytes, arguments.seed, arguments.longest)
        with written(arguments.out) as file:
            file.write(text)
        report = {
            "task": arguments.task,
            "out": str(arguments.out),
            "bytes": len(text),
            "examples": text.count(b"\n"),
        }
        if arguments.json:
            print(json.dumps(report))
        else:
            print("{out}: {examples:,} examples of {task}, {bytes:,} bytes".format(**report))

    return run_command("tsm-tasks", work, DataError)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser("tsm-tasks", __doc__)
    parser.add_argument("task", choices=TASKS, help="what is to be recalled")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--bytes", type=int, default=1_000_000, help="of the file, at least")
    parser.add_argument(
        "--longest",
        type=int,
        default=LONGEST,
        help="bytes between a question and what it asks for, at most",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help=f"another text for each, 0 to {CORPUS_SEEDS - 1}",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args(argv)
    if arguments.bytes < 1:
        parser.error("--bytes wants at least 1")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
