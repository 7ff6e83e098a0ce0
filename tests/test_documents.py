"""Corpora of many files: what is read, what is left out, and that no held-out text is learned from.

pytest tests/test_documents.py
"""

from __future__ import annotations

import csv
import gzip
import json
import random

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from commands import ROOT, python, refused

from tsm.training.data import DataError, open_corpus
from tsm.training.documents import CORPUS, RECORD

WORDS = ["king", "queen", "lord", "fool", "speaks", "weeps", "laughs", "sword", "crown", "night"]
WORDS += ["day", "love", "hate", "my", "thy", "the", "a"]


def text(seed: int, lines: int = 30) -> str:
    choices = random.Random(seed)
    return "".join(" ".join(choices.choices(WORDS, k=9)) + "\n" for _ in range(lines))


def halves(*paths, **how) -> tuple[bytes, bytes]:
    corpus = open_corpus(paths, 16, **how)
    return bytes(corpus.train), bytes(corpus.validation)


def folder_of(path, texts: dict[str, str]):
    for name, content in texts.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return path


def test_whole_documents_are_held_out(tmp_path):
    texts = {f"{i % 3}/{i}.txt": text(i) for i in range(40)}
    train, validation = halves(folder_of(tmp_path, texts))
    assert sorted(train + validation) == sorted("".join(texts.values()).encode())
    for one in texts.values():
        assert (one.encode() in train) != (one.encode() in validation)
    assert 0.05 < len(validation) / len(train + validation) < 0.2


def test_the_split_hardly_moves_when_a_document_is_added(tmp_path):
    folder_of(tmp_path, {f"{i}.txt": text(i) for i in range(40)})
    _, before = halves(tmp_path)
    folder_of(tmp_path, {"another.txt": text(99)})
    train, _ = halves(tmp_path)
    moved = [i for i in range(40) if text(i).encode() in before and text(i).encode() in train]
    assert len(moved) <= 1


def test_duplicates_are_left_out_and_what_is_nearly_alike_stays_together(tmp_path):
    texts = {f"{i}.txt": text(i) for i in range(30)}
    near = {f"near{i}.txt": text(i).replace("king", "duke", 1) for i in range(30)}
    copies = {"copy.txt": text(7), "sub/copy.txt": text(7)}
    corpus = open_corpus([folder_of(tmp_path, texts | near | copies)], 16)
    wanted = (
        "60 documents of 100% .txt (2 duplicates and 0 binary files left out; 30 near duplicates)"
    )
    assert wanted in corpus.summary
    train, validation = bytes(corpus.train), bytes(corpus.validation)
    for i in range(30):
        sides = {
            one[f"{name}{i}.txt"].encode() in train for one, name in ((texts, ""), (near, "near"))
        }
        assert len(sides) == 1
    assert (train + validation).count(text(7).encode()) == 1


def test_a_few_documents_are_split_at_nine_tenths(tmp_path):
    texts = {"a.txt": text(1, 200), "b.txt": text(2, 200)}
    corpus = open_corpus([folder_of(tmp_path, texts)], 16)
    assert "split at the end" in corpus.summary
    whole = "".join(texts.values()).encode()
    assert bytes(corpus.train) + bytes(corpus.validation) == whole
    assert len(corpus.train) == len(whole) * 9 // 10


def test_what_a_folder_holds_besides_text(tmp_path):
    texts = {f"{i}.txt": text(i) for i in range(20)}
    folder_of(tmp_path, texts | {".hidden": "secret\n", ".git/config": "secret\n", "empty": ""})
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    (tmp_path / "wide.txt").write_text("Grüße aus Köln\n", encoding="utf-16")
    (tmp_path / "marked.txt").write_text("Grüße aus Bonn\n", encoding="utf-8-sig")
    (tmp_path / "old.txt").write_bytes("Grüße aus Ulm".encode("latin-1"))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"packed\n"))
    (tmp_path / "b.txt.zst").write_bytes(zstandard.compress(b"packed, too\n"))
    corpus = open_corpus([tmp_path], 16)
    everything = bytes(corpus.train) + bytes(corpus.validation)
    for wanted in ("Grüße aus Köln\n", "Grüße aus Bonn\n", "packed\n", "packed, too\n"):
        assert wanted.encode() in everything
    assert "Grüße aus Ulm\n".encode("latin-1") in everything
    assert b"secret" not in everything and b"PNG" not in everything
    assert "1 binary files left out" in corpus.summary


def table(path, rows: list[str]):
    """A table of any kind, with the columns `id` and `said`."""
    records = [{"id": str(i), "said": row} for i, row in enumerate(rows)]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        with path.open("w", newline="") as file:
            comma = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, ["id", "said"], delimiter=comma)
            writer.writeheader()
            writer.writerows(records)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_each_value_of_a_column_is_a_document(tmp_path, kind):
    rows = [text(i, 2).strip() for i in range(60)]
    rows[3] = 'with "quotes", a comma,\ta tab\nand a line of its own ☃'
    train, validation = halves(table(tmp_path / f"chats.{kind}", rows), column="said")
    together = train + validation
    assert sorted(together) == sorted("".join(row + "\n" for row in rows).encode())
    for row in rows:
        assert (row + "\n").encode() in together


def test_a_table_is_text_without_a_column(tmp_path):
    path = table(tmp_path / "chats.csv", [text(i, 1).strip() for i in range(60)])
    train, validation = halves(path)
    assert train + validation == path.read_bytes()


MISTAKES = {
    "a missing file": (lambda path: path / "none", "no such file"),
    "an empty folder": (lambda path: path, "no text in them, wanted a text to learn from"),
    "no such column": (
        lambda path: table(path / "a.csv", ["x"]),
        "a.csv: line 2: no text in column 'text', wanted --column, one of: id, said",
    ),
    "a number in the column": (
        lambda path: _write(path / "a.jsonl", b'{"text": 3}\n'),
        "a.jsonl: line 1: no text in column 'text'",
    ),
    "no JSON": (lambda path: _write(path / "a.jsonl", b"{\n"), "a.jsonl: line 1 is not JSON"),
    "a cut Parquet": (
        lambda path: _cut(table(path / "a.parquet", ["x"] * 9)),
        "wanted a whole Parquet file",
    ),
    "a cut gzip": (
        lambda path: _cut(_write(path / "a.gz", gzip.compress(text(1).encode()))),
        "a.gz: compressed file ended",
    ),
    "no gzip": (lambda path: _write(path / "a.gz", b"text"), "a.gz: not a gzipped file"),
    "no zstd": (lambda path: _write(path / "a.zst", b"text"), "a.zst: "),
    "no table": (lambda path: _write(path / "a.txt", b"x" * 999), "no table with a column 'text'"),
    "too small": (lambda path: _write(path / "a.gz", gzip.compress(b"x")), "2 bytes, wanted at"),
}


def _write(path, data: bytes):
    path.write_bytes(data)
    return path


def _cut(path):
    return _write(path, path.read_bytes()[:-30])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_in_a_line(tmp_path, mistake):
    make, message = MISTAKES[mistake]
    with pytest.raises(DataError) as error:
        open_corpus([make(tmp_path)], 16, column="text")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_on_a_folder_goes_on_from_what_it_put_together(tmp_path):
    notes, out = tmp_path / "notes", tmp_path / "notes/runs/mine"
    folder_of(notes, {f"{i}.txt": text(i) for i in range(40)})
    options = ["--preset", "tiny", "--window", "32", "--batch", "2", "--no-export", "--out", out]

    def train(*more):
        return python(ROOT / "training/train.py", "--data", notes, *options, *more)

    assert train("--steps", "2").returncode == 0
    before = (out / CORPUS).stat().st_mtime_ns, (out / RECORD).read_text()
    done = train("--steps", "4")
    assert b"40 documents" in done.stderr and done.returncode == 0, done.stderr
    assert ((out / CORPUS).stat().st_mtime_ns, (out / RECORD).read_text()) == before

    evaluated = python(
        *(ROOT / "training/evaluate.py", out / "model.safetensors", "--data", notes, "--json")
    )
    scored = json.loads(evaluated.stdout)
    record = json.loads((out / RECORD).read_text())
    assert scored["bytes"] == record["validation_bytes"]

    folder_of(notes, {"more.txt": text(99)})
    assert "was started with another text, or this one has changed" in refused(
        train("--steps", "5")
    )
