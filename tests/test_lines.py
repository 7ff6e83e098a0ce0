"""tsm-score --lines: one score a line, anomalies by the lines before, files that grow.

pytest tests/test_lines.py
"""

from __future__ import annotations

import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from commands import RUNTIME, TEXT, TFLITE, output, refused, run
from fuzz.tiny import tiny_artifact

from tsm.runtime import engines, files, lines, sampling, score
from tsm.runtime.artifact import open_artifact

LOG = b"".join(b"%03d took %d ms\n" % (n, n * n % 17) for n in range(300))


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A model of a few KB, as fast as one can be; it has learned nothing."""
    path = tmp_path_factory.mktemp("lines") / "small.tflite"
    path.write_bytes(tiny_artifact())
    return path


def every_line(*arguments: object, **settings) -> list[dict]:
    found = output("score", "--lines", "--all", "--json", *arguments, **settings)
    return list(map(json.loads, found.splitlines()))


@pytest.mark.parametrize("kind", engines.ENGINES)
def test_surprise_and_entropy_are_those_of_the_softmax(kind):
    path = TFLITE.parents[1] / "models/shakespeare-int8.onnx" if kind == "onnx" else TFLITE
    engine = engines.open_engine(open_artifact(path), kind)
    random_bytes = random.Random(0).randbytes(50)
    data = TEXT[:50] + random_bytes
    logits = engine.logits_of(b"\n" + data[:-1])
    rows = np.array(logits, np.float64).reshape(-1, 256)
    wanted = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    entropy = -(np.exp(wanted) * wanted).sum(1)
    for found in (engine.nats(logits, data), sampling.nats(logits, data)):
        assert np.allclose(found[0], -wanted[range(len(data)), list(data)], atol=1e-5)
        assert np.allclose(found[1], entropy, atol=1e-4)


def test_lines_add_up_to_their_bytes():
    rows = every_line(input=TEXT + b"no newline")
    assert [row["line"] for row in rows] == list(range(1, 7))
    assert [row["text"] for row in rows] == (TEXT + b"no newline").decode().split("\n")
    assert [row["bytes"] for row in rows] == [*map(len, TEXT.splitlines(True)), 10]
    ends = np.cumsum([row["bytes"] for row in rows]).tolist()
    assert [row["offset"] for row in rows] == [0, *ends[:-1]]
    # A line begins: the model has read a newline.
    found = output("score", "--threshold", "0", "--json", input=b"\n" + TEXT + b"no newline")
    nats = [row["nats"] for row in json.loads(found)["anomalies"]]
    for row in rows:
        part = nats[row["offset"] : row["offset"] + row["bytes"]]
        assert row["nats"] == pytest.approx(math.fsum(part), rel=1e-5)
    bits = every_line("--unit", "bits", input=TEXT)
    excess = rows[0]["excess_nats_per_byte"] / math.log(2)
    assert bits[0]["excess_bits_per_byte"] == pytest.approx(excess)


def test_the_excess_is_the_surprise_less_the_entropy():
    engine = engines.open_engine(open_artifact(TFLITE))
    rows = np.array(engine.logits_of(b"\n" + TEXT[:-1]), np.float64).reshape(-1, 256)
    logs = rows - np.log(np.exp(rows).sum(1, keepdims=True))
    each = -logs[range(len(TEXT)), list(TEXT)] + (np.exp(logs) * logs).sum(1)
    for row in every_line(input=TEXT):
        part = each[row["offset"] : row["offset"] + row["bytes"]]
        assert row["excess_nats_per_byte"] == pytest.approx(part.mean(), abs=1e-4)
        assert row["column"] == part.argmax() + 1


def test_a_strange_line_is_found():
    strange = b"2026-03-02 ERROR disk full\n"
    text = TEXT * 8 + strange + TEXT * 8
    found = output("score", "--lines", "--json", "--quantile", "0.95", input=text)
    rows = list(map(json.loads, found.splitlines()))
    assert (
        max(rows, key=lambda row: row["excess_nats_per_byte"])["text"].encode() + b"\n" == strange
    )
    assert all(row["excess_nats_per_byte"] > row["threshold_nats_per_byte"] for row in rows)
    shown = output("score", "--lines", "--threshold", "1", input=text).decode()
    assert re.search(r"^ +41 +\d+\.\d{3} nats/byte  2026-03-02 ERROR disk full$", shown, re.M), (
        shown
    )
    assert re.search(r"^anomalies_found  1$", shown, re.M), shown


@pytest.mark.parametrize(("quantile", "window"), [(0, 5), (0.5, 10), (0.9, 1), (0.99, 200), (1, 9)])
def test_a_sliding_quantile_is_that_of_its_window(quantile, window):
    draw, values = random.Random(1), []
    found = lines.SlidingQuantile(quantile, window)
    for _ in range(500):
        last = sorted(values[-window:])
        bound = found.value()
        above = sum(value > bound for value in last)
        most = int((1 - quantile) * len(last) + 1e-9)
        assert above == most or last.count(bound) > 1
        assert (bound == math.inf) == (most == 0)
        values.append(draw.choice([draw.gauss(0, 1), 1.0]))
        found.add(values[-1])


def test_too_few_lines_before_have_no_threshold(small):
    rows = every_line("--model", small, "--quantile", "0.9", input=LOG)
    assert [row["threshold_nats_per_byte"] is None for row in rows] == [True] * 10 + [False] * 290
    assert not any(row["anomaly"] for row in rows[:10])
    anomalies = output(
        "score", "--model", small, "--lines", "--json", "--quantile", "0.9", input=LOG
    )
    wanted = [row for row in rows if row["anomaly"]]
    assert list(map(json.loads, anomalies.splitlines())) == wanted != []


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_lines_do_not_depend_on_how_they_come(small, piece):
    line = [sys.executable, str(RUNTIME / "score.py"), "--lines", "--all", "--json"]
    line += ["--model", str(small)]
    with subprocess.Popen(
        line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as process:
        for start in range(0, 1000, piece):
            process.stdin.write(LOG[:1000][start : start + piece])
            time.sleep(0.0005)
        process.stdin.close()
        found = list(map(json.loads, process.stdout.read().splitlines()))
    assert found == every_line("--model", small, input=LOG[:1000])


def test_any_bytes_are_lines(small, tmp_path):
    data = random.Random(2).randbytes(100_000)
    path = tmp_path / "bytes"
    path.write_bytes(data)
    rows = every_line("--model", small, path)
    assert [row["bytes"] for row in rows] == [len(line) for line in io.BytesIO(data)]
    shown = output("score", "--lines", "--all", "--model", small, path)
    assert not set(shown) & ({*range(32), 127} - {10, 9})
    assert every_line("--model", small, input=b"") == []


def test_color_marks_what_is_strange_and_lets_it_steer_nothing():
    text = TEXT + b"All:\nSpe\xe9zk \x1b[2J, speak.\n"
    shown = output("score", "--lines", "--all", "--color", "always", input=text).decode()
    assert "\x1b[48;5;" in shown
    plain = re.sub(r"\x1b\[(48;5;\d+|0)m", "", shown)
    assert "\x1b" not in plain and "Spe\ufffdzk \\x1b[2J, speak." in plain


def test_a_line_of_any_length_takes_constant_memory():
    def pieces(count: int):
        for _ in range(count):
            yield b"x" * 1024, [1.0] * 1024, [0.5] * 1024

    peaks = []
    for count in (10, 1000):
        tracemalloc.start()
        (line,) = lines.lines_of(pieces(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (line.bytes, len(line.start)) == (1024 * count, lines.KEPT_BYTES)
        assert line.excess == pytest.approx(0.5 * line.bytes)
    assert peaks[1] < peaks[0] + 10_000


class Following:
    """The command, on a file that grows. It ends by SIGINT, in one line at most."""

    def __init__(self, path: Path, model: Path, *arguments: str) -> None:
        line = [sys.executable, str(RUNTIME / "score.py"), "--lines", "--follow", "--all", "--json"]
        line += ["--model", str(model), *arguments, str(path)]
        self.process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        rest, errors = self.process.communicate(timeout=60)
        assert (self.process.returncode, rest) == (130, b"")
        assert errors.count(b"\n") <= 1 and b"Traceback" not in errors

    def texts(self, count: int) -> list[str]:
        """Of the next lines."""
        return [json.loads(self.process.stdout.readline())["text"] for _ in range(count)]


def test_a_file_is_followed_as_it_grows_is_renamed_and_cut_short(small, tmp_path):
    path = tmp_path / "service.log"
    path.write_bytes(b"one\ntw")
    with Following(path, small) as following:
        assert following.texts(1) == ["one"]
        with path.open("ab") as file:  # the rest of a line
            file.write(b"o\n")
            file.flush()
            assert following.texts(1) == ["two"]
            path.rename(tmp_path / "service.log.1")
            time.sleep(0.3)  # no file has the name
            file.write(b"three, to the old file\n")
            file.flush()
            path.write_bytes(b"four, in the new one\n")
        assert following.texts(2) == ["three, to the old file", "four, in the new one"]
        with path.open("ab") as file:
            file.write(b"five\n")
        assert following.texts(1) == ["five"]
        os.truncate(path, 0)
        time.sleep(0.3)
        with path.open("ab") as file:
            file.write(b"six\n")
        assert following.texts(1) == ["six"]


def test_standard_input_is_followed_to_its_end(small):
    rows = every_line("--model", small, "--follow", input=b"one\ntwo")
    assert [row["text"] for row in rows] == ["one", "two"]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="no /proc here")
def test_following_two_megabytes_takes_flat_memory(small, tmp_path):
    path = tmp_path / "service.log"
    path.write_bytes(b"")
    part = b"".join(line * 6 + b"\n" for line in LOG.splitlines()) * 22 + b"x" * 100_000 + b"\n"
    peaks = []
    # A window that is full after the first part, so that nothing is to grow after it.
    with Following(path, small, "--window", "1000") as following:
        for _ in range(4):
            with path.open("ab") as file:
                file.write(part)
            following.texts(part.count(b"\n"))
            status = Path(f"/proc/{following.process.pid}/status").read_text()
            peaks.append(int(re.search(r"VmHWM:\s+(\d+)", status)[1]))
    assert path.stat().st_size > 2_000_000
    assert peaks[-1] < 30_000 and peaks[-1] - peaks[0] < 1_000, peaks  # KB


def test_what_is_followed_is_read_byte_for_byte(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"abc")
    with files.FollowedFile(str(path)) as file:
        assert file.read1(2) == b"ab"
        path.rename(tmp_path / "old")
        path.write_bytes(b"d" * 10_000)
        assert file.read1(9) == b"c"
        found = b""
        while len(found) < 10_000:
            found += file.read1(1024)
        assert found == b"d" * 10_000


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--follow"], "--follow: found no --lines, wanted both"),
        (["--all"], "--all: found no --lines, wanted both"),
        (["--lines", "--window", "0"], "found '0', wanted a whole number, 1 to 1,000,000"),
        (["--lines", "--follow", "/nowhere"], "/nowhere: no such file or directory"),
        (["--lines", "--follow", "/"], "/: is a directory"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(arguments, wanted):
    assert wanted in refused(run("score", *arguments))


def test_pieces_of_a_text_are_those_that_were_read():
    engine = engines.open_engine(open_artifact(TFLITE))
    found = list(score.scored(engine, b"\n", io.BytesIO(TEXT * 30).read))
    assert b"".join(data for data, *_ in found) == TEXT * 30
    assert all(len(data) == len(nats) == len(entropy) for data, nats, entropy in found)
