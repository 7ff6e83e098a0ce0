"""Corpora that are read where they stand: what is read, in which order, and what if they change.

pytest tests/test_large.py
"""

from __future__ import annotations

import gzip
import shutil
import sys

import numpy as np
import pytest
from commands import python, refused
from test_documents import folder_of, text

from tsm.training import data, documents, large
from tsm.training.corpora import sha256
from tsm.training.data import DataError, batch, open_corpus, recorded_corpus, text_at
from tsm.training.documents import CORPUS, HEAD, INDEX, RECORD

LONG = 200  # lines, more than are compared


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    for module in (data, documents):
        monkeypatch.setattr(module, "LARGE", 10_000)


def read(part) -> bytes:
    return np.asarray(part).tobytes()


def long_texts(count: int = 30) -> dict[str, str]:
    return {f"{i % 3}/{i}.txt": text(i, LONG) for i in range(count)}


def test_plain_files_stay_where_they_are(tmp_path):
    texts = long_texts()
    folder_of(tmp_path / "data", texts | {"short.txt": "short\n", "open.txt": "no end"})
    (tmp_path / "data/marked.txt").write_text("Grüße aus Bonn\n" * 900, encoding="utf-8-sig")
    (tmp_path / "data/wide.txt").write_text("Grüße aus Köln\n", encoding="utf-16")
    (tmp_path / "data/packed.txt.gz").write_bytes(gzip.compress(b"packed\n"))
    (tmp_path / "data/picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    corpus = open_corpus([tmp_path / "data"], 16, folder=tmp_path / "run")
    assert "1 binary files left out" in corpus.summary
    copied = ["Grüße aus Köln\n".encode(), b"packed\n"]
    assert sorted((tmp_path / "run" / CORPUS).read_bytes()) == sorted(b"".join(copied))
    train, validation = read(corpus.train), read(corpus.validation)
    wanted = [one.encode() + b"\n" for one in texts.values()] + copied
    wanted += [b"short\n", b"no end\n", "Grüße aus Bonn\n".encode() * 900 + b"\n"]
    assert sorted(train + validation) == sorted(b"".join(wanted))
    for one in wanted:
        assert (one in train) != (one in validation)
    assert 0.05 < len(validation) / len(train + validation) < 0.2


def test_any_slice_is_that_of_the_whole(tmp_path):
    corpus = open_corpus([folder_of(tmp_path / "data", long_texts(9))], 16)
    whole = read(corpus.train)
    edges = np.random.default_rng(0).integers(0, len(whole), (300, 2))
    for first, last in [*edges.tolist(), (-7, len(whole)), (0, 0), (5, 10**9)]:
        assert read(corpus.train[first:last]) == whole[first:last]
        assert read(corpus.train[3:][first:last]) == whole[3:][first:last]


def test_an_epoch_visits_every_window_once_in_an_order_of_its_own(tmp_path):
    corpus = open_corpus([folder_of(tmp_path / "data", long_texts(9))], 100)
    whole, count = np.asarray(corpus.train), (len(corpus.train) - 1) // 100
    places = {whole[n * 100 : n * 100 + 101].tobytes(): n for n in range(count)}
    epochs = [
        [places[batch(corpus.train, 1, n, 1, 100).astype(np.uint8).tobytes()] for n in steps]
        for steps in (range(count), range(count, 2 * count))
    ]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(count))
    assert epochs[0] != epochs[1]


def test_a_resumed_run_and_several_processes_see_the_same_examples(tmp_path):
    corpus = open_corpus([folder_of(tmp_path / "data", long_texts(9))], 64)
    batches = [batch(corpus.train, 7, step, 8, 64) for step in range(40)]
    large._batches.cache_clear()
    assert np.array_equal(batch(corpus.train, 7, 33, 8, 64), batches[33])
    assert np.array_equal(batch(corpus.train, 7, 34, 8, 64), batches[34])
    assert np.array_equal(batch(corpus.train, 7, 5, 8, 64), batches[5])
    halves = [batch(corpus.train, 7, 33, 8, 64, part) for part in (slice(4), slice(4, None))]
    assert np.array_equal(np.concatenate(halves), batches[33])
    assert not np.array_equal(batch(corpus.train, 8, 33, 8, 64), batches[33])


def test_copies_are_left_out_and_near_copies_stay_on_one_side(tmp_path):
    texts = {f"{i}.txt": text(i, LONG) for i in range(30)}
    near = {f"near{i}.txt": one.replace("king", "duke", 1) for i, one in enumerate(texts.values())}
    other_end = {"end.txt": texts["7.txt"][:-2] + "!\n"}
    copies = {"copy.txt": texts["7.txt"], "sub/copy.txt": texts["8.txt"]}
    folder_of(tmp_path / "data", texts | near | other_end | copies)
    corpus = open_corpus([tmp_path / "data"], 16)
    assert "61 documents" in corpus.summary and "2 duplicates" in corpus.summary
    assert f"31 near duplicates), compared by their first {HEAD:,} bytes" in corpus.summary
    train = read(corpus.train)
    for i in range(30):
        assert (texts[f"{i}.txt"].encode() in train) == (near[f"near{i}.txt"].encode() in train)
    assert (other_end["end.txt"].encode() in train) == (texts["7.txt"].encode() in train)


def test_of_one_large_file_the_end_is_held_out_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MOST_VALIDATION", 1000)
    path = tmp_path / "one.bin"
    path.write_bytes(b"\xff\xfe\0binary\n" + text(1, 900).encode())
    corpus = open_corpus(path, 16)
    assert "split at the end" in corpus.summary and len(corpus.validation) == 1000
    assert read(corpus.train) + read(corpus.validation) == path.read_bytes() + b"\n"


def test_an_index_is_kept_follows_its_files_and_is_made_again(tmp_path):
    notes, out = folder_of(tmp_path / "notes", long_texts()), tmp_path / "run"

    def opened(where):
        corpus = open_corpus([where], 16, folder=out)
        return read(corpus.train), sha256(out / INDEX), (out / INDEX).stat().st_mtime_ns

    first = opened(notes)
    assert opened(notes) == first
    moved = opened(shutil.copytree(notes, tmp_path / "elsewhere"))
    assert moved[:2] == first[:2] and moved[2] != first[2]
    for name, content in ((INDEX, b"PK\3\4 cut"), (INDEX, b""), (RECORD, b"{"), (CORPUS, b"more")):
        (out / name).write_bytes(content)
        assert opened(notes)[:2] == first[:2]
    with (notes / "0/0.txt").open("a") as file:
        file.write("more\n")
    assert opened(notes)[1] != first[1]


def test_the_text_of_a_record_is_found_where_it_was(tmp_path):
    corpus = open_corpus([folder_of(tmp_path / "data", long_texts())], 16, folder=tmp_path / "run")
    sizes = {"train_bytes": len(corpus.train), "validation_bytes": len(corpus.validation)}
    record = {"data": {"path": corpus.path, **sizes}, "data_sha256": sha256(corpus.path)}
    found = recorded_corpus(record, 16)
    assert found and read(found.validation) == read(corpus.validation)
    assert len(text_at(corpus.path)) == sum(sizes.values())
    corpus.path.write_bytes(b"PK\3\4 cut")
    assert recorded_corpus(record, 16) is None


@pytest.mark.parametrize("change", ["shortened", "deleted"])
def test_a_file_that_changes_while_it_is_read_is_told_in_a_line(tmp_path, change):
    corpus = open_corpus([folder_of(tmp_path / "data", long_texts())], 64)
    for path in (tmp_path / "data").rglob("*.txt"):
        path.write_text("") if change == "shortened" else path.unlink()
    with pytest.raises(DataError, match=r"\.txt: .*, wanted it") as error:
        batch(corpus.train, 0, 0, 8, 64)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_told_in_a_line(tmp_path):
    folder_of(tmp_path / "data", long_texts())
    (tmp_path / "data/broken.txt").symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match="broken.txt: input/output error, wanted a readable file"):
        open_corpus([tmp_path / "data"], 64, folder=tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_without_grain_the_extra_is_named(tmp_path, monkeypatch):
    folder_of(tmp_path, long_texts())
    monkeypatch.setitem(sys.modules, "grain", None)
    wanted = r"more than 10,000 bytes: grain is not installed, wanted: pip .*'\.\[data\]'"
    with pytest.raises(DataError, match=wanted):
        open_corpus([tmp_path], 64)


def test_a_training_on_a_large_corpus_refuses_another_one(tmp_path):
    notes, out = folder_of(tmp_path / "notes", long_texts()), tmp_path / "run"
    small = "import sys; from tsm.training import data, documents; "
    small += "data.LARGE = documents.LARGE = 10_000; from tsm.training.train import main; "
    options = ["--preset", "tiny", "--window", "32", "--batch", "2", "--no-export", "--out", out]

    def train(*more):
        command = [small + "sys.exit(main(sys.argv[1:]))", "--data", notes, *options, *more]
        return python("-c", *command)

    done = train("--steps", "2")
    assert done.returncode == 0 and b"30 documents" in done.stderr, done.stderr
    assert "no longer where it was" not in (out / "report.html").read_text()
    with (notes / "0/0.txt").open("a") as file:
        file.write("more\n")
    assert "was started with another text, or this one has changed" in refused(
        train("--steps", "4")
    )
