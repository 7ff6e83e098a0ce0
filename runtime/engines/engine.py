"""What every engine is: a verified artifact, the state of one stream of text, and `feed`."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from array import array

from .. import sampling
from ..sampling import VOCABULARY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Union

    from ..artifact import Artifact

    Bytes = Union[bytes, bytearray, memoryview]

FLOAT_BYTES = 4


class EngineError(RuntimeError):
    """A model that no interpreter here can run: found and wanted, in one line."""


class ModelFile:
    """A file whose bytes an engine maps and reads as it computes. Overwritten in place, it would
    change the model; cut short, it would end the process with SIGBUS. A file that replaces it by
    its name does neither."""

    def __init__(self, path: str) -> None:
        self.path, self._file = path, open(path, "rb")  # noqa: SIM115 (until `close`)
        self.descriptor = self._file.fileno()
        before = os.fstat(self.descriptor)
        self._size, self._modified = before.st_size, before.st_mtime_ns

    def check(self) -> None:
        """Raises EngineError where it is closed or not as it was. Called for every byte."""
        if self._file.closed:
            raise EngineError(f"{self.path}: the model is closed, wanted an open one")
        now = os.fstat(self.descriptor)
        if now.st_mtime_ns != self._modified or now.st_size != self._size:
            raise EngineError(f"{self.path}: changed while it is read, wanted it left alone")

    def close(self) -> None:
        self._file.close()


class Engine(ABC):
    """A model and the state of one stream of text. Being collected closes it."""

    name = ""  # of its kind, as in ENGINES
    any_length = False  # else only whole blocks and single bytes can be run
    kernels = ""  # where an engine has others, of other bits: their name
    # An engine may have faster ones of the same result.
    draw, nats = staticmethod(sampling.draw), staticmethod(sampling.nats)

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.block_tokens = artifact.prefill_tokens

    @abstractmethod
    def close(self) -> None:
        """Gives back memory and files; `feed` and `logits_of` raise EngineError from then on."""

    def __del__(self) -> None:
        self.close()

    def feed(self, data: Bytes) -> array[float]:
        """Reads `data`, one byte or more, and returns the logits of the byte after it. Raises
        EngineError where these are not finite: a damaged model."""
        rows = array("f")
        for piece in self._pieces(data):
            rows = self._run(piece)
        return self._checked(rows[-VOCABULARY:])

    def logits_of(self, data: Bytes) -> array[float]:
        """Reads `data` and returns the logits after each of its bytes, row after row. Raises
        EngineError as `feed` does."""
        rows = array("f")
        for piece in self._pieces(data):
            rows.extend(self._run(piece))
        return self._checked(rows)

    def _checked(self, logits: array[float]) -> array[float]:
        if not math.isfinite(sum(logits)):  # of doubles, which no floats overflow
            raise self._not_finite()
        return logits

    def _not_finite(self) -> EngineError:
        return EngineError(
            f"{self.artifact.path}: logits that are not finite, wanted numbers (a damaged model)"
        )

    def reset(self) -> None:
        """Forgets everything read: the state of a fresh stream."""
        self.set_state({n: bytes(size) for n, size in self._state_bytes().items()})

    @abstractmethod
    def get_state(self) -> dict[str, bytes]:
        """All that the model remembers, fp32 by name; its size does not grow with the text."""

    def set_state(self, state: dict[str, bytes]) -> None:
        """Continues from what `get_state` returned, exactly."""
        wanted = self._state_bytes()
        found = {n: len(value) for n, value in state.items()}
        if found != wanted:
            raise EngineError(f"state: bytes {found}, wanted {wanted}")
        self._write_state(state)

    def _state_bytes(self) -> dict[str, int]:
        return {n: math.prod(shape) * FLOAT_BYTES for n, shape in self.artifact.state.items()}

    @abstractmethod
    def _write_state(self, state: dict[str, bytes]) -> None:
        """Takes over a state of the right names and sizes."""

    @abstractmethod
    def _run(self, tokens: bytes) -> array[float]:
        """Logits after each token of one block or one byte; moves the state on."""

    def _pieces(self, data: Bytes) -> Iterator[bytes]:
        data = some_bytes(data)
        whole = len(data) // self.block_tokens * self.block_tokens
        for start in range(0, whole, self.block_tokens):
            yield data[start : start + self.block_tokens]
        if self.any_length and data[whole:]:
            yield data[whole:]
        else:
            yield from (data[i : i + 1] for i in range(whole, len(data)))


def as_bytes(data: Bytes) -> bytes:
    """Any object of bytes. Raises EngineError where it holds larger numbers."""
    if isinstance(data, bytes):
        return data
    view = memoryview(data)
    if view.itemsize != 1:
        raise EngineError(f"feed: found numbers of {view.itemsize} bytes, wanted bytes")
    return bytes(view)


def some_bytes(data: Bytes) -> bytes:
    """As `as_bytes`. Raises EngineError where there are none, too."""
    if not (plain := as_bytes(data)):
        raise EngineError("feed: no bytes, wanted at least one")
    return plain


class NumpyEngine(Engine):
    """An interpreter that takes and gives NumPy arrays by name."""

    def __init__(
        self,
        artifact: Artifact,
        name: str,
        call: Callable[[dict[str, Any]], dict[str, Any]],
        tokens_dtype: str,
    ) -> None:
        super().__init__(artifact)
        self.name, self._tokens_dtype = name, tokens_dtype
        self._call: Callable[[dict[str, Any]], dict[str, Any]] | None = call
        self._state: dict[str, Any] = {}
        self.reset()

    def close(self) -> None:
        self._call = None  # which holds the interpreter

    def get_state(self) -> dict[str, bytes]:
        return {name: self._state[name].tobytes() for name in self.artifact.state}

    def _write_state(self, state: dict[str, bytes]) -> None:
        import numpy

        for name in self.artifact.state:
            value = numpy.frombuffer(state[name], numpy.float32)
            self._state[name] = value.reshape(self.artifact.state[name])

    def _run(self, tokens: bytes) -> array[float]:
        import numpy

        if not self._call:
            raise EngineError(f"{self.artifact.path}: the model is closed, wanted an open one")
        row = numpy.frombuffer(tokens, numpy.uint8).astype(self._tokens_dtype)[None]  # (1, L)
        outputs = self._call({"tokens": row, **self._state})
        self._state = {name: outputs[f"next_{name}"] for name in self.artifact.state}
        logits = array("f")
        logits.frombytes(outputs["logits"].tobytes())
        return logits


def package_folder(name: str) -> str | None:
    """Where a package would be imported from, without importing it; None: not installed."""
    import importlib.util  # a start of the native engine does without

    spec = importlib.util.find_spec(name)
    return spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else None


def is_tflite(artifact: Artifact) -> bool:
    """By the first bytes of the file. Raises EngineError."""
    try:
        with open(artifact.path, "rb") as file:
            return file.read(8)[4:] == b"TFL3"
    except OSError as error:
        raise EngineError(f"{artifact.path}: {error.strerror}") from None
