"""An artifact: a .tflite or .onnx file that says what it is and can be checked before it is run.

Its bytes hold exactly one JSON object, wherever the file format puts metadata:

    {"tsm_artifact": 4, "file_bytes": "000014110208", "crc32": "<8 hex digits>",
     "sha256": "<64 hex digits>", ...}

4 is the format version. `sha256` is that of the whole file with the digits of both set to 0: the
model's name. `crc32` is that of the file with its own 8 digits set to 0: it finds damage as surely
and is verified whenever a model is opened, in under half the time and without 4 MB of OpenSSL.
Neither is a signature. Exporters write the object with `metadata_json` and, once the file is whole,
`seal`; the runtime reads it with `open_artifact`. tsm-describe verifies the SHA-256 too.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import zlib

TYPE_CHECKING = False  # as typing's, which costs a start 2 ms
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Any, BinaryIO, TypeVar

    T = TypeVar("T")

FORMAT_VERSION = 4
MARKER = b'{"tsm_artifact": '
PIECE_BYTES = 1 << 16  # a file is read in pieces: verifying must not cost memory
JSON_BYTES_LIMIT = 1 << 16
BLOCK_TOKENS_LIMIT = 1 << 16
STATE_VALUES_LIMIT = 1 << 27  # 512 MB: of attention over 8K bytes, say

_HEAD = MARKER.decode() + str(FORMAT_VERSION)
_SEALED_FIELDS = ', "file_bytes": "%012d", "crc32": "%s", "sha256": "%s"'
_NO_CRC32, _NO_SHA256 = "0" * 8, "0" * 64
_HEADER = _HEAD + _SEALED_FIELDS % (0, _NO_CRC32, _NO_SHA256)  # of this length, always


def _span(name: str, digits: int) -> tuple[int, int]:
    """Where in the header the value lies."""
    key = f'"{name}": "'
    start = _HEADER.index(key) + len(key)
    return start, start + digits


_FILE_BYTES, _CRC32, _SHA256 = _span("file_bytes", 12), _span("crc32", 8), _span("sha256", 64)


class ArtifactError(ValueError):
    """A file that cannot be used as an artifact: found and wanted, in one line."""


class Artifact:
    """A verified file, and what it says about itself."""

    def __init__(
        self,
        path: str,
        sha256: str,
        spec: dict[str, Any],  # the fields of training/spec.py's ModelSpec
        quantization: str,  # "none", "int8" or "int4"
        license: str,
        source_sha256: str,  # of the model.safetensors that it was made from
        prefill_tokens: int,  # block length of the `prefill` entry
        state: dict[str, list[int]],  # fp32 shapes by name
        initial_state: str,  # "zeros": the state before the first byte of a text
        offsets: dict[str, list[str]],  # of each weight's pieces in the file, or empty
    ) -> None:
        self.path, self.sha256, self.spec, self.quantization = path, sha256, spec, quantization
        self.license, self.source_sha256 = license, source_sha256
        self.prefill_tokens, self.state, self.offsets = prefill_tokens, state, offsets
        self.initial_state = initial_state


_WANTED = {
    "spec": "an object",
    "state": "shapes of whole numbers by name, of not too many values",
    "offsets": "lists of text by name",
    "initial_state": "zeros",
    "prefill_tokens": "a whole number, 1 to 65,536",
    "quantization": "text",
    "license": "text",
    "source_sha256": "text",
}
_KEYS = _WANTED.keys()

_MEANINGS = {  # of the parts of the state, in all mixers
    "channels": "what each channel remembers",
    "memory": "what each head remembers",
    "addressed": "what each head holds at every key",
    "projected": "the queries, keys and values that the short convolution still reaches",
    "hidden": "what each channel remembers",
    "sums": "running sums over all keys and values",
    "history": "the inputs that the short convolution still reaches",
    "keys": "keys of the tokens in the window",
    "values": "values of the tokens in the window",
    "valid": "1 where the window holds a token, else 0",
    "count": "tokens read, or since the last whole block",
    "held": "angles of the last whole stretch",
}


def signature(
    state: Mapping[str, Sequence[int]], vocabulary: int, tokens_type: str
) -> dict[str, list[dict[str, Any]]]:
    """The inputs and outputs of a graph: name, type, shape and meaning of each. `length` in a shape
    is the number of bytes that one call reads."""

    def tensor(name: str, kind: str, shape: list[Any], meaning: str) -> dict[str, Any]:
        return {"name": name, "type": kind, "shape": shape, "meaning": meaning}

    tokens = tensor("tokens", tokens_type, [1, "length"], "bytes of the text, 0 to 255")
    meaning = "of the byte after each of these; softmax makes probabilities of them"
    logits = tensor("logits", "float32", [1, "length", vocabulary], meaning)
    inputs, outputs = [tokens], [logits]
    for name, shape in sorted(state.items()):
        meaning = _MEANINGS.get(name, "a part of the state")
        begins = f"{meaning}; zeros before the first byte, then next_{name} of the call before"
        inputs.append(tensor(name, "float32", list(shape), begins))
        outputs.append(tensor(f"next_{name}", "float32", list(shape), f"{name} for the next call"))
    return {"inputs": inputs, "outputs": outputs}


def metadata_json(metadata: dict[str, Any]) -> str:
    """The JSON text that an exporter stores in its file, still to be sealed.

    `metadata` has exactly the keys of `Artifact` less path and sha256.
    """
    if metadata.keys() != _KEYS:
        raise ArtifactError(f"metadata: keys {sorted(metadata)}, wanted {sorted(_KEYS)}")
    return _HEADER + ", " + json.dumps(metadata, sort_keys=True)[1:]


def seal(data: bytes) -> bytes:
    """`data`, a whole file holding one `metadata_json`, with its length and digests filled in."""
    import hashlib

    if data.count(MARKER) != 1:
        raise ArtifactError(f"seal: {data.count(MARKER)} metadata objects, wanted exactly one")
    start = data.index(MARKER)

    def sealed(crc32: str, sha256: str) -> bytes:
        header = _HEAD + _SEALED_FIELDS % (len(data), crc32, sha256)
        return data[:start] + header.encode() + data[start + len(header) :]

    sha256 = hashlib.sha256(sealed(_NO_CRC32, _NO_SHA256)).hexdigest()
    return sealed(f"{zlib.crc32(sealed(_NO_CRC32, sha256)):08x}", sha256)


def open_artifact(path: str | os.PathLike[str]) -> Artifact:
    """Verifies format version, length and CRC-32 of the file, in little memory, and reads what
    it says about itself. Raises ArtifactError; no interpreter should see a file before this."""
    path = os.fspath(path)
    return _opened(path, lambda file: _verify(path, file))


def check_sha256(artifact: Artifact) -> None:
    """Raises ArtifactError unless the file has the SHA-256 that it says."""
    import hashlib

    digest = hashlib.sha256()

    def work(file: BinaryIO) -> None:
        [offset] = _marker_offsets(file)
        for piece in _pieces(file, offset, _CRC32, _SHA256):
            digest.update(piece)

    _opened(artifact.path, work)
    if digest.hexdigest() != artifact.sha256:
        raise ArtifactError(
            f"{artifact.path}: SHA-256 {digest.hexdigest()}, its header wants {artifact.sha256}"
        )


def _opened(path: str, work: Callable[[BinaryIO], T]) -> T:
    """What `work` makes of the file."""
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a pipe waits, a device never ends
            raise OSError(errno.EINVAL, "is no regular file")
        with open(path, "rb") as file:
            return work(file)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ArtifactError(f"{path}: {reason}, wanted a .tflite or .onnx model") from None


def file_crc32(path: str) -> str:
    """8 hex digits, in little memory. Raises OSError."""
    with open(path, "rb") as file:
        return _crc32(_pieces(file))


def _crc32(pieces: Iterable[bytes]) -> str:
    value = 0
    for piece in pieces:
        value = zlib.crc32(piece, value)
    return f"{value:08x}"


def _pieces(file: BinaryIO, offset: int = 0, *zeroed: tuple[int, int]) -> Iterator[bytes]:
    """The file piece by piece; the spans `zeroed`, counted from `offset`, read as "0"."""
    file.seek(0)
    position = -offset
    while piece := file.read(PIECE_BYTES):
        for start, end in zeroed:
            a, b = max(start - position, 0), min(end - position, len(piece))
            if a < b:
                piece = piece[:a] + b"0" * (b - a) + piece[b:]
        yield piece
        position += len(piece)


def _marker_offsets(file: BinaryIO) -> list[int]:
    """Where MARKER stands in the file, also where it straddles two pieces."""
    offsets, tail, start = [], b"", 0
    for piece in _pieces(file):
        window, position = tail + piece, -1
        while (position := window.find(MARKER, position + 1)) >= 0:
            offsets.append(start - len(tail) + position)
        start += len(piece)
        tail = window[1 - len(MARKER) :]  # too short to hold a marker already counted
    return offsets


def _verify(path: str, file: BinaryIO) -> Artifact:
    offsets = _marker_offsets(file)
    if path.endswith(".safetensors"):
        raise ArtifactError(
            f"{path}: weights, wanted a .tflite or .onnx: "
            "export/to_tflite.py and export/to_onnx.py make one of them"
        )
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
    header = text[: len(_HEADER)].decode("ascii", "replace")
    size, wanted_crc32, sha256 = (header[a:b] for a, b in (_FILE_BYTES, _CRC32, _SHA256))
    hexadecimal = all(digit in "0123456789abcdef" for digit in wanted_crc32 + sha256)
    wanted_bytes = int(size) if size.isdecimal() else 0
    if header != _HEAD + _SEALED_FIELDS % (wanted_bytes, wanted_crc32, sha256) or not hexadecimal:
        raise ArtifactError(f"{path}: damaged header, wanted its length and digests")
    if file_bytes != wanted_bytes:
        raise ArtifactError(
            f"{path}: {file_bytes} bytes, its header wants {wanted_bytes} (incomplete or extended)"
        )
    found_crc32 = _crc32(_pieces(file, offsets[0], _CRC32))
    if found_crc32 != wanted_crc32:
        raise ArtifactError(
            f"{path}: CRC-32 {found_crc32}, its header wants {wanted_crc32} (damaged)"
        )
    try:
        stored, _ = json.JSONDecoder().raw_decode(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: header is not JSON ({error})") from None
    metadata = {k: v for k, v in stored.items() if k not in ("tsm_artifact", "file_bytes", "crc32")}
    if metadata.keys() != _KEYS | {"sha256"}:
        found = sorted(metadata.keys() - {"sha256"})
        raise ArtifactError(f"{path}: header keys {found}, wanted {sorted(_KEYS)}")
    wrong = [key for key in _WANTED if not _fits(key, metadata[key])]
    if wrong:
        raise ArtifactError(f"{path}: header {wrong[0]}, wanted {_WANTED[wrong[0]]}")
    return Artifact(path=path, **metadata)


def _fits(key: str, value: Any) -> bool:
    if key == "initial_state":
        return value == "zeros"
    if key == "prefill_tokens":
        return type(value) is int and 0 < value <= BLOCK_TOKENS_LIMIT
    if key in ("spec", "state", "offsets"):
        if not isinstance(value, dict):
            return False
        shapes = value.values()
        if key == "offsets":
            return all(isinstance(v, list) and all(type(p) is str for p in v) for v in shapes)
        if key == "state":
            sizes = [v if isinstance(v, list) else [0] for v in shapes]
            whole = all(type(n) is int and n > 0 for size in sizes for n in size)
            return whole and sum(map(math.prod, sizes)) <= STATE_VALUES_LIMIT
        numbers = [v for v in shapes if not isinstance(v, str)]  # a spec's, bools among them
        return all(isinstance(v, (int, float)) and 0 <= v < 2**32 for v in numbers)
    return isinstance(value, str)
