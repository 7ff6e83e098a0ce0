"""The command tsm-score.

pytest tests/test_score.py
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import tracemalloc

import numpy as np
import pytest
from commands import ONNX, TEXT, TFLITE, on_terminal, output

from tsm.runtime import compress, engines, files, score
from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines.native import NativeEngine
from tsm.training import evaluate


@pytest.fixture(scope="module")
def native() -> NativeEngine:
    return compress.open_native(TFLITE)


@pytest.mark.parametrize("kind", engines.ENGINES)
@pytest.mark.parametrize("size", [2, 1024, 1025, 3000])
def test_score_is_what_evaluation_calls_streaming(kind, size):
    path = ONNX if kind == "onnx" else TFLITE
    engine = engines.open_engine(open_artifact(path), kind)
    data = (TEXT * 40)[:size]

    def scorer(tokens: np.ndarray, state: object) -> tuple[np.ndarray, object]:
        if state is None:
            engine.reset()
        logits = engine.logits_of(tokens.astype(np.uint8).tobytes())
        return np.array(logits, np.float32).reshape(1, -1, 256), engine

    wanted = evaluate._streaming(scorer, np.frombuffer(data, np.uint8))
    engine.reset()
    file = io.BytesIO(data)
    pieces = score.scored(engine, file.read(1), file.read)
    scored = [value for _, nats, _ in pieces for value in nats]
    assert len(scored) == size - 1
    assert abs(sum(scored) / len(scored) - wanted) < 1e-6


def test_score_in_json_adds_up_and_says_where():
    found = json.loads(output("score", "--threshold", "0", "--json", "--unit", "bits", input=TEXT))
    rows = found["anomalies"]
    assert [row["offset"] for row in rows] == list(range(1, len(TEXT)))
    assert bytes(row["byte"] for row in rows) == TEXT[1:]
    lines = TEXT.split(b"\n")
    for row in rows:
        assert (lines[row["line"] - 1] + b"\n")[row["column"] - 1] == row["byte"]
    total = math.fsum(row["bits"] for row in rows)
    assert found["total_bits"] == pytest.approx(total)
    assert found["bits_per_byte"] == pytest.approx(total / (len(TEXT) - 1))
    assert found["perplexity"] == pytest.approx(2 ** found["bits_per_byte"])
    assert (found["bytes"], found["scored_bytes"]) == (len(TEXT), len(TEXT) - 1)
    nats = json.loads(output("score", "--json", input=TEXT))
    assert nats["total_nats"] == pytest.approx(total * math.log(2))
    assert len(nats["anomalies"]) == nats["anomalies_found"] < len(rows)


@pytest.mark.parametrize("data", [b"", b"a"])
def test_nothing_to_score_is_no_mistake(data):
    found = json.loads(output("score", "--json", input=data))
    assert (found["bytes"], found["scored_bytes"], found["perplexity"]) == (len(data), 0, 1)
    assert b"nats_per_byte  0" in output("score", "--quantile", "0.5", input=data)


def test_a_strange_word_is_an_anomaly_in_its_place():
    lines = output("score", "--threshold", "6", input=TEXT + b"All:\nSpe\xe9zk, speak.\n").decode()
    assert re.search(r"^ +7:4 +0xE9 +\d+\.\d\d nats$", lines, re.M), lines


@pytest.mark.parametrize("quantile", [0, 0.5, 0.9, 1])
def test_a_quantile_marks_its_part_of_the_bytes(quantile):
    draw = random.Random(0)
    pairs = [(draw.randrange(256), draw.expovariate(0.5)) for _ in range(5000)]
    with files.temporary_file() as spool:
        bound, again = score.at_quantile(iter(pairs), quantile, spool)
        assert list(again) == pairs
    above = sum(surprise >= bound for _, surprise in pairs)
    assert abs(above - (1 - quantile) * len(pairs)) <= 10


def test_color_shows_the_text_and_lets_it_steer_nothing():
    text = TEXT + "naïve \x1b[2J\x07 日本\n".encode()
    shown = output("score", "--color", "always", input=text).decode()
    assert "\x1b[48;5;" in shown
    plain = re.sub(r"\x1b\[(48;5;\d+|0)m", "", shown).replace("\\n\n", "\n")
    assert "\x1b" not in plain and "\x07" not in plain
    assert plain.startswith(text.decode().replace("\x1b", "\\x1b").replace("\x07", "\\x07"))


def test_a_terminal_gets_color_unless_it_is_not_wanted():
    for no_color, colored in (("", True), ("1", False)):
        environment = {**os.environ, "NO_COLOR": no_color}
        shown = on_terminal("score", typed=TEXT, env=environment).stdout
        assert (b"\x1b[48;5;" in shown) == (b"\x1b" in shown) == colored
    assert b"\x1b" not in output("score", input=TEXT)


def test_score_reads_any_length_in_constant_memory(native):
    class Endless:
        def __init__(self, pieces: int) -> None:
            self.left = pieces

        def read(self, count: int) -> bytes:
            self.left -= 1
            return (TEXT * 20)[:count] if self.left >= 0 else b""

    peaks = []
    for pieces in (2, 8):
        tracemalloc.start()
        totals = score.Totals(1e9)
        file = Endless(pieces)
        for byte, row in score.predicted(native, b"\n", file.read):
            totals.add(byte, row[0])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert totals.bytes == pieces * 1024
    assert peaks[1] < peaks[0] + 100_000
