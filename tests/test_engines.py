"""Engines: blocks, single bytes and files of both formats give the same model.

pytest tests/test_engines.py
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from commands import ONNX, TEXT, TFLITE

from tsm.runtime import artifact, engines, stream

# One byte at a time against blocks, and another kernel library: the same int8 arithmetic, where
# a rounding that falls the other way moves an activation by one of its 255 steps.
BLOCK_LOGIT_TOLERANCE = 0.25


@pytest.fixture(scope="session", params=engines.ENGINES)
def engine(request) -> engines.Engine:
    path = ONNX if request.param == "onnx" else TFLITE
    return stream.load(path, request.param).engine


def test_blocks_and_single_bytes_give_the_same_logits(engine):
    engine.reset()
    blocks = np.array(engine.logits_of(TEXT)).reshape(len(TEXT), engines.VOCABULARY)
    engine.reset()
    singles = np.array([engine.feed(bytes([byte])) for byte in TEXT])
    difference = np.abs(blocks - singles)
    assert difference.max() < BLOCK_LOGIT_TOLERANCE, (difference.max(), difference.mean())
    engine.reset()
    assert np.array_equal(np.array(engine.feed(TEXT)), blocks[-1])


def test_a_saved_state_continues_exactly(engine):
    engine.reset()
    fresh = engine.get_state()
    engine.feed(TEXT)
    saved = engine.get_state()
    assert {name: len(value) for name, value in saved.items()} == {
        name: 4 * math.prod(shape) for name, shape in engine.artifact.state.items()
    }
    wanted = engine.feed(b"Second Citizen:")
    engine.feed(b"elsewhere")
    engine.set_state(saved)
    assert engine.get_state() == saved
    assert engine.feed(b"Second Citizen:") == wanted
    engine.reset()
    assert engine.get_state() == fresh != saved


def test_a_state_of_another_shape_and_an_empty_feed_are_refused(engine):
    for state in ({}, {**engine.get_state(), "history": b""}, {"history": b""}):
        with pytest.raises(engines.EngineError, match="wanted"):
            engine.set_state(state)
    with pytest.raises(engines.EngineError, match="at least one"):
        engine.feed(b"")


def test_tflite_and_onnx_are_the_same_model():
    """To the bit where the C engine computes both."""
    rows = []
    for path, kind in ((TFLITE, "native"), (ONNX, "native"), (TFLITE, "litert"), (ONNX, "onnx")):
        logits = np.array(stream.load(path, kind).engine.logits_of(TEXT)).reshape(len(TEXT), -1)
        logits -= logits.max(axis=1, keepdims=True)
        rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    assert np.array_equal(rows[0], rows[1])
    for other in rows[2:]:
        nats = (np.exp(rows[0]) * (rows[0] - other)).sum(axis=1).mean()
        assert 0 <= nats < 0.02  # ten times the 0.002 that int8 itself costs


def test_an_engine_that_is_not_installed_says_how_it_would_be(monkeypatch):
    found = artifact.open_artifact(engines.SHIPPED_MODEL)
    monkeypatch.setattr(engines.litert, "installed", lambda: False)
    with pytest.raises(engines.EngineError, match="litert is not installed, wanted: pip install"):
        engines.open_engine(found, "litert")
    monkeypatch.setattr(engines.native, "installed", lambda: False)
    with pytest.raises(engines.EngineError, match="native is not installed, wanted: make native"):
        engines.open_engine(found, "native")
    with pytest.raises(engines.EngineError, match="wanted: make native .* or pip install ai-edge"):
        engines.open_engine(found)
