"""A folder of states after prompts, so that a prompt that begins like an earlier one is not read
again. The text that follows is the same to the bit, with the cache and without."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from .state import StateError
from .stream import RECENT_BYTES, Model, Stream

FILES = 64  # the longest unused go first


def read_prompt(model: Model, prompt: bytes, folder: str | Path) -> Stream:
    """A stream that has read `prompt`, from the longest part of it that `folder` holds; what it
    does not hold of it, it holds then. Raises StateError where it cannot be written.

    Only whole blocks, counted from the start, are kept: where blocks and single bytes differ in
    their last bits, these are the cuts of a prompt that is read at once.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cached_names = {path.name for path in folder.glob("*.tsmstate")}
    except OSError as error:
        raise StateError(f"{folder}: {error.strerror}, wanted a folder for prompts") from None
    names = _names(model, prompt)
    stream = model.stream()
    for bytes_read, name in reversed(names):
        if name in cached_names:
            try:
                cached = model.load_stream(folder / name)
                os.utime(folder / name)
            except (StateError, OSError):
                continue  # damaged, or gone by now: it is written again
            # What the digest in the name says; a renamed file is not believed.
            recent = prompt[max(0, bytes_read - RECENT_BYTES) : bytes_read]
            if (cached.position, cached.draws, cached.recent) == (bytes_read, 0, recent):
                cached.sampling = stream.sampling  # with a seed of its own
                stream = cached
                break
    if names and stream.position < names[-1][0]:
        whole, name = names[-1]
        stream.feed(prompt[stream.position : whole])
        stream.save(folder / name)
    stream.feed(prompt[stream.position :])
    _tidy(folder)
    return stream


def _names(model: Model, prompt: bytes) -> list[tuple[int, str]]:
    """The length of each whole number of blocks of the prompt, and its file's name."""
    engine, block = model.engine, model.engine.block_tokens
    kind = type(engine).__name__ + engine.kernels
    digest = hashlib.sha256(f"{engine.artifact.sha256} {kind} ".encode())
    names = []
    for end in range(block, len(prompt) + 1, block):
        digest.update(prompt[end - block : end])
        names.append((end, f"{digest.hexdigest()}.tsmstate"))
    return names


def _tidy(folder: Path) -> None:
    """Leaves the FILES entries used last."""
    entries = []
    for path in folder.glob("*.tsmstate"):
        try:
            entries.append((path.stat().st_mtime_ns, path))
        except OSError:
            continue  # another process removed it
    for _, path in sorted(entries)[:-FILES]:
        path.unlink(missing_ok=True)
