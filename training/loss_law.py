"""What loss to expect of a model before it is trained.

    nats a byte = SCALE ngram tokens^-TOKENS parameters^-PARAMETERS

ngram: the loss of an n-gram model, which takes a second to count, on the same held-out text: it
tells one text from another. tokens: those read, where a reading of what has been read counts ever
less (Muennighoff et al., 2023, arXiv 2305.16264, equation 5). `benchmarks/loss_law.py` fitted the
numbers to this project's own runs, benchmarks/loss_law.jsonl, and tells how far off it is.
"""

from __future__ import annotations

import math

import numpy as np

from .data import Corpus

SCALE, TOKENS, PARAMETERS, EPOCHS = 3.650, 0.086, 0.020, 5.0
ORDER = 3  # bytes before the one that is predicted
COUNTED_BYTES, SCORED_BYTES = 1_000_000, 100_000


def expected_loss(ngram: float, size: int, parameters: int, tokens: float) -> float:
    """Nats a byte on the held-out text, of a model that starts from nothing. ngram: `ngram_loss`.
    size: bytes of the text to learn from."""
    return SCALE * ngram * factor(size, parameters, tokens, TOKENS, PARAMETERS)


def factor(
    size: int, parameters: int, tokens: float, token_exponent: float, parameter_exponent: float
) -> float:
    return worth(size, tokens) ** -token_exponent * parameters**-parameter_exponent


def worth(size: int, tokens: float) -> float:
    """In bytes that are read for the first time."""
    return size * EPOCHS * (1 - math.exp(-tokens / (size * EPOCHS)))


def ngram_loss(corpus: Corpus) -> float:
    """Nats a byte on the held-out text. All orders are mixed, by Witten and Bell, 1991."""
    learned = np.array(corpus.train[-COUNTED_BYTES:], np.int64)
    scored = np.array(corpus.validation[:SCORED_BYTES], np.int64)
    chances = np.full(len(scored) - ORDER, 1 / 256)
    for order in range(ORDER + 1):
        grams, counts = np.unique(_grams(learned, order), return_counts=True)
        contexts, first = np.unique(grams >> 8, return_index=True)
        totals, kinds = np.add.reduceat(counts, first), np.diff(np.append(first, len(grams)))
        wanted = _grams(scored, order)
        count = _found(grams, counts, wanted)
        total, kind = (_found(contexts, x, wanted >> 8) for x in (totals, kinds))
        kind = np.maximum(kind, total == 0)  # an unknown context: as the order below has it
        chances = (count + kind * chances) / (total + kind)
    return float(-np.log(chances).mean())


def _grams(text: np.ndarray, order: int) -> np.ndarray:
    """Each byte from number ORDER on and `order` before it, as one number."""
    grams = np.zeros(len(text) - ORDER, np.int64)
    for back in range(order, -1, -1):
        grams = grams << 8 | text[ORDER - back : len(text) - back]
    return grams


def _found(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key; 0 for one that is not there. keys: in order."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
