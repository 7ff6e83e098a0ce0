"""Sampling: from the logits of a byte to the byte.

    logits + bias -> penalties -> grammar's mask -> temperature -> softmax
           -> top-k -> typical -> top-p -> min-p -> draw

Each filter sees the probabilities that the one before it left, renormalised. The random numbers
are those of splitmix64 by their index, so that a generator's state is one integer and any
language draws the same text.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from array import array
from bisect import bisect_left, bisect_right
from itertools import accumulate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

VOCABULARY = 256
RECENT_BYTES = 4096  # what a stream remembers of its own text: the longest penalty window
SEED_BYTES = 4  # of a random seed: ten digits can be typed again
_GOLDEN, _MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1


class SamplingError(ValueError):
    """A setting out of its range: found and wanted, in one line."""


class GrammarError(SamplingError):
    """A grammar that cannot be used, or was not fulfilled: found and wanted, in one line."""


# By setting: type, least, greatest, and what is wanted in words. Equal to the CLI's options.
RANGES: dict[str, tuple[type, float, float, str]] = {
    "temperature": (float, 0, sys.float_info.max, "a finite number, 0 or more"),
    "top_k": (int, 0, math.inf, "a whole number, 0 or more"),
    "typical_p": (float, sys.float_info.min, 1, "a number above 0, at most 1"),
    "top_p": (float, sys.float_info.min, 1, "a number above 0, at most 1"),
    "min_p": (float, 0, 1, "a number from 0 to 1"),
    "repetition_penalty": (float, 0.01, 100, "a number from 0.01 to 100"),
    "presence_penalty": (float, -100, 100, "a number from -100 to 100"),
    "frequency_penalty": (float, -100, 100, "a number from -100 to 100"),
    "penalty_window": (int, 0, RECENT_BYTES, f"a whole number, at most {RECENT_BYTES}"),
    "seed": (int, -math.inf, math.inf, "a whole number"),
}


class Sampling:
    """Settings, checked, and changed by `replace` only. Raises SamplingError.

    `seed`: the same one gives the same text; it counts modulo 2^64. None draws one, which the
    attribute `seed` then tells. `logit_bias`: what to add by byte, -inf for never. NumPy's numbers
    count as numbers.
    """

    def __init__(
        self,
        *,
        temperature: float = 0.8,
        top_k: int = 0,
        typical_p: float = 1.0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        penalty_window: int = 64,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
    ) -> None:
        self.temperature = temperature
        self.top_k = top_k
        self.typical_p = typical_p
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        self.presence_penalty = presence_penalty
        self.frequency_penalty = frequency_penalty
        self.penalty_window = penalty_window
        self.seed = int.from_bytes(os.urandom(SEED_BYTES), "little") if seed is None else seed
        for name, (kind, low, high, wanted) in RANGES.items():
            value = getattr(self, name)
            number = _number(value, kind)
            if not low <= number <= high:  # also false for nan
                raise SamplingError(f"{name}: found {value!r}, wanted {wanted}")
            setattr(self, name, number)
        self.seed &= _MASK
        checked = sorted(checked_bias(*item) for item in dict(logit_bias or {}).items())
        self.logit_bias = {byte: value for byte, value in checked if value}
        if sum(value == -math.inf for value in self.logit_bias.values()) == VOCABULARY:
            raise SamplingError("logit_bias: every byte excluded, wanted at least one left")
        self._bias = array("f", bytes(4 * VOCABULARY))
        for byte, value in self.logit_bias.items():
            self._bias[byte] = value
        self._penalises = self.penalty_window > 0 and (
            (repetition_penalty, presence_penalty, frequency_penalty) != (1, 0, 0)
        )

    def replace(self, **changes: Any) -> Sampling:
        """The same settings but for `changes`."""
        return Sampling(**{**self.settings(), **changes})

    def settings(self) -> dict[str, Any]:
        """The arguments that make an equal one."""
        return {
            **{name: getattr(self, name) for name in RANGES},
            "logit_bias": dict(self.logit_bias),
        }

    def adjust(self, logits: array[float], text: bytes | bytearray) -> array[float] | None:
        """What bias and penalties add to the 256 logits after `text`; None: nothing.

        A byte that stands n times among the last `penalty_window` loses presence_penalty
        + n * frequency_penalty, after its logit has been divided by repetition_penalty, or
        multiplied where it is negative.
        """
        if not self._penalises:
            return self._bias if self.logit_bias else None
        adjust = array("f", self._bias)
        window = text[-self.penalty_window :]
        for byte in set(window):
            logit = biased = logits[byte] + adjust[byte]
            if biased > 0:
                logit = biased / self.repetition_penalty
            elif biased < 0:
                logit = biased * self.repetition_penalty
            logit -= self.presence_penalty + self.frequency_penalty * window.count(byte)
            adjust[byte] = logit - logits[byte]
        return adjust


def checked_bias(byte: int, value: float) -> tuple[int, float]:
    """A byte, and a number to add to its logit. Raises SamplingError unless they are."""
    index, number = _number(byte, int), _number(value, float)
    if not 0 <= index < VOCABULARY:
        raise SamplingError(f"logit_bias: found byte {byte!r}, wanted 0 to {VOCABULARY - 1}")
    if not (-1000 <= number <= 1000 or number == -math.inf):
        raise SamplingError(f"logit_bias: found {value!r}, wanted -1000 to 1000, or -inf")
    return int(index), number


def _number(value: Any, kind: type) -> float:
    """The value as an int or a float, whatever its own type; nan where it is no such number."""
    if isinstance(value, bool) or not hasattr(value, "__index__" if kind is int else "__float__"):
        return math.nan
    try:
        return operator.index(value) if kind is int else float(value)
    except (TypeError, OverflowError):
        return math.nan


def uniform(seed: int, index: int) -> float:
    """The number of this index, 0 or more, from splitmix64 of this seed: in [0, 1)."""
    z = (seed + (index + 1) * _GOLDEN) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def draw(
    logits: Sequence[float],
    adjust: Sequence[float] | None,
    temperature: float,
    top_k: int,
    typical_p: float,
    top_p: float,
    min_p: float,
    uniform: float,
) -> int:
    """The byte at `uniform`, in [0, 1), of the filtered distribution, likeliest bytes first and
    equals by value; at temperature 0 the likeliest. `adjust` is added to the logits; -inf excludes
    a byte, and one must be left. 0 switches top_k and min_p off, 1 typical_p and top_p."""
    if adjust is not None:
        logits = [a + b for a, b in zip(logits, adjust)]
    if temperature == 0:
        return max(range(len(logits)), key=logits.__getitem__)
    order = sorted(range(len(logits)), key=logits.__getitem__, reverse=True)
    best = logits[order[0]]
    powers = [(logits[i] - best) / temperature for i in order[: top_k or None]]
    weights = [math.exp(power) for power in powers]
    while not weights[-1]:
        weights.pop()
    if typical_p < 1:
        # By the distance of the surprise, -log p, from its mean, the entropy. log p is the power,
        # but for a constant.
        mean = _sums(w * power for w, power in zip(weights, powers))[-1] / _sums(weights)[-1]
        nearest = sorted(range(len(weights)), key=lambda i: abs(powers[i] - mean))
        typical = sorted(nearest[: _reaching(_sums(weights[i] for i in nearest), typical_p)])
        order, weights = [order[i] for i in typical], [weights[i] for i in typical]
    least = min_p * weights[0]
    sums = _sums(weights)
    if top_p < 1:
        del sums[_reaching(sums, top_p) :]
    while weights[len(sums) - 1] < least:
        sums.pop()
    return order[min(bisect_right(sums, uniform * sums[-1]), len(sums) - 1)]


def _sums(values: Iterable[float]) -> list[float]:
    """Of the first, the first two and so on. Not `sum`, which since Python 3.12 rounds less."""
    return list(accumulate(values))


def _reaching(sums: list[float], share: float) -> int:
    """How many of the first values reach this share of them all together."""
    return bisect_left(sums, share * sums[-1]) + 1


def log_probabilities(logits: Sequence[float]) -> list[float]:
    """Of each byte, in nats, as the model itself has it: before bias, penalties and temperature."""
    best = max(logits)
    total = math.log(sum(math.exp(logit - best) for logit in logits)) + best
    return [logit - total for logit in logits]


def nats(logits: Sequence[float], data: bytes) -> tuple[Sequence[float], Sequence[float]]:
    """How surprising each byte of `data` is, -log of the probability that 256 logits each, row
    after row, give it; and how surprising a byte is there on average, the entropy."""
    values, entropy = [], []
    for row, byte in enumerate(data):
        each = log_probabilities(logits[row * VOCABULARY : (row + 1) * VOCABULARY])
        values.append(-each[byte])
        entropy.append(-sum(math.exp(value) * value for value in each))
    return values, entropy
