"""The baseline of completion.py: words by a trigram model with back-off, of nltk."""

from __future__ import annotations

import heapq
import itertools
import re
from collections import Counter, defaultdict

TOKEN = re.compile(r"\w+|\n+|[^\w\s]")  # words, ends of lines and paragraphs, punctuation
LAST_WORD = re.compile(r"\w*\Z")
BACK_OFF = 0.4  # of Brants et al., 2007, and nltk's default
TAIL_CHARACTERS = 200  # of the text before the cursor, in which the last two tokens are


class Trigrams:
    """Completes a word by the best-scoring one that begins as it is typed."""

    def __init__(self, text: str) -> None:
        from nltk.lm import StupidBackoff  # the rest of completion.py does without
        from nltk.util import everygrams

        tokens = TOKEN.findall(text)
        self.model = StupidBackoff(BACK_OFF, 3)
        self.model.fit([everygrams(tokens, max_len=3)], vocabulary_text=tokens)
        self._by_prefix: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self._sums: Counter[str] = Counter()  # of the counts of the words with a prefix
        words = {t: n for t, n in self.model.counts.unigrams.items() if LAST_WORD.fullmatch(t)}
        for word in sorted(words, key=lambda word: (-words[word], word)):
            for i in range(len(word) + 1):
                self._by_prefix[word[:i]].append((word, words[word]))
                self._sums[word[:i]] += words[word]
        self._starts = _starts(text)

    def suggest(self, before: str, count: int) -> list[tuple[str, float]]:
        """The `count` likeliest rests of the word before the cursor, or next words where one begins
        here, each with its share of the scores of all that begin so."""
        before = before[-TAIL_CHARACTERS:]
        prefix = LAST_WORD.search(before)[0]
        if not prefix and not self._starts.get(before[-3:], False):
            return []
        tokens = TOKEN.findall(before[: len(before) - len(prefix)])
        scores: dict[str, float] = {}
        weight = 1.0
        counts = self.model.counts
        for context in (tuple(tokens[-2:]), tuple(tokens[-1:])):
            following = counts[context] if context else {}
            total = sum(following.values())
            for word, found in following.items():
                if word not in scores and word.startswith(prefix) and LAST_WORD.fullmatch(word):
                    scores[word] = weight * found / total
            weight *= BACK_OFF
        weight /= counts.unigrams.N()
        rest = self._sums[prefix] - sum(counts.unigrams[word] for word in scores)
        total = sum(scores.values()) + weight * rest
        others = ((w, n) for w, n in self._by_prefix.get(prefix, []) if w not in scores)
        scores |= {word: weight * found for word, found in itertools.islice(others, count)}
        best = heapq.nlargest(count, scores, key=lambda word: (scores[word], word))
        return [(word[len(prefix) :], scores[word] / total) for word in best if word != prefix]


def _starts(text: str) -> dict[str, bool]:
    """By three characters, of which the last is of no word: whether a word follows mostly."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for match in re.finditer(r"(?=(..\W)(.))", text, re.DOTALL):
        counts[match[1]][bool(re.match(r"\w", match[2]))] += 1
    return {three: yes > no for three, (no, yes) in counts.items()}
