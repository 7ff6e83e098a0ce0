"""Engines: one way to call a verified artifact, whichever interpreter computes it.

    engine = open_engine(open_artifact("shakespeare-int8.tflite"))
    logits = engine.feed(b"ROMEO:")  # 256 floats: the byte after the last one

Either format runs on the C engine of native/ where that is compiled; else a .onnx on onnxruntime, a
.tflite on LiteRT's C library through ctypes, without NumPy: 34 MiB of peak memory where LiteRT's
own Python interpreter takes 52. That interpreter is the fallback, where the C library is another
version or missing. All run on one thread unless told otherwise.
"""

from __future__ import annotations

import ctypes
import math
import os
from abc import ABC, abstractmethod
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime import sampling
else:
    import sampling

if TYPE_CHECKING:
    from tsm.runtime.artifact import Artifact

_FOLDER = os.path.dirname(os.path.abspath(__file__))
SHIPPED_MODEL = os.path.join(_FOLDER, "shakespeare-int8.tflite")
VOCABULARY = 256  # tokens are bytes
_FLOAT_BYTES = 4

# The C library's calls have changed between minor versions (2.2 loads a model without its
# environment), and a wrong call is a crash, not an error: only what was tried is called.
_LITERT_VERSIONS = ("2.3.",)
_LITERT_NAMES = ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll")
_NATIVE_ENDS = (".so", ".dylib", ".pyd", ".dll")
_LITERT_OPTIONS = 'kernel_mode = "builtin"\nnum_threads = {}\n'
_XNNPACK_OPTIONS = 'kernel_mode = "delegate"\nnum_threads = {}\nweight_cache_file_path = {}\n'
_LITERT_CPU = 1
# Environment options as (tag, type, value): register CPU kernels only (24), so that no GPU
# library is searched for, and log errors only (25). Type 2 is an integer.
_LITERT_ENVIRONMENT = (24, 2, _LITERT_CPU, 25, 2, 3)
_ALIGNMENT_BYTES = 64  # what LiteRT wants of memory that it did not allocate itself


class EngineError(RuntimeError):
    """A model that no interpreter here can run: found and wanted, in one line."""


class Engine(ABC):
    """A model and the state of one stream of text."""

    any_length = False  # else only whole blocks and single bytes can be run
    kernels = ""  # where an engine has others, of other bits: their name
    draw = staticmethod(sampling.draw)  # an engine may have a faster one of the same result

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.block_tokens = artifact.prefill_tokens

    def feed(self, data: bytes) -> array[float]:
        """Reads `data`, one byte or more, and returns the logits of the byte after it."""
        rows = array("f")
        for piece in self._pieces(data):
            rows = self._run(piece)
        return rows[-VOCABULARY:]

    def logits_of(self, data: bytes) -> array[float]:
        """Reads `data` and returns the logits after each of its bytes, row after row."""
        rows = array("f")
        for piece in self._pieces(data):
            rows.extend(self._run(piece))
        return rows

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
        return {n: math.prod(shape) * _FLOAT_BYTES for n, shape in self.artifact.state.items()}

    @abstractmethod
    def _write_state(self, state: dict[str, bytes]) -> None:
        """Takes over a state of the right names and sizes."""

    @abstractmethod
    def _run(self, tokens: bytes) -> array[float]:
        """Logits after each token of one block or one byte; moves the state on."""

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if not data:
            raise EngineError("feed: no bytes, wanted at least one")
        whole = len(data) // self.block_tokens * self.block_tokens
        for start in range(0, whole, self.block_tokens):
            yield data[start : start + self.block_tokens]
        if self.any_length and data[whole:]:
            yield data[whole:]
        else:
            yield from (data[i : i + 1] for i in range(whole, len(data)))


class LiteRtEngine(Engine):
    """LiteRT's C library through ctypes: its builtin kernels, or XNNPACK over a file of weights."""

    def __init__(
        self, artifact: Artifact, library: str, version: str, threads: int, weight_cache: str
    ) -> None:
        super().__init__(artifact)
        self._library = ctypes.CDLL(library)
        if weight_cache:
            self._start_cached(version, threads, weight_cache)
        else:
            self._start(_LITERT_OPTIONS.format(threads))

    def _start(self, cpu_options: str) -> None:
        model = self._compile(cpu_options)
        self._state = 0  # which of two buffers is the input; the other takes the output
        self._memory: dict[tuple[str, int], Any] = {}  # (name, which) -> ctypes array
        buffers: dict[tuple[str, int], Any] = {}
        self._entries = {}  # tokens -> per value of _state: LiteRtRunCompiledModel's arguments
        for key, tokens in ((b"decode", 1), (b"prefill", self.block_tokens)):
            index, signature, inputs, outputs = self._signature(model, key)
            for name in self.artifact.state:  # the same memory serves both signatures
                for which in (0, 1):
                    if (name, which) not in buffers:
                        tensor = self._tensor("Input", signature, name)
                        buffers[name, which] = self._buffer(tensor, (name, which))
            own = {}
            for name, side in (("tokens", "Input"), ("logits", "Output")):
                own[name] = self._buffer(self._tensor(side, signature, name), (name, tokens))
            runs = []
            for which in (0, 1):
                handles = dict(own)
                for name in self.artifact.state:
                    handles[name] = buffers[name, which]
                    handles[f"next_{name}"] = buffers[name, 1 - which]
                arguments: list[Any] = [ctypes.c_size_t(index)]
                for names in (inputs, outputs):
                    row = (ctypes.c_void_p * len(names))(*(handles[n] for n in names))
                    arguments += [ctypes.c_size_t(len(names)), row]
                runs.append(arguments)
            self._entries[tokens] = runs
        found = {name: len(self._memory[name, 0]) for name in self.artifact.state}
        if found != self._state_bytes():
            raise EngineError(
                f"{self.artifact.path}: state of bytes {found}, "
                f"its header wants {self._state_bytes()}"
            )
        self.reset()

    def get_state(self) -> dict[str, bytes]:
        return {name: bytes(self._memory[name, self._state]) for name in self.artifact.state}

    def _write_state(self, state: dict[str, bytes]) -> None:
        for name in self.artifact.state:
            self._memory[name, self._state][:] = state[name]

    def _run(self, tokens: bytes) -> array[float]:
        count = len(tokens)
        self._memory["tokens", count][:] = array("i", list(tokens)).tobytes()
        self._call("RunCompiledModel", self._compiled, *self._entries[count][self._state])
        self._state = 1 - self._state
        logits = array("f")
        logits.frombytes(memoryview(self._memory["logits", count]))
        return logits

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, f"LiteRt{name}")(*arguments)
        if status:
            raise EngineError(
                f"{self.artifact.path}: LiteRt{name} gave status {status}, wanted 0 "
                "(not a model that this LiteRT can run)"
            )

    def _new(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What the call returns through its last parameter."""
        made = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(made))
        return made

    def _start_cached(self, version: str, threads: int, folder: str) -> None:
        self.kernels = "xnnpack"
        if TYPE_CHECKING or __package__:
            from tsm.runtime.weight_cache import cached
        else:
            from weight_cache import cached

        def start(path: str) -> None:
            options = _XNNPACK_OPTIONS.format(threads, f"'{os.path.abspath(path)}'")
            _quietly(lambda: self._start(options))

        try:
            room_bytes = os.path.getsize(self.artifact.path)
            cached(folder, f"{self.artifact.sha256}-{version}", room_bytes, start)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise EngineError(f"{folder}: {reason}, wanted a folder for packed weights") from None

    def _compile(self, cpu_options: str) -> ctypes.c_void_p:
        settings = (ctypes.c_int64 * 6)(*_LITERT_ENVIRONMENT)
        environment = self._new("CreateEnvironment", 2, settings)
        path = os.fsencode(self.artifact.path)
        model = self._new("CreateModelFromFile", environment, path)  # memory-mapped, not read
        options = self._new("CreateOptions")
        self._call("SetOptionsHardwareAccelerators", options, _LITERT_CPU)
        keep = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)  # Python owns the text
        text = os.fsencode(cpu_options)
        cpu = self._new("CreateOpaqueOptions", b"xnnpack", text, keep)
        self._call("AddOpaqueOptions", options, cpu)
        self._compiled = self._new("CreateCompiledModel", environment, model, options)
        self._library.LiteRtDestroyOptions(options)  # while `keep` and `text` still live
        return model

    def _signature(
        self, model: ctypes.c_void_p, key: bytes
    ) -> tuple[int, ctypes.c_void_p, list[str], list[str]]:
        """Index, handle, and the names of the inputs and outputs in the order of the call."""
        count, text = ctypes.c_size_t(), ctypes.c_char_p()
        self._call("GetNumModelSignatures", model, ctypes.byref(count))
        for index in range(count.value):
            signature = self._new("GetModelSignature", model, ctypes.c_size_t(index))
            self._call("GetSignatureKey", signature, ctypes.byref(text))
            if text.value != key:
                continue
            names: dict[str, list[str]] = {"Input": [], "Output": []}
            for side, found in names.items():
                self._call(f"GetNumSignature{side}s", signature, ctypes.byref(count))
                for i in range(count.value):
                    place = ctypes.c_size_t(i), ctypes.byref(text)
                    self._call(f"GetSignature{side}Name", signature, *place)
                    found.append((text.value or b"").decode())
            state = self.artifact.state
            wanted = {"tokens", *state}, {"logits", *(f"next_{n}" for n in state)}
            if (set(names["Input"]), set(names["Output"])) != wanted:
                raise EngineError(f"{self.artifact.path}: {key.decode()} has {names}")
            return index, signature, names["Input"], names["Output"]
        raise EngineError(f"{self.artifact.path}: no signature {key.decode()}, wanted one")

    def _tensor(self, side: str, signature: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        return self._new(f"GetSignature{side}Tensor", signature, name.encode())

    def _buffer(self, tensor: ctypes.c_void_p, key: tuple[str, int]) -> ctypes.c_void_p:
        """A LiteRT buffer over aligned memory of our own, kept as self._memory[key]."""
        kind = (ctypes.c_int32 * 18)()  # element type, rank (7 bits), 8 dimensions, 8 strides
        self._call("GetRankedTensorType", tensor, kind)
        size_bytes = math.prod(kind[2 : 2 + (kind[1] & 127)]) * _FLOAT_BYTES  # int32 or fp32
        whole = ctypes.create_string_buffer(size_bytes + _ALIGNMENT_BYTES)
        offset = -ctypes.addressof(whole) % _ALIGNMENT_BYTES
        memory = (ctypes.c_char * size_bytes).from_buffer(whole, offset)
        self._memory[key] = memory
        return self._new(
            "CreateTensorBufferFromHostMemory", kind, memory, ctypes.c_size_t(size_bytes), None
        )


class NumpyEngine(Engine):
    """An interpreter that takes and gives NumPy arrays by name."""

    def __init__(
        self,
        artifact: Artifact,
        call: Callable[[dict[str, Any]], dict[str, Any]],
        tokens_dtype: str,
    ) -> None:
        super().__init__(artifact)
        self._call, self._tokens_dtype = call, tokens_dtype
        self._state: dict[str, Any] = {}
        self.reset()

    def get_state(self) -> dict[str, bytes]:
        return {name: self._state[name].tobytes() for name in self.artifact.state}

    def _write_state(self, state: dict[str, bytes]) -> None:
        import numpy

        for name in self.artifact.state:
            value = numpy.frombuffer(state[name], numpy.float32)
            self._state[name] = value.reshape(self.artifact.state[name])

    def _run(self, tokens: bytes) -> array[float]:
        import numpy

        row = numpy.frombuffer(tokens, numpy.uint8).astype(self._tokens_dtype)[None]  # (1, L)
        made = self._call({"tokens": row, **self._state})
        self._state = {name: made[f"next_{name}"] for name in self.artifact.state}
        logits = array("f")
        logits.frombytes(made["logits"].tobytes())
        return logits


def _quietly(work: Callable[[], None]) -> None:
    """Without what XNNPACK says on standard error of its being there."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        work()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def open_engine(
    artifact: Artifact,
    kind: str = "",
    threads: int = 1,
    lookahead: bool = False,
    weight_cache: str = "",
) -> Engine:
    """The engine of a kind, one of `kinds(artifact)`; by default the best that is installed
    here for this artifact. `lookahead`: text that repeats itself is read ahead of time, where
    that changes no bit: on the native engine. `weight_cache`: a folder for the weights as the
    engine litert packs them, which then computes with XNNPACK. Raises EngineError."""
    found: list[str] = []
    for each in _kinds(artifact):  # no further than it takes: looking for packages costs 0.3 MB
        found.append(each)
        if kind in ("", each):
            kind = each
            break
    if kind not in found:
        missing = _missing(artifact)
        if kind in missing:
            raise EngineError(f"engine {kind} is not installed, wanted: {missing[kind]}")
        if not found:
            wanted = " or ".join(missing.values())
            raise EngineError(f"{artifact.path}: no engine found, wanted: {wanted}")
        raise EngineError(
            f"{artifact.path}: engine {kind} cannot run it, wanted {' or '.join(found)}"
        )
    if weight_cache and kind != "litert":
        raise EngineError(f"weight cache: engine {kind} packs no weights, wanted engine litert")
    try:
        engine = _OPEN[kind](artifact, threads, weight_cache)
        return _looking_ahead(engine) if lookahead and kind == "native" else engine
    except EngineError:
        raise
    except Exception as error:  # interpreters raise their own types, some of many lines
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"{artifact.path}: the interpreter refused it ({reason})") from error


def _missing(artifact: Artifact) -> dict[str, str]:
    """How to install the engines that could run this artifact."""
    by_hand = "make native (native_engine.py says how without make)"
    compiled = {"native": by_hand} if artifact.places else {}
    if _is_tflite(artifact):
        return {**compiled, "litert": "pip install ai-edge-litert"}
    return {**compiled, "onnx": "pip install onnxruntime"}


def kinds(artifact: Artifact) -> list[str]:
    """The engines that are here and can run this artifact, the best first."""
    return list(_kinds(artifact))


def _kinds(artifact: Artifact) -> Iterator[str]:
    if artifact.places and native_library():
        yield "native"
    if _is_tflite(artifact):
        if _package("ai_edge_litert"):
            yield "litert"
    elif _package("onnxruntime"):
        yield "onnx"


def _package(name: str) -> Any:
    """Where it would be imported from, or None."""
    import importlib.util  # a start of the native engine does without

    return importlib.util.find_spec(name)


def native_library() -> str | None:
    """The compiled C engine: what `make native` builds before what an installation has built."""
    folder = os.path.join(_FOLDER, "native")
    names = sorted(os.listdir(folder) if os.path.isdir(folder) else ())
    names = [name for name in names if name.startswith("libtsm") and name.endswith(_NATIVE_ENDS)]
    return os.path.join(folder, min(names, key=len)) if names else None


def _is_tflite(artifact: Artifact) -> bool:
    try:
        with open(artifact.path, "rb") as file:
            return file.read(8)[4:] == b"TFL3"
    except OSError as error:
        raise EngineError(f"{artifact.path}: {error.strerror}") from None


def _open_native(artifact: Artifact, threads: int, _: str) -> Engine:
    if TYPE_CHECKING or __package__:
        from tsm.runtime.native_engine import NativeEngine
    else:
        from native_engine import NativeEngine
    engine: Any = NativeEngine(artifact, threads=threads)
    return engine


def _looking_ahead(engine: Engine) -> Engine:
    if TYPE_CHECKING or __package__:
        from tsm.runtime.lookahead import Lookahead
    else:
        from lookahead import Lookahead
    ahead: Any = Lookahead
    return ahead(engine)


def _open_litert(artifact: Artifact, threads: int, weight_cache: str) -> Engine:
    from pathlib import Path

    package = _package("ai_edge_litert")  # found without importing it
    folder = Path(package.submodule_search_locations[0])
    library = next((folder / n for n in _LITERT_NAMES if (folder / n).exists()), None)
    installed = folder.parent.glob("ai_edge_litert-*.dist-info")
    version = next((p.stem.split("-")[1] for p in installed), "")
    if library and version.startswith(_LITERT_VERSIONS):
        return LiteRtEngine(artifact, str(library), version, threads, weight_cache)
    if weight_cache:
        raise EngineError(f"weight cache: LiteRT {version or 'unknown'}, wanted 2.3")

    from ai_edge_litert import interpreter

    # XNNPACK, the default delegate, would copy the weights: 15 MiB more.
    kernels = interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    model = interpreter.Interpreter(
        model_path=artifact.path, num_threads=threads, experimental_op_resolver_type=kernels
    )
    decode, prefill = (model.get_signature_runner(key) for key in ("decode", "prefill"))

    def call(values: dict[str, Any]) -> dict[str, Any]:
        return (decode if values["tokens"].size == 1 else prefill)(**values)

    return NumpyEngine(artifact, call, "int32")


def _open_onnx(artifact: Artifact, threads: int, _: str) -> Engine:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which reads it
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False  # the arena grows to a prompt's size and stays there
    session = onnxruntime.InferenceSession(
        artifact.path, options, providers=["CPUExecutionProvider"]
    )
    outputs = [output.name for output in session.get_outputs()]

    def call(values: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(outputs, session.run(outputs, values)))

    engine = NumpyEngine(artifact, call, "int64")
    engine.any_length = True
    return engine


_OPEN = {"native": _open_native, "litert": _open_litert, "onnx": _open_onnx}
ENGINES = tuple(_OPEN)
