"""Files of a stream's state: checked whole before anything of them is used.

    magic "TSMSTATE" | version | crc32 of all that follows | header bytes | header | parts

Numbers are little-endian uint32. The header is a JSON object; its `parts` are the lengths in bytes
of the parts, which fill the file exactly.
"""

from __future__ import annotations

import json
import os
import struct
from zlib import crc32

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

MAGIC, VERSION = b"TSMSTATE", 1
_HEAD = struct.Struct("<8sIII")


class StateError(ValueError):
    """A state that cannot be used: found and wanted, in one line."""


def pack(header: dict[str, Any], parts: Sequence[bytes]) -> bytes:
    """A file's content: `header` in JSON, which gains the lengths of `parts`, and these."""
    text = json.dumps({**header, "parts": [len(part) for part in parts]}).encode()
    rest = struct.pack("<I", len(text)) + text + b"".join(parts)
    return _HEAD.pack(MAGIC, VERSION, crc32(rest), len(text)) + rest[4:]


def unpack(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """What `pack` was given. Raises StateError."""
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise StateError("no TSM state, wanted a file of --save-state")
    _, version, crc, header_bytes = _HEAD.unpack_from(data)
    if version != VERSION:
        raise StateError(f"state format {version}, wanted {VERSION}")
    found_crc = crc32(data[_HEAD.size - 4 :])
    if found_crc != crc:
        raise StateError(
            f"CRC-32 {found_crc:08x}, its header wants {crc:08x} (damaged or cut short)"
        )
    offset = _HEAD.size + header_bytes
    try:
        header = json.loads(data[_HEAD.size : offset])
        lengths = header.pop("parts")
        fits = all(type(n) is int and n >= 0 for n in lengths)
        fits = fits and offset + sum(lengths) == len(data)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        fits, header, lengths = False, {}, []
    if not fits:
        raise StateError("a header that does not describe the file, wanted its parts' lengths")
    parts = []
    for length in lengths:
        parts.append(data[offset : offset + length])
        offset += length
    return header, parts


def read(path: str | os.PathLike[str], limit_bytes: int) -> bytes:
    """The whole file. Raises StateError, also where it is longer than `limit_bytes`."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StateError(f"{path}: {reason}, wanted a file of --save-state") from None
    if len(data) > limit_bytes:
        raise StateError(f"{path}: over {limit_bytes} bytes, which no state of this model has")
    return data


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """The file, whole or not at all, with the permissions of the one that it replaces. Raises
    StateError."""
    from .files import written  # only now: contextlib costs 0.1 MB

    try:
        with written(path) as file:
            file.write(data)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StateError(f"{path}: {reason}, wanted a file that can be written") from None
