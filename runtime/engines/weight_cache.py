"""Files of weights as XNNPACK packs them for one CPU, so that LiteRT maps them instead of packing
them into memory of its own at every start.

XNNPACK believes any file of its format, another model's too. So a file's name says of which model,
LiteRT and CPU it is, and ends in the CRC-32 of its content, which is verified before it is used;
what is damaged is removed and made again. A file gets its name when it is whole.
"""

from __future__ import annotations

import os
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

from ..artifact import PIECE_BYTES, file_crc32

SUFFIX = ".xnnpack"


def cached(folder: str, model: str, room_bytes: int, start: Callable[[str], None]) -> None:
    """Calls `start` with the path of a cache: a sound one of the model and this CPU in the folder,
    or else a place where it is to write one, of up to `room_bytes`. Raises OSError."""
    os.makedirs(folder, exist_ok=True)
    name = f"{model}-{_cpu():08x}-"
    for found in sorted(os.listdir(folder)):
        if found.startswith(name) and found.endswith(SUFFIX):
            path = os.path.join(folder, found)
            try:
                sound = found == f"{name}{file_crc32(path)}{SUFFIX}"
                if not sound:
                    os.unlink(path)
            except FileNotFoundError:  # another process was faster
                continue
            if sound:
                return start(path)
    beside = os.path.join(folder, f"{name}{os.getpid()}.partial")
    try:
        # XNNPACK is silent about a place that cannot be written, and aborts where the disk is full.
        with open(beside, "wb") as file:
            for _ in range(0, room_bytes, PIECE_BYTES):
                file.write(bytes(PIECE_BYTES))
        os.unlink(beside)
        start(beside)  # it has mapped the file, whatever its name becomes
        os.replace(beside, os.path.join(folder, f"{name}{file_crc32(beside)}{SUFFIX}"))
    finally:
        if os.path.exists(beside):
            os.unlink(beside)


def _cpu() -> int:
    """Another number for another kind of CPU: XNNPACK packs for the instructions that it finds."""
    wanted = (b"cpu family", b"model", b"flags", b"Features", b"CPU ")
    try:
        with open("/proc/cpuinfo", "rb") as lines:
            about = {line for line in lines if line.startswith(wanted)}
    except OSError:
        import platform

        # The last names the chip on macOS.
        about = {platform.machine(), platform.processor(), platform.version()}
        about = {text.encode() for text in about}
    return zlib.crc32(b"".join(sorted(about)))
