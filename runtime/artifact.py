"""An artifact: a .tflite or .onnx file that says what it is and can be checked before it is run.

Its bytes hold exactly one JSON object, wherever the file format puts metadata:

    {"tsm_artifact": 2, "file_bytes": "000014110208", "sha256": "<64 hex digits>", ...}

2 is the format version, and `sha256` is that of the whole file with its own 64 digits set to 0.
Exporters write it with `metadata_json` and, once the file is whole, `seal`; the runtime reads it
with `open_artifact`. Run it to check files: python runtime/artifact.py FILE...
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

FORMAT_VERSION = 2
MARKER = b'{"tsm_artifact": '
PIECE_BYTES = 1 << 20  # a file is read in pieces: verifying must not cost memory
JSON_BYTES_LIMIT = 1 << 16
BLOCK_TOKENS_LIMIT = 1 << 16
STATE_VALUES_LIMIT = 1 << 27  # 512 MB: of attention over 8K bytes, say

_SEALED_FIELDS = ', "file_bytes": "%012d", "sha256": "%s"'
_HEADER = re.compile(
    re.escape(MARKER) + rb'(\d+), "file_bytes": "(\d{12})", "sha256": "([0-9a-f]{64})"'
)
_NO_DIGEST = "0" * 64


class ArtifactError(ValueError):
    """A file that cannot be used as an artifact: found and wanted, in one line."""


@dataclass(frozen=True)
class Artifact:
    """A verified file, and what it says about itself."""

    path: Path
    sha256: str
    spec: dict[str, Any]  # the fields of training/spec.py's ModelSpec
    quantization: str  # "none", "int8" or "int4"
    license: str
    source_sha256: str  # of the model.safetensors that it was made from
    prefill_tokens: int  # block length of the `prefill` entry
    state: dict[str, list[int]]  # fp32 shapes by name
    places: dict[str, list[str]]  # by weight, offsets in the file (native_engine.py), or empty


_WANTED = {
    "spec": "an object",
    "state": "shapes of whole numbers by name, of not too many values",
    "places": "lists of text by name",
    "prefill_tokens": "a whole number, 1 to 65,536",
    "quantization": "text",
    "license": "text",
    "source_sha256": "text",
}
_KEYS = {f.name for f in fields(Artifact)} - {"path", "sha256"}


def metadata_json(metadata: dict[str, Any]) -> str:
    """The JSON text that an exporter stores in its file, still to be sealed.

    `metadata` has exactly the keys of `Artifact` less path and sha256.
    """
    if metadata.keys() != _KEYS:
        raise ArtifactError(f"metadata: keys {sorted(metadata)}, wanted {sorted(_KEYS)}")
    head = MARKER.decode() + str(FORMAT_VERSION) + _SEALED_FIELDS % (0, _NO_DIGEST)
    return head + ", " + json.dumps(metadata, sort_keys=True)[1:]


def seal(data: bytes) -> bytes:
    """`data`, a whole file holding one `metadata_json`, with its length and digest filled in."""
    found = list(_HEADER.finditer(data))
    if len(found) != 1 or data.count(MARKER) != 1:
        raise ArtifactError(f"seal: {data.count(MARKER)} metadata objects, wanted exactly one")
    start, end = found[0].span(2)[0], found[0].span(3)
    unsealed = b'%012d", "sha256": "%s' % (len(data), _NO_DIGEST.encode())
    data = data[:start] + unsealed + data[end[1] :]
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[: end[0]] + digest + data[end[1] :]


def open_artifact(path: str | Path) -> Artifact:
    """Verifies format version, length and digest of the file, in little memory, and reads what
    it says about itself. Raises ArtifactError; no interpreter should see a file before this."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            return _verify(path, file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ArtifactError(f"{path}: {reason}, wanted a .tflite or .onnx model") from None


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    return iter(lambda: file.read(PIECE_BYTES), b"")


def _marker_offsets(file: BinaryIO) -> list[int]:
    """Where MARKER stands in the file, also where it straddles two pieces."""
    offsets, tail, start = [], b"", 0
    for piece in _pieces(file):
        window = tail + piece
        offsets += [start - len(tail) + m.start() for m in re.finditer(re.escape(MARKER), window)]
        start += len(piece)
        tail = window[1 - len(MARKER) :]  # too short to hold a marker already counted
    return offsets


def _verify(path: Path, file: BinaryIO) -> Artifact:
    offsets = _marker_offsets(file)
    if len(offsets) != 1:
        raise ArtifactError(
            f"{path}: {len(offsets)} TSM headers found, wanted exactly one "
            "(not a TSM artifact, or cut short)"
        )
    file_bytes = file.seek(0, 2)
    file.seek(offsets[0])
    text = file.read(JSON_BYTES_LIMIT)
    version = text[len(MARKER) :].partition(b",")[0][:9].decode("ascii", "replace")
    if version != str(FORMAT_VERSION):
        raise ArtifactError(f"{path}: artifact format {version!r}, wanted '{FORMAT_VERSION}'")
    header = _HEADER.match(text)
    if not header:
        raise ArtifactError(f"{path}: damaged header, wanted its length and SHA-256")
    wanted_bytes, wanted_sha256 = int(header[2]), header[3].decode()
    if file_bytes != wanted_bytes:
        raise ArtifactError(
            f"{path}: {file_bytes} bytes, its header wants {wanted_bytes} (incomplete or extended)"
        )
    sha256 = _sha256_less(file, offsets[0] + header.start(3))
    if sha256 != wanted_sha256:
        raise ArtifactError(f"{path}: SHA-256 {sha256}, its header wants {wanted_sha256} (damaged)")
    try:
        stored, _ = json.JSONDecoder().raw_decode(text.decode("utf-8", "replace"))
    except ValueError as error:
        raise ArtifactError(f"{path}: header is not JSON ({error})") from None
    metadata = {k: v for k, v in stored.items() if k not in ("tsm_artifact", "file_bytes")}
    if metadata.keys() != _KEYS | {"sha256"}:
        found = sorted(metadata.keys() - {"sha256"})
        raise ArtifactError(f"{path}: header keys {found}, wanted {sorted(_KEYS)}")
    wrong = [key for key in _WANTED if not _fits(key, metadata[key])]
    if wrong:
        raise ArtifactError(f"{path}: header {wrong[0]}, wanted {_WANTED[wrong[0]]}")
    return Artifact(path=path, **metadata)


def _fits(key: str, value: Any) -> bool:
    if key == "prefill_tokens":
        return type(value) is int and 0 < value <= BLOCK_TOKENS_LIMIT
    if key in ("spec", "state", "places"):
        if not isinstance(value, dict):
            return False
        shapes = value.values()
        if key == "places":
            return all(isinstance(v, list) and all(type(p) is str for p in v) for v in shapes)
        if key == "state":
            sizes = [v if isinstance(v, list) else [0] for v in shapes]
            whole = all(type(n) is int and n > 0 for size in sizes for n in size)
            return whole and sum(map(math.prod, sizes)) <= STATE_VALUES_LIMIT
        return True
    return isinstance(value, str)


def _sha256_less(file: BinaryIO, digest_offset: int) -> str:
    """SHA-256 of the file with the 64 digits at `digest_offset` read as 0."""
    digest, zeros, start = hashlib.sha256(), _NO_DIGEST.encode(), 0
    for piece in _pieces(file):
        first, last = digest_offset - start, digest_offset - start + 64  # within this piece
        if first < len(piece) and last > 0:
            a, b = max(first, 0), min(last, len(piece))
            piece = piece[:a] + zeros[: b - a] + piece[b:]
        digest.update(piece)
        start += len(piece)
    return digest.hexdigest()


def main() -> int:
    try:
        for path in sys.argv[1:]:
            found = open_artifact(path)
            print(f"{path}: ok, {found.quantization}, {found.license}, SHA-256 {found.sha256}")
    except ArtifactError as error:
        print(f"artifact: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
