"""Artifacts: what they say about themselves, and that damage is found.

pytest tests/test_artifact.py
"""

from __future__ import annotations

import random
import tracemalloc

import pytest

from tsm.runtime import artifact, stream

METADATA = {
    "spec": {"width": 64},
    "quantization": "int8",
    "license": "MIT",
    "source_sha256": "ab" * 32,
    "prefill_tokens": 64,
    "initial_state": "zeros",
    "state": {"memory": [1, 1, 1, 2, 4], "history": [1, 1, 3, 8]},
    "offsets": {},
}


def sealed(before: int = 10, after: int = 1000) -> bytes:
    noise = random.Random(before)
    text = artifact.metadata_json(METADATA).encode()
    return artifact.seal(noise.randbytes(before) + text + noise.randbytes(after))


PIECE = artifact.PIECE_BYTES


@pytest.mark.parametrize(
    "before", [0, 10, PIECE - 200, PIECE - 100, PIECE - 60, PIECE - 3, PIECE, 2 * PIECE - 70]
)
def test_a_sealed_file_opens_wherever_its_header_stands(tmp_path, before):
    (tmp_path / "model").write_bytes(sealed(before))
    found = artifact.open_artifact(tmp_path / "model")
    assert {key: getattr(found, key) for key in METADATA} == METADATA
    assert artifact.seal(sealed(before)) == sealed(before)


@pytest.mark.parametrize("width", [float("nan"), float("inf"), -1, None, [4]])
def test_a_spec_that_no_model_has_is_refused(tmp_path, width):
    text = artifact.metadata_json({**METADATA, "spec": {"width": width}}).encode()
    (tmp_path / "model").write_bytes(artifact.seal(text))
    with pytest.raises(artifact.ArtifactError, match="spec"):
        artifact.open_artifact(tmp_path / "model")


def damaged(kind: str) -> bytes:
    whole = bytearray(sealed())
    digest = whole.index(b'"sha256": "') + 11
    if kind.startswith("bit of "):
        places = {"first byte": 0, "spec": whole.index(b"width"), "digest": digest + 63}
        whole[{**places, "last byte": len(whole) - 1}[kind[7:]]] ^= 1
    return {
        "empty": b"",
        "no header": b"TFL3" * 1000,
        "half": bytes(whole[: len(whole) // 2]),
        "one byte short": bytes(whole[:-1]),
        "one byte long": bytes(whole) + b"\0",
        "two headers": artifact.seal(sealed()) + sealed(),
        "format 3": bytes(whole).replace(b'"tsm_artifact": 4', b'"tsm_artifact": 3'),
        "not sealed": bytes(whole).replace(bytes(whole[digest : digest + 64]), b"0" * 64),
        "not JSON": bytes(whole).replace(b'"spec": {', b'"spec": ['),
    }.get(kind, bytes(whole))


DAMAGES = [
    ("empty", "0 TSM headers"),
    ("no header", "0 TSM headers"),
    ("half", "incomplete"),
    ("one byte short", "incomplete"),
    ("one byte long", "extended"),
    ("two headers", "2 TSM headers"),
    ("format 3", "artifact format '3', wanted '4'"),
    ("not sealed", "damaged"),
    ("not JSON", "damaged"),
    ("bit of first byte", "damaged"),
    ("bit of spec", "damaged"),
    ("bit of digest", "damaged"),
    ("bit of last byte", "damaged"),
]


@pytest.mark.parametrize(("kind", "says"), DAMAGES)
def test_a_damaged_artifact_is_refused_before_any_interpreter(
    tmp_path, monkeypatch, capsys, kind, says
):
    def opened(*_):
        raise AssertionError("an interpreter was given a damaged file")

    path = tmp_path / "model.tflite"
    path.write_bytes(damaged(kind))
    monkeypatch.setattr(stream, "open_engine", opened)
    with pytest.raises(artifact.ArtifactError, match=says):
        stream.load(path)


def test_a_thousand_damages_are_each_one_clear_error(tmp_path):
    whole, choose, path = sealed(), random.Random(1), tmp_path / "model"
    for _ in range(1000):
        data, place = bytearray(whole), choose.randrange(len(whole))
        kind = choose.choice(["bit", "cut", "insert", "zeros", "twice"])
        if kind == "bit":
            data[place] ^= 1 << choose.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = choose.randbytes(choose.randrange(1, 100))
        elif kind == "zeros":
            data[place:] = bytes(len(data) - place)
        else:
            data += data[place:]
        path.write_bytes(data)
        try:
            artifact.open_artifact(path)
            assert data == whole  # a last zero made zero
        except artifact.ArtifactError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_metadata_is_exactly_what_the_format_says():
    with pytest.raises(artifact.ArtifactError, match="wanted"):
        artifact.metadata_json({**METADATA, "mood": "gay"})
    with pytest.raises(artifact.ArtifactError, match="0 metadata objects"):
        artifact.seal(b"nothing")
    with pytest.raises(artifact.ArtifactError, match="2 metadata objects"):
        artifact.seal(2 * artifact.metadata_json(METADATA).encode())


def test_verifying_a_large_file_takes_little_memory(tmp_path):
    (tmp_path / "model").write_bytes(sealed(after=32 * PIECE))
    tracemalloc.start()
    artifact.open_artifact(tmp_path / "model")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 19
