"""A session: a text in its file, and where the cursor was in it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

from tsm.runtime.command import CommandError
from tsm.runtime.files import written


def data_folder() -> Path:
    """Where sessions and a learned model lie. Raises CommandError."""
    base = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    if base.startswith("~"):
        raise CommandError("there is no home folder, wanted XDG_DATA_HOME set to one")
    return Path(base) / "tsm-write"


class Session:
    """Raises OSError, and CommandError for a file that is no text."""

    def __init__(self, path: Path) -> None:
        self._path = path.absolute()
        name = hashlib.sha256(os.fsencode(self._path)).hexdigest()[:16]
        self._state_path = data_folder() / "sessions" / f"{name}.json"
        try:
            text = self._path.read_bytes().decode()
        except FileNotFoundError:
            text = ""
        except UnicodeDecodeError:
            raise CommandError(f"{path}: not UTF-8, wanted a text") from None
        self._seen = self._stamp()
        self._newline = "\r\n" if "\r\n" in text else "\n"
        self.text = text.replace("\r\n", "\n")
        self.cursor = self._stored_cursor()

    def _stored_cursor(self) -> int:
        try:
            stored = json.loads(self._state_path.read_text())
            cursor = stored["cursor"]
        except (OSError, ValueError, KeyError, TypeError):
            return len(self.text)
        inside = type(cursor) is int and 0 <= cursor <= len(self.text)
        return cursor if inside else len(self.text)

    def _stamp(self) -> tuple[int, ...]:
        """Of the file, another one when it has been written; () where there is none."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return ()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def save(self, text: str, cursor: int) -> None:
        """Each file whole or not at all; the text only where it has changed. What another program
        has written there meanwhile is kept beside it, with ~ at the end of its name."""
        stamp = self._stamp()
        if text != self.text or not stamp:
            if stamp and stamp != self._seen:
                with written(self._path.with_name(f"{self._path.name}~")) as file:
                    file.write(self._path.read_bytes())
            with written(self._path) as file:
                file.write(self._encoded(text))
            self._seen = self._stamp()
        self.text, self.cursor = text, cursor
        self._state_path.parent.mkdir(parents=True, exist_ok=True)
        with written(self._state_path) as file:
            state = {"path": str(self._path), "cursor": cursor}
            file.write(json.dumps(state).encode())

    def copy(self, text: str) -> Path:
        """The text in a new folder, where temporary ones are."""
        path = Path(tempfile.mkdtemp(prefix="tsm-write-")) / self._path.name
        with written(path) as file:
            file.write(self._encoded(text))
        return path

    def _encoded(self, text: str) -> bytes:
        return text.replace("\n", self._newline).encode("utf-8", "surrogateescape")
