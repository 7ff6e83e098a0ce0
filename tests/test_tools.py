"""The tools beside the generator: bench, score, describe, compress.

pytest tests/test_tools.py
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tracemalloc
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest

from tsm.runtime import artifact, bench, command, compress, describe, engines, files, score
from tsm.runtime.artifact import open_artifact
from tsm.runtime.native_engine import NativeEngine
from tsm.training import evaluate
from tsm.training.spec import ModelSpec, parameter_count, weights

RUNTIME = Path(__file__).parent.parent / "runtime"
TFLITE, ONNX = RUNTIME / "shakespeare-int8.tflite", RUNTIME / "shakespeare-int8.onnx"
TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
MODULES = {"bench": bench, "score": score, "describe": describe, "compress": compress}


@pytest.fixture(scope="module")
def native() -> NativeEngine:
    return compress.open_native(TFLITE)


def run(tool: str, *arguments: object, **settings) -> subprocess.CompletedProcess:
    done = [sys.executable, str(RUNTIME / f"{tool}.py"), *map(str, arguments)]
    return subprocess.run(done, capture_output=True, timeout=300, check=False, **settings)


def output(tool: str, *arguments: object, **settings) -> bytes:
    done = run(tool, *arguments, **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


# Any of them

MISTAKES = [
    *((tool, ["--colour"], "--colour") for tool in MODULES),
    ("describe", ["/no/such/model"], "/no/such/model: no such file"),
    ("describe", [os.devnull], "0 TSM headers"),
    ("bench", ["--longest", "0"], "found '0', wanted a whole number, 1 or more"),
    ("bench", ["--repeats", "x"], "found 'x'"),
    ("bench", ["--engine", "gpu"], "invalid choice: 'gpu'"),
    ("bench", ["--engine", "onnx"], "engine onnx cannot run it, wanted native or litert"),
    ("bench", ["--engine", "native", "--weight-cache", "x"], "wanted litert among them"),
    ("score", ["/no/such/text"], "/no/such/text: no such file or directory, wanted a readable"),
    ("score", [RUNTIME], "is a directory, wanted a readable file"),
    ("score", ["--threshold=-1"], "found '-1', wanted a finite number, 0 or more"),
    ("score", ["--threshold", "nan"], "found 'nan'"),
    ("score", ["--quantile", "1.1"], "found '1.1', wanted a number from 0 to 1"),
    ("score", ["--quantile", "1", "--threshold", "1"], "not allowed with"),
    ("score", ["--unit", "bans"], "invalid choice: 'bans'"),
    ("score", ["--model", RUNTIME / "score.py", os.devnull], "0 TSM headers"),
    ("compress", ["/no/such/text"], "/no/such/text: no such file or directory, wanted a readable"),
    ("compress", ["/dev/null", "--out", "/no/such/folder/x"], "/no/such/folder/x"),
    ("compress", ["-d", "x.txt"], "x.txt: no name ending in .tsm, wanted --out FILE"),
    ("compress", ["-d", ".tsm"], ".tsm: no name ending in .tsm"),
    ("compress", ["-d", os.devnull, "--out", "/tmp/x"], "not made by tsm-compress"),
    ("compress", ["--json"], "wanted --out FILE"),
]


@pytest.mark.parametrize(("tool", "arguments", "says"), MISTAKES, ids=lambda v: str(v)[-40:])
def test_a_mistake_is_one_clear_line(capfd, tool, arguments, says):
    try:
        code = MODULES[tool].main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = left.code
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err and err.startswith(f"tsm-{tool}: ")


def test_compressing_wants_the_native_engine(monkeypatch, capsys):
    monkeypatch.setattr(engines, "native_library", lambda: None)
    assert compress.main([os.devnull, "--out", "/tmp/x"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "the native engine is not here" in err


def test_what_compress_cannot_write_is_named_as_it_was_given(tmp_path, capsys, monkeypatch):
    place = tmp_path / "nowhere" / "x.tsm"
    assert compress.main([os.devnull, "--out", str(place)]) == 2
    assert capsys.readouterr().err == f"tsm-compress: {place}: no such file or directory\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SystemExit):
        compress.main([os.devnull, "--out", "-"])
    assert "on its way to a terminal" in capsys.readouterr().err


def test_an_engine_that_is_not_installed_says_how_it_would_be(monkeypatch):
    found = artifact.open_artifact(engines.SHIPPED_MODEL)
    monkeypatch.setattr(engines, "_package", lambda name: None)
    with pytest.raises(engines.EngineError, match="litert is not installed, wanted: pip install"):
        engines.open_engine(found, "litert")
    monkeypatch.setattr(engines, "native_library", lambda: None)
    with pytest.raises(engines.EngineError, match="native is not installed, wanted: make native"):
        engines.open_engine(found, "native")
    with pytest.raises(engines.EngineError, match="wanted: make native .* or pip install ai-edge"):
        engines.open_engine(found)


def test_an_interrupt_ends_quietly_and_leaves_no_file(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(TEXT * 10_000)
    for tool, options in (("compress", []), ("score", ["--threshold", "0"])):
        path = [sys.executable, str(RUNTIME / f"{tool}.py"), str(text), *options]
        with subprocess.Popen(path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not (  # it has begun
                any(tmp_path.glob("text.tsm.*.partial"))
                if tool == "compress"
                else process.stdout.read(1)
            ):
                pass
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (130, b"")
        assert list(tmp_path.iterdir()) == [text]


def test_a_full_disk_and_a_closed_pipe_are_no_traceback():
    command_line = [sys.executable, str(RUNTIME / "describe.py")]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command_line, stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        b"tsm-describe: standard output: no space left on device\n",
    )
    path = [sys.executable, str(RUNTIME / "score.py"), "--threshold", "0", str(TFLITE)]
    with subprocess.Popen(path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(1)
        process.stdout.close()
        assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")


def test_a_file_gets_its_name_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with files.written(path) as file:
        file.write(b"old")
    with pytest.raises(KeyError), files.written(path) as file:
        file.write(b"new")
        raise KeyError
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


# Describe


def test_describe_knows_the_table_of_weights():
    found = json.loads(output("describe", "--json"))
    spec = ModelSpec(**found["spec"])
    assert found["parameters"] == parameter_count(spec)
    shapes = {tensor["name"]: tuple(tensor["shape"]) for tensor in found["tensors"]}
    assert shapes == {name: weight.shape for name, weight in weights(spec).items()}
    assert list(shapes) == list(weights(spec))
    assert describe.weight_shapes({**found["spec"], "mixer": "mingru"}) == {}


@pytest.mark.parametrize(
    ("path", "kinds", "container"),
    [(TFLITE, ["native", "litert"], "TFLite"), (ONNX, ["native", "onnx"], "ONNX")],
)
def test_describe_tells_what_the_engines_and_the_file_are(path, kinds, container):
    found = describe.describe(path)
    engine = engines.open_engine(open_artifact(path))
    assert found["state_bytes"] == sum(map(len, engine.get_state().values()))
    assert found["engines"] == kinds and found["format"].startswith(container)
    assert found["file_bytes"] == path.stat().st_size
    parts = [found[f"{name}_bytes"] for name in ("weights", "metadata", "graph")]
    assert sum(parts) == found["file_bytes"] and min(parts) > 1000
    assert sum(tensor["bytes"] for tensor in found["tensors"]) == found["weights_bytes"]


@pytest.mark.parametrize("path", [TFLITE, ONNX])
def test_the_sizes_of_tensors_are_those_between_their_places(path):
    """Each part's size is at most what lies before the next part, and nearly all of it."""
    artifact, found = open_artifact(path), describe.describe(path)
    starts = sorted(int(place) for places in artifact.places.values() for place in places)
    room = dict(pairwise([*starts, found["file_bytes"]]))
    for tensor in found["tensors"]:
        if tensor["name"].endswith(("in", "out", "head")):  # codes are most of it, then scales
            start = int(artifact.places[tensor["name"]][0])
            codes = math.prod(tensor["shape"])
            assert tensor["bytes"] == codes + 4 * tensor["shape"][0]
            assert codes <= room[start]
        elif len(artifact.places[tensor["name"]]) == 1:
            assert tensor["bytes"] <= room[int(artifact.places[tensor["name"]][0])]


def test_describe_reads_well():
    lines = output("describe").decode().splitlines()
    assert re.fullmatch(r" +parameters +9,240,288", lines[5])
    assert sum(line.split()[0].startswith("blocks.0.") for line in lines) == 6


# Score


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
    scored = [score.nats(row, b) for b, row in score.predicted(engine, file.read(1), file.read)]
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
    bound, again = score.at_quantile(iter(pairs), quantile)
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


def on_terminal(environment: dict[str, str]) -> bytes:
    """What a terminal gets of score."""
    ours, theirs = pty.openpty()
    command_line = [sys.executable, str(RUNTIME / "score.py")]
    with subprocess.Popen(
        command_line,
        stdin=subprocess.PIPE,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    ) as process:
        process.communicate(TEXT, timeout=60)
    os.close(theirs)
    shown = b""
    try:
        while piece := os.read(ours, 65536):
            shown += piece
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    return shown


def test_a_terminal_gets_color_unless_it_is_not_wanted():
    assert b"\x1b[48;5;" in on_terminal({"NO_COLOR": ""})
    assert b"\x1b" not in on_terminal({"NO_COLOR": "1"})
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


# Compress: the coder alone


def random_table(draw: random.Random) -> list[int]:
    """Sums of 256 frequencies: from even ones to one byte that has nearly all."""
    steepness = draw.choice([0, 1, 5, 30])
    shares = [math.exp(steepness * draw.gauss(0, 1)) for _ in range(256)]
    room, whole = (1 << compress.PART_BITS) - 256, sum(shares)
    frequencies = [1 + int(room * share / whole) for share in shares]
    frequencies[frequencies.index(max(frequencies))] += (1 << 16) - sum(frequencies)
    return [0, *accumulate(frequencies)]


def coded(symbols: list[int], tables: list[list[int]]) -> bytes:
    out = io.BytesIO()
    encoder = compress.Encoder(out.write)
    for symbol, table in zip(symbols, tables, strict=True):
        encoder.encode(table[symbol], table[symbol + 1])
    encoder.finish()
    return out.getvalue()


def decoded(code: bytes, tables: list[list[int]]) -> list[int]:
    decoder = compress.Decoder(io.BytesIO(code).read)
    symbols = [decoder.decode(table) for table in tables]
    decoder.finish()
    return symbols


@pytest.mark.parametrize("likely", [True, False])
def test_the_coder_is_exact_and_as_short_as_the_frequencies_allow(likely):
    draw = random.Random(likely)
    made = [random_table(draw) for _ in range(50)]
    tables = draw.choices(made, k=20_000)
    if likely:
        symbols = [draw.choices(range(256), cum_weights=table[1:])[0] for table in tables]
    else:
        symbols = [draw.randrange(256) for _ in tables]
    code = coded(symbols, tables)
    assert decoded(code, tables) == symbols
    bits = sum(16 - math.log2(t[s + 1] - t[s]) for s, t in zip(symbols, tables, strict=True))
    assert bits <= 8 * len(code) <= bits * 1.001 + 16


@pytest.mark.parametrize("length", [1, 3, 50, 1000])
def test_the_coder_carries_through_runs_of_ff(length):
    """An interval that straddles the middle for long, until a symbol falls on one side of it."""
    middle = [0, (1 << 15) - 1, (1 << 15) + 1, 1 << 16]
    codes = []
    for last in (0, 2):
        symbols = [*[1] * length, last, 0, 2]
        tables = [middle] * len(symbols)
        codes.append(coded(symbols, tables))
        assert decoded(codes[-1], tables) == symbols
    run = 15 * length // 8 - 1  # bytes, of 15 bits a symbol
    assert codes[0][: run + 1] == b"\x7f" + b"\xff" * run
    assert codes[1][: run + 1] == b"\x80" + b"\0" * run


def test_single_intervals_of_every_place_survive():
    for start in range(0, 1 << 16, 997):
        table = [0, start, start + 1, 1 << 16] if start else [0, 1, 1 << 16]
        symbol = 1 if start else 0
        for count in (1, 2, 9):
            assert decoded(coded([symbol] * count, [table] * count), [table] * count) == (
                [symbol] * count
            )


# Compress: files

FILES = {
    "empty": b"",
    "one byte": b"a",
    "one newline": b"\n",
    "FF": b"\xff" * 700,
    "zeros": bytes(700),
    "noise": random.Random(0).randbytes(1500),
    "text": TEXT * 20,
    "a piece": (TEXT * 20)[: score.PIECE_BYTES],
    "a piece and one": (TEXT * 20)[: score.PIECE_BYTES + 1],
}


def compressed(engine: NativeEngine, data: bytes) -> bytes:
    out = io.BytesIO()
    compress.compress(engine, compress.Measured(io.BytesIO(data)), out)
    return out.getvalue()


def original(engine: NativeEngine, data: bytes) -> bytes:
    out = io.BytesIO()
    compress.decompress(engine, compress.Measured(io.BytesIO(data)), out)
    return out.getvalue()


@pytest.mark.parametrize("data", FILES.values(), ids=FILES)
def test_what_is_compressed_comes_back(native, data):
    found = compressed(native, data)
    assert original(native, found) == data
    assert compressed(native, data) == found


def test_blocks_single_bytes_and_plain_c_give_the_same_file(native):
    data = TEXT + b"\xff\x00" + TEXT

    class Single(NativeEngine):
        def logits_of(self, data: bytes):
            rows = engines.array("f")
            for byte in data:
                rows.extend(self.feed(bytes([byte])))
            return rows

    artifact = open_artifact(TFLITE)
    files = {compressed(e, data) for e in (native, Single(artifact), NativeEngine(artifact, 0))}
    assert len(files) == 1
    assert original(NativeEngine(artifact, 0), files.pop()) == data


def test_a_file_is_as_short_as_the_model_allows(native):
    data, bits = TEXT * 20, 0.0
    native.reset()
    file = io.BytesIO(data)
    for byte, logits in score.predicted(native, compress.START, file.read):
        sums = native.frequencies(logits)
        bits += 16 - math.log2(sums[byte + 1] - sums[byte])
    found = 8 * (len(compressed(native, data)) - compress.HEADER.size)
    assert bits <= found <= 1.001 * bits + 16


def damage(kind: str, whole: bytes) -> bytes:
    start = compress.HEADER.size
    changed = bytearray(whole)
    places = {"magic": 0, "version": 4, "model": 10, "length": 44, "CRC": 47, "code": start + 20}
    if kind in places:
        changed[places[kind]] ^= 1
    return {
        "nothing": b"",
        "half a header": whole[:30],
        "no code": whole[:start],
        "half": whole[: len(whole) // 2],
        "a byte less": whole[:-1],
        "a byte more": whole + b"\0",
    }.get(kind, bytes(changed))


DAMAGES = [
    ("magic", "not made by tsm-compress"),
    ("version", "format 0, wanted 1"),
    ("model", "compressed with the model of SHA-256"),
    ("length", "damaged|cut short|goes on"),
    ("CRC", "damaged: CRC-32"),
    ("code", "damaged|cut short|goes on"),
    ("nothing", "not made by tsm-compress"),
    ("half a header", "cut short, wanted a header"),
    ("no code", "cut short|damaged"),
    ("half", "cut short"),
    ("a byte less", "cut short|damaged"),
    ("a byte more", "goes on after its end"),
]


@pytest.mark.parametrize(("kind", "says"), DAMAGES)
def test_a_damaged_file_is_refused_and_nothing_is_written(native, tmp_path, capfd, kind, says):
    path, out = tmp_path / "text.tsm", tmp_path / "text"
    path.write_bytes(damage(kind, compressed(native, TEXT * 3)))
    out.write_bytes(b"kept")
    assert compress.main(["-d", str(path), "--force"]) == 2
    _, err = capfd.readouterr()
    assert err.count("\n") == 1 and re.match(f"tsm-compress: {path}: ({says})", err), err
    assert out.read_bytes() == b"kept" and set(tmp_path.iterdir()) == {path, out}


def test_another_model_is_refused(native):
    artifact = copy.copy(native.artifact)
    artifact.sha256 = "ab" * 32
    other = NativeEngine(artifact)
    with pytest.raises(command.CommandError, match="abab"):
        original(other, compressed(native, TEXT))


def test_the_commands_compress_and_take_back(tmp_path):
    path, packed = tmp_path / "text", tmp_path / "text.tsm"
    path.write_bytes(TEXT * 5)
    report = json.loads(output("compress", "--json", path))
    assert report["original_bytes"] == len(TEXT) * 5
    assert report["compressed_bytes"] == packed.stat().st_size
    assert report["bits_per_byte"] == 8 * packed.stat().st_size / (len(TEXT) * 5)
    assert report["ratio"] == pytest.approx(8 / report["bits_per_byte"])
    assert 0 < report["zlib_bytes"] < len(TEXT) * 5 and 0 < report["lzma_bytes"] < len(TEXT) * 5
    done = run("compress", path)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1) and b"exists" in done.stderr
    path.unlink()
    report = json.loads(output("compress", "-d", "--json", packed))
    assert report["compressed_bytes"] == packed.stat().st_size
    assert path.read_bytes() == TEXT * 5
    assert set(tmp_path.iterdir()) == {path, packed}


def test_pipes_compress_and_take_back():
    packed = output("compress", input=TEXT)
    assert output("compress", "--decompress", input=packed) == TEXT
    assert len(packed) < len(TEXT)


def test_the_folder_alone_with_the_compiled_engine_does_all_of_it(tmp_path):
    folder, text = tmp_path / "device", tmp_path / "text"
    shutil.copytree(RUNTIME, folder, ignore=shutil.ignore_patterns("__pycache__"))
    text.write_bytes(TEXT)
    for line in (
        ["compress.py", text],
        ["compress.py", "-d", f"{text}.tsm", "--out", f"{text}.back"],
        ["score.py", text],
        ["describe.py"],
        ["bench.py", "--longest", "10", "--repeats", "1", "--bytes", "2"],
    ):
        path = [sys.executable, "-S", "-W", "error", str(folder / line[0]), *map(str, line[1:])]
        done = subprocess.run(
            path, capture_output=True, check=False, env={"PATH": os.environ["PATH"]}, cwd="/"
        )
        assert (done.returncode, done.stderr) == (0, b"")
    assert Path(f"{text}.back").read_bytes() == TEXT


# Bench


@pytest.mark.parametrize(
    ("longest", "wanted"),
    [(10, [10]), (100, [100]), (101, [100, 101]), (10_000, [100, 1000, 10_000])],
)
def test_positions_go_by_tens_to_the_longest(longest, wanted):
    assert bench.positions(longest) == wanted


class Recorded(engines.Engine):
    """Remembers all that was read as its state, and at what length it was asked."""

    def __init__(self) -> None:
        super().__init__(open_artifact(TFLITE))
        self.artifact.state = {}
        self.read, self.asked = b"", []

    def feed(self, data: bytes):
        self.asked.append((len(self.read), len(data)))
        self.read += data
        return engines.array("f", bytes(1024))

    def get_state(self) -> dict[str, bytes]:
        return {"read": self.read}

    def set_state(self, state: dict[str, bytes]) -> None:
        self.read = state["read"]

    def _write_state(self, state): ...

    def _run(self, tokens): ...


def test_a_position_is_reached_by_feeding_and_measured_there(monkeypatch):
    engine = Recorded()
    monkeypatch.setattr(bench, "open_engine", lambda *_: engine)
    monkeypatch.setattr(bench, "first_byte_seconds", lambda *_: 0.5)
    monkeypatch.setattr(bench, "peak_rss_bytes", lambda *_: None)
    found = bench.bench(engine.artifact, ["native"], 1500, 2, 3)
    assert engine.read == (bench.TEXT * 40)[:1500]
    decode = [(100 + i, 1) for i in range(3)]
    assert engine.asked[:9] == [(0, 100), *[(100, 1024), *decode] * 2]
    assert [row["position"] for row in found["speed"]] == [100, 1000, 1500]
    (process,) = found["processes"]
    assert process["first_byte_seconds"] == 0.5
    assert "not readable" in bench.shown(found)


@pytest.mark.parametrize("weight_cache", [False, True])
def test_bench_measures_the_shipped_model(weight_cache, tmp_path):
    settings = ("--longest", 120, "--repeats", 1, "--bytes", 5, "--engine", "native", "litert")
    cache = ("--weight-cache", tmp_path) if weight_cache else ()
    found = json.loads(output("bench", *settings, *cache, "--json"))
    assert found["weight_cache"] == weight_cache == bool(list(tmp_path.iterdir()))
    rows = [(row["engine"], row["position"]) for row in found["speed"]]
    assert rows == [(kind, at) for at in (100, 120) for kind in ("native", "litert")]
    assert all(row["decode_bytes_per_second"] > 1 for row in found["speed"])
    for process in found["processes"]:
        assert 0.01 < process["first_byte_seconds"] < 100
        assert 8_000_000 < process["peak_rss_bytes"] < 56_000_000


def test_energy_is_of_whole_packages_and_may_begin_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "POWERCAP", tmp_path)
    assert bench.energy_counters() == []
    for name, energy in (("intel-rapl:0", 900), ("intel-rapl:1", 5), ("intel-rapl:0:0", 7)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{energy}\n")
        (tmp_path / name / "max_energy_range_uj").write_text("999\n")
    before = bench.energy_counters()
    assert before == [(900, 1000), (5, 1000)]
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100\n")
    assert bench.joules_between(before, bench.energy_counters()) == pytest.approx(200e-6)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert bench.energy_counters() == []


def test_a_process_that_fails_is_one_clear_line(tmp_path):
    with pytest.raises(command.CommandError, match=r"no such file[^\n]+$"):
        bench.first_byte_seconds(tmp_path / "none.tflite", "native")
    with pytest.raises(command.CommandError, match=r"no such file[^\n]+$"):
        bench.peak_rss_bytes(tmp_path / "none.tflite", "native")
