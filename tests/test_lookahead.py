"""Speculative decoding: the same text to the byte, in fewer passes.

pytest tests/test_lookahead.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tsm.runtime import engines, stream
from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines import lookahead
from tsm.runtime.sampling import Sampling

SHIPPED = Path(engines.SHIPPED_MODEL)
REPEATS = b"All the world is a stage, and all the men and women merely players. " * 4


def opened(ahead: bool) -> stream.Model:
    return stream.Model(engines.open_engine(open_artifact(SHIPPED), "native", 1, ahead))


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_text_is_the_same_to_the_byte(temperature):
    texts = []
    for ahead in (False, True):
        one = opened(ahead).stream(Sampling(temperature=temperature, seed=1))
        one.feed(REPEATS)
        texts.append(bytes(one.generate_bytes(600)))
    assert texts[0] == texts[1]


def test_a_text_that_repeats_itself_takes_fewer_passes():
    model = opened(True)
    engine = model.engine
    for byte in REPEATS:
        engine.feed(bytes([byte]))
    assert engine.passes < len(REPEATS) / 2
    state, wanted = engine.get_state(), opened(False).engine
    logits = wanted.feed(REPEATS)
    assert state == wanted.get_state()
    assert engine.feed(b"x") == wanted.feed(b"x") != logits


def test_a_wrong_guess_leaves_no_trace():
    engine, plain = opened(True).engine, opened(False).engine
    engine.feed(REPEATS)
    plain.feed(REPEATS)
    for byte in REPEATS[:30] + b"ZQ" + REPEATS[:40] + b"Z":
        assert engine.feed(bytes([byte])) == plain.feed(bytes([byte]))
    assert engine.get_state() == plain.get_state()


def test_states_of_several_streams_do_not_mix():
    model, plain = opened(True), opened(False)
    found = []
    for one in (model, plain):
        first = one.stream(Sampling(temperature=0))
        first.feed(REPEATS)
        head = bytes(first.generate_bytes(5))  # in the middle of what was read ahead
        second = first.fork()
        second.sampling = Sampling(temperature=0.9, seed=3)
        tails = [bytes(s.generate_bytes(7)) for s in (first, second, first, second)]
        found.append((head, tails))
    assert found[0] == found[1]


def test_a_long_text_is_forgotten_and_memory_bounded():
    engine = opened(True).engine
    for start in range(0, 20_000, 500):
        engine.feed(b"".join(b"%d " % n for n in range(start, start + 500)))
        assert len(engine._text) <= 3 * lookahead.REMEMBERED >= len(engine._ends)
    assert len(engine._text) > lookahead.REMEMBERED


def test_other_engines_are_left_as_they_are():
    engine = engines.open_engine(open_artifact(SHIPPED), "litert", 1, True)
    assert type(engine) is not type(opened(True).engine)
