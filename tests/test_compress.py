"""The command tsm-compress: the coder alone, then files.

pytest tests/test_compress.py
"""

from __future__ import annotations

import copy
import io
import json
import math
import os
import random
import re
import shutil
from array import array
from itertools import accumulate

import pytest
from commands import RUNTIME, TEXT, TFLITE, on_terminal, output, python, refused, run

from tsm.runtime import command, compress, score
from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines.native import NativeEngine


@pytest.fixture(scope="module")
def native() -> NativeEngine:
    return compress.open_native(TFLITE)


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
            rows = array("f")
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


def test_compressing_wants_the_native_engine(tmp_path):
    folder = tmp_path / "device"
    shutil.copytree(RUNTIME, folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    line = refused(python(folder / "compress.py", os.devnull, "--out", tmp_path / "x"))
    assert "the native engine is not here" in line


def test_no_terminal_gets_compressed_data():
    done = on_terminal("compress", "--out", "-", typed=TEXT)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"on its way to a terminal" in done.stderr and done.stderr.count(b"\n") == 1
