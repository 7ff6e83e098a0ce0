"""Sampling: each filter against its definition, in NumPy; penalties, random numbers, settings.

pytest tests/test_sampling.py
"""

from __future__ import annotations

import math
from array import array

import numpy as np
import pytest

from tsm.runtime import sampling
from tsm.runtime.sampling import Sampling, SamplingError

PROBABILITIES = [0.05, 0.5, 0.15, 0.3]
LOGITS = array("f", [3 + math.log(p) for p in PROBABILITIES])
OFF = {"temperature": 1.0, "top_k": 0, "typical_p": 1.0, "top_p": 1.0, "min_p": 0.0}


def draw(logits, uniform: float, adjust=None, **settings) -> int:
    return sampling.draw(logits, adjust, **{**OFF, **settings}, uniform=uniform)


# The oracle: a distribution over 256 bytes, each filter a mask over it.


def renormalised(p: np.ndarray) -> np.ndarray:
    return p / p.sum()


def nucleus(p: np.ndarray, order: np.ndarray, share: float) -> np.ndarray:
    """The first of `order` whose sum reaches the share."""
    kept = np.zeros_like(p)
    for byte in order:
        if kept.sum() >= share:
            break
        kept[byte] = p[byte]
    return renormalised(kept)


def distribution(logits, temperature, top_k, typical_p, top_p, min_p) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    p = renormalised(np.exp((logits - logits.max()) / temperature))
    by_size = np.lexsort((np.arange(len(p)), -logits))
    if top_k:
        p = renormalised(np.where(np.isin(np.arange(len(p)), by_size[:top_k]), p, 0))
    if typical_p < 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(p)
            entropy = np.nansum(p * surprise)
        distance = np.where(p > 0, np.abs(surprise - entropy), np.inf)
        p = nucleus(p, by_size[np.argsort(distance[by_size], kind="stable")], typical_p)
    if top_p < 1:
        p = nucleus(p, by_size, top_p)
    return renormalised(np.where(p >= min_p * p.max(), p, 0))


FILTERS = [
    {},
    {"temperature": 0.5},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 999},
    {"top_p": 0.6},
    {"top_p": 1e-9},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"typical_p": 0.7},
    {"typical_p": 1e-9},
    {"top_k": 20, "typical_p": 0.9, "top_p": 0.8, "min_p": 0.05, "temperature": 1.3},
    {"typical_p": 0.5, "min_p": 0.3},
]


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_each_filter_is_its_definition(settings):
    random = np.random.default_rng(1)
    for _ in range(20):
        logits = array("f", (3 * random.standard_normal(256)).tolist())
        p = distribution(logits, **{**OFF, **settings})
        order = np.lexsort((np.arange(256), -np.asarray(logits)))
        edges = np.cumsum(p[order])
        for uniform in random.random(50):
            place = int(np.searchsorted(edges, uniform, side="right"))
            if abs(edges[place] - uniform) > 1e-9 and abs(edges[place - 1] - uniform) > 1e-9:
                assert draw(logits, uniform, **settings) == order[place]
        kept = {draw(logits, uniform, **settings) for uniform in (0.0, 1 - 2**-53)}
        assert all(p[byte] > 0 for byte in kept)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, [p**2 for p in PROBABILITIES]),
        ({"temperature": 2.0}, [p**0.5 for p in PROBABILITIES]),
        ({"top_k": 2}, [0, 0.5, 0, 0.3]),
        ({"top_k": 99}, PROBABILITIES),
        ({"top_p": 0.79}, [0, 0.5, 0, 0.3]),
        ({"top_p": 0.81}, [0, 0.5, 0.15, 0.3]),
        ({"top_k": 3, "top_p": 0.51}, [0, 0.5, 0, 0]),  # 0.5 / 0.95 > 0.51
        ({"min_p": 0.29}, [0, 0.5, 0.15, 0.3]),
        ({"min_p": 0.31}, [0, 0.5, 0, 0.3]),
        ({"typical_p": 0.29}, [0, 0, 0, 0.3]),  # entropy 1.14 nats, -log 0.3 = 1.2 is nearest
        ({"typical_p": 0.31}, [0, 0.5, 0, 0.3]),
        ({"typical_p": 0.8, "min_p": 0.59}, [0, 0.5, 0, 0.3]),
    ],
)
def test_drawn_bytes_follow_the_distribution(settings, weights):
    count = 20_000
    drawn = [draw(LOGITS, sampling.uniform(1, index), **settings) for index in range(count)]
    for byte, weight in enumerate(weights):
        wanted, found = weight / sum(weights), drawn.count(byte) / count
        assert abs(found - wanted) <= 4.5 * math.sqrt(wanted * (1 - wanted) / count)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-300}]
)
def test_greedy_takes_the_likeliest_byte_and_the_first_of_equals(settings):
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert draw(LOGITS, uniform, **settings) == 1
        assert draw([1.0, 2.0, 2.0], 0.0, **settings) == 1


def test_an_excluded_byte_is_never_drawn():
    adjust = [-math.inf] * 3 + [-1e6]
    for settings in ({}, {"temperature": 0.0}, {"typical_p": 0.5}, {"min_p": 0.5, "top_p": 0.9}):
        for uniform in (0.0, 0.5, 1 - 2**-53):
            assert draw(LOGITS, uniform, adjust, **settings) == 3


def test_the_random_numbers_are_splitmix64():
    """Against the published sequence of seed 1234567."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [sampling.uniform(1234567, i) for i in range(4)] == [(z >> 11) / 2**53 for z in known]
    assert sampling.uniform(-1, 5) == sampling.uniform(2**64 - 1, 5)


def test_the_random_numbers_are_uniform_and_independent_of_their_neighbours():
    for seed in (0, 1, 2**63):
        u = np.array([sampling.uniform(seed, i) for i in range(20_000)])
        other = np.array([sampling.uniform(seed + 1, i) for i in range(20_000)])
        counts, _ = np.histogram(u, 64, (0, 1))
        assert ((counts - 312.5) ** 2 / 312.5).sum() < 63 + 4.5 * math.sqrt(126)
        assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4.5 / math.sqrt(20_000)
        assert abs(np.corrcoef(u, other)[0, 1]) < 4.5 / math.sqrt(20_000)


# What is added to the logits


def adjusted(logits: np.ndarray, text: bytes, settings: Sampling) -> np.ndarray:
    """The definition, over all bytes."""
    out = np.array(logits, np.float64)
    for byte, value in settings.logit_bias.items():
        out[byte] += value
    window = text[max(0, len(text) - settings.penalty_window) :]
    for byte in range(256):
        count = sum(other == byte for other in window)
        if count:
            r = settings.repetition_penalty
            out[byte] = out[byte] / r if out[byte] > 0 else out[byte] * r
            out[byte] -= settings.presence_penalty + settings.frequency_penalty * count
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.5, "penalty_window": 5},
        {"presence_penalty": 0.7},
        {"frequency_penalty": -0.2, "penalty_window": 4096},
        {"repetition_penalty": 2, "presence_penalty": 1, "frequency_penalty": 0.1},
        {"repetition_penalty": 2, "penalty_window": 0},
        {"logit_bias": {0: 3.5, 255: -2}},
        {"logit_bias": {97: -math.inf, 98: 5}, "repetition_penalty": 1.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("text", [b"", b"aab", b"the quick brown fox " * 9])
def test_bias_and_penalties_are_their_definition(settings, text):
    random = np.random.default_rng(2)
    logits = array("f", (3 * random.standard_normal(256)).tolist())
    settings = Sampling(**settings)
    adjust = settings.adjust(logits, bytearray(text))
    found = np.array(logits) + (np.array(adjust) if adjust else 0)
    np.testing.assert_allclose(found, adjusted(logits, text, settings), rtol=1e-5, atol=1e-5)


def test_without_bias_and_penalties_nothing_is_added():
    assert Sampling().adjust(LOGITS, b"abc") is None


def test_log_probabilities_are_the_models_own():
    values = sampling.log_probabilities(LOGITS)
    np.testing.assert_allclose(values, np.log(PROBABILITIES), rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"temperature": -1}, "temperature: found -1, wanted a finite number, 0 or more"),
        ({"temperature": math.nan}, "found nan"),
        ({"temperature": "1"}, "found '1'"),
        ({"temperature": True}, "found True"),
        ({"top_k": 1.5}, "top_k: found 1.5"),
        ({"top_p": 0}, "top_p: found 0"),
        ({"min_p": 1.1}, "min_p: found 1.1"),
        ({"typical_p": math.inf}, "typical_p: found inf"),
        ({"repetition_penalty": 0}, "repetition_penalty: found 0"),
        ({"penalty_window": 5000}, "wanted a whole number, at most 4096"),
        ({"seed": 1.0}, "seed: found 1.0, wanted a whole number"),
        ({"seed": "1"}, "seed: found '1'"),
        ({"temperature": bytearray(b"1")}, "found bytearray(b'1')"),
        ({"temperature": 10**400}, "wanted a finite number"),
        ({"logit_bias": {True: 1}}, "found byte True"),
        ({"logit_bias": {256: 1}}, "found byte 256, wanted 0 to 255"),
        ({"logit_bias": {"a": 1}}, "found byte 'a'"),
        ({"logit_bias": {1: math.inf}}, "found inf"),
        ({"logit_bias": {1: math.nan}}, "found nan"),
        ({"logit_bias": dict.fromkeys(range(256), -math.inf)}, "every byte excluded"),
    ],
)
def test_a_setting_out_of_range_is_one_clear_error(settings, says):
    with pytest.raises(SamplingError) as refused:
        Sampling(**settings)
    assert says in str(refused.value) and "\n" not in str(refused.value)


def test_replace_changes_what_it_is_told():
    before = Sampling(top_k=3, logit_bias={1: 2.0})
    after = before.replace(seed=9)
    assert after.settings() == {**before.settings(), "seed": 9}
