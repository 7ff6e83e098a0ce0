"""The corpus: split, batches, windows, and one clear line for each file that cannot be used."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import lzma
import threading
import zipfile

import numpy as np
import pytest

from tsm.training.corpora import CORPORA
from tsm.training.data import DataError, _epoch, batch, fresh_windows, open_corpus


def test_split_is_90_10_without_overlap_and_nothing_lost(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, 1003, np.uint8).tobytes()
    (tmp_path / "x.bin").write_bytes(content)  # not UTF-8
    corpus = open_corpus(tmp_path / "x.bin", 64)
    assert bytes(corpus.train) + bytes(corpus.validation) == content
    assert len(corpus.train) == 902
    assert isinstance(corpus.train, np.memmap)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "no such file, wanted a file"),
        (lambda p: p.mkdir(), "0 files, no text in them, wanted a text"),
        (lambda p: p.write_bytes(b""), "0 bytes, wanted at least 650"),
        (lambda p: p.write_bytes(b"x" * 640), "640 bytes, wanted at least 650"),
    ],
)
def test_unusable_files(tmp_path, make, message):
    make(tmp_path / "corpus")
    with pytest.raises(DataError, match=message):
        open_corpus(tmp_path / "corpus", 64)


def test_the_smallest_usable_file(tmp_path):
    (tmp_path / "x").write_bytes(b"x" * 650)
    corpus = open_corpus(tmp_path / "x", 64)
    assert batch(corpus.train, 0, 0, 2, 64).shape == (2, 65)
    assert fresh_windows(corpus.validation, 64)[0].shape == (1, 65)


def test_batches_are_a_function_of_seed_and_step():
    source = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
    one = [batch(source, 7, step, 4, 100) for step in range(60)]
    _epoch.cache_clear()
    assert np.array_equal(one[57], batch(source, 7, 57, 4, 100))  # without those before it
    assert not np.array_equal(one[3], batch(source, 8, 3, 4, 100))
    assert not np.array_equal(one[3], one[4])


@pytest.mark.parametrize("length", [101, 150, 200, 201, 10_000, 10_001])
def test_an_epoch_visits_every_window_once(length):
    source = np.arange(length)
    count = (length - 1) // 100 - (length > 200)
    rows = np.concatenate([batch(source, 0, step, 1, 100) for step in range(count)])
    starts = sorted(rows[:, 0])
    assert np.array_equal(np.diff(starts), np.full(count - 1, 100))
    assert all(np.array_equal(row, np.arange(row[0], row[0] + 101)) for row in rows)


def test_fresh_windows_predict_every_byte_but_the_first_once():
    source = np.arange(1000) % 251
    rows, rest = fresh_windows(source, 64)
    predicted = np.concatenate([rows[:, 1:].ravel(), rest[0, 1:]])
    assert np.array_equal(predicted, source[1:])


def test_shakespeare_is_found_where_documented_and_checked(tmp_path, monkeypatch):
    text = b"not Shakespeare " * 1000
    sizes = {"size": len(text), "train": len(text) - 1000, "validation": 1000}
    known = {**sizes, "sha256": hashlib.sha256(text).hexdigest(), "url": "http://127.0.0.1:9/gone"}
    corpus = dataclasses.replace(CORPORA["shakespeare"], **known)
    monkeypatch.setitem(CORPORA, "shakespeare", corpus)
    monkeypatch.setenv("TSM_DATA", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    with pytest.raises(DataError, match="set TSM_DATA, or let train.py --download fetch it"):
        open_corpus("shakespeare", 64)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/x"
        monkeypatch.setitem(CORPORA, "shakespeare", dataclasses.replace(corpus, url=url))
        cached = open_corpus("shakespeare", 64, download=True).path
        server.shutdown()
        thread.join()
    assert cached == tmp_path / "b" / "tsm" / "tinyshakespeare.txt"
    assert cached.read_bytes() == text
    monkeypatch.setitem(CORPORA, "shakespeare", corpus)
    assert open_corpus("shakespeare", 64, download=True).path == cached  # no second download

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tinyshakespeare.txt").write_bytes(text + b"!")
    with pytest.raises(DataError, match="SHA-256"):
        open_corpus("shakespeare", 64)


def enwik8_of(text: bytes, url: str = "http://127.0.0.1:9/gone"):
    """A smaller one: 80% of the text, 10% and 10%."""
    tenth = len(text) // 10
    sizes = {"size": len(text), "train": 8 * tenth, "validation": tenth}
    digest = hashlib.sha256(text).hexdigest()
    return dataclasses.replace(CORPORA["enwik8"], **sizes, sha256=digest, url=url)


def test_enwik8_is_unpacked_once_and_has_a_test_part(tmp_path, monkeypatch):
    text = bytes(range(250)) * 40
    monkeypatch.setitem(CORPORA, "enwik8", enwik8_of(text))
    monkeypatch.setenv("TSM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    packed = tmp_path / "enwik8.xz"
    packed.write_bytes(lzma.compress(text[:-1]))
    with pytest.raises(DataError, match=r"enwik8.xz: SHA-256"):
        open_corpus("enwik8", 64)
    packed.write_bytes(lzma.compress(text)[:-20])
    with pytest.raises(DataError, match=r"enwik8.xz: cannot be unpacked"):
        open_corpus("enwik8", 64)
    packed.write_bytes(lzma.compress(text))
    corpus = open_corpus("enwik8", 64)
    parts = [bytes(part) for part in (corpus.train, corpus.validation, corpus.test)]
    assert parts == [text[:8000], text[8000:9000], text[9000:]]
    packed.unlink()
    assert open_corpus("enwik8", 64).path == tmp_path / "cache/tsm/enwik8"


def test_a_zip_archive_is_downloaded_and_unpacked(tmp_path, monkeypatch):
    text = bytes(range(250)) * 40
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("enwik8", text)
    monkeypatch.setitem(CORPORA, "enwik8", enwik8_of(text, f"file://{tmp_path}/enwik8.zip"))
    monkeypatch.setenv("TSM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert open_corpus("enwik8", 64, download=True).path.read_bytes() == text


def test_a_failed_download_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("TSM_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    gone = dataclasses.replace(CORPORA["shakespeare"], url="http://127.0.0.1:9/gone")
    monkeypatch.setitem(CORPORA, "shakespeare", gone)
    with pytest.raises(DataError, match="cannot be downloaded"):
        open_corpus("shakespeare", 64, download=True)
    assert not (tmp_path / "tsm").exists()
