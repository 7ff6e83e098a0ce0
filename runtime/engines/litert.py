"""LiteRT: its C library through ctypes, without NumPy, 34 MB of peak memory where its own Python
interpreter takes 52. That interpreter is the fallback, where the C library is another version.
"""

from __future__ import annotations

import ctypes
import math
import os
from array import array

from .engine import (
    FLOAT_BYTES,
    Engine,
    EngineError,
    ModelFile,
    NumpyEngine,
    is_tflite,
    package_folder,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ..artifact import Artifact

INSTALL = "pip install ai-edge-litert"

# The C library's calls have changed between minor versions (2.2 loads a model without its
# environment), and a wrong call is a crash, not an error: only what was tried is called.
_LITERT_VERSIONS = ("2.3.",)
_LITERT_NAMES = ("libLiteRt.so", "libLiteRt.dylib", "libLiteRt.dll")
_LITERT_OPTIONS = 'kernel_mode = "builtin"\nnum_threads = {}\n'
_XNNPACK_OPTIONS = 'kernel_mode = "delegate"\nnum_threads = {}\nweight_cache_file_path = {}\n'
_LITERT_CPU = 1
# Environment options as (tag, type, value): register CPU kernels only (24), so that no GPU
# library is searched for, and log errors only (25). Type 2 is an integer.
_LITERT_ENVIRONMENT = (24, 2, _LITERT_CPU, 25, 2, 3)
_ALIGNMENT_BYTES = 64  # what LiteRT wants of memory that it did not allocate itself


class LiteRtEngine(Engine):
    """LiteRT's C library through ctypes: its builtin kernels, or XNNPACK over a file of weights."""

    name = "litert"

    def __init__(
        self, artifact: Artifact, library: str, version: str, threads: int, weight_cache: str
    ) -> None:
        super().__init__(artifact)
        self._library = ctypes.CDLL(library)
        self._created: list[tuple[str, ctypes.c_void_p]] = []  # by kind, in the order of creation
        self._file = ModelFile(artifact.path)
        if weight_cache:
            self._start_cached(version, threads, weight_cache)
        else:
            self._start(_LITERT_OPTIONS.format(threads))

    def _start(self, cpu_options: str) -> None:
        self._destroy()  # what an earlier try has left
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
            entry_buffers = {}  # those that the signatures do not share
            for name, side in (("tokens", "Input"), ("logits", "Output")):
                tensor = self._tensor(side, signature, name)
                entry_buffers[name] = self._buffer(tensor, (name, tokens))
            runs = []
            for which in (0, 1):
                handles = dict(entry_buffers)
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

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
            self._destroy()

    def _destroy(self) -> None:
        """Gives back what the C library has created, the last first."""
        while self._created:
            kind, handle = self._created.pop()
            getattr(self._library, f"LiteRtDestroy{kind}")(handle)

    def get_state(self) -> dict[str, bytes]:
        return {name: bytes(self._memory[name, self._state]) for name in self.artifact.state}

    def _write_state(self, state: dict[str, bytes]) -> None:
        for name in self.artifact.state:
            self._memory[name, self._state][:] = state[name]

    def _run(self, tokens: bytes) -> array[float]:
        count = len(tokens)
        self._file.check()
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

    def _get(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        """What the call returns through its last parameter."""
        handle = ctypes.c_void_p()
        self._call(name, *arguments, ctypes.byref(handle))
        return handle

    def _create(self, kind: str, how: str = "", *arguments: Any) -> ctypes.c_void_p:
        """A new object of the kind, which is ours to destroy."""
        handle = self._get(f"Create{kind}{how}", *arguments)
        self._created.append((kind, handle))
        return handle

    def _start_cached(self, version: str, threads: int, folder: str) -> None:
        from .weight_cache import cached

        self.kernels = "xnnpack"

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
        environment = self._create("Environment", "", 2, settings)
        path = os.fsencode(self.artifact.path)
        model = self._create("Model", "FromFile", environment, path)  # memory-mapped, not read
        options = self._get("CreateOptions")
        keep = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)  # Python owns the text
        text = os.fsencode(cpu_options)
        try:
            self._call("SetOptionsHardwareAccelerators", options, _LITERT_CPU)
            cpu = self._get("CreateOpaqueOptions", b"xnnpack", text, keep)
            self._call("AddOpaqueOptions", options, cpu)
            self._compiled = self._create("CompiledModel", "", environment, model, options)
        finally:
            self._library.LiteRtDestroyOptions(options)  # while `keep` and `text` still live
        return model

    def _signature(
        self, model: ctypes.c_void_p, key: bytes
    ) -> tuple[int, ctypes.c_void_p, list[str], list[str]]:
        """Index, handle, and the names of the inputs and outputs in the order of the call."""
        count, text = ctypes.c_size_t(), ctypes.c_char_p()
        self._call("GetNumModelSignatures", model, ctypes.byref(count))
        for index in range(count.value):
            signature = self._get("GetModelSignature", model, ctypes.c_size_t(index))
            self._call("GetSignatureKey", signature, ctypes.byref(text))
            if text.value != key:
                continue
            names: dict[str, list[str]] = {"Input": [], "Output": []}
            for side, side_names in names.items():
                self._call(f"GetNumSignature{side}s", signature, ctypes.byref(count))
                for i in range(count.value):
                    arguments = ctypes.c_size_t(i), ctypes.byref(text)
                    self._call(f"GetSignature{side}Name", signature, *arguments)
                    side_names.append((text.value or b"").decode())
            state = self.artifact.state
            wanted = {"tokens", *state}, {"logits", *(f"next_{n}" for n in state)}
            if (set(names["Input"]), set(names["Output"])) != wanted:
                raise EngineError(f"{self.artifact.path}: {key.decode()} has {names}")
            return index, signature, names["Input"], names["Output"]
        raise EngineError(f"{self.artifact.path}: no signature {key.decode()}, wanted one")

    def _tensor(self, side: str, signature: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        return self._get(f"GetSignature{side}Tensor", signature, name.encode())

    def _buffer(self, tensor: ctypes.c_void_p, key: tuple[str, int]) -> ctypes.c_void_p:
        """A LiteRT buffer over aligned memory of our own, kept as self._memory[key]."""
        kind = (ctypes.c_int32 * 18)()  # element type, rank (7 bits), 8 dimensions, 8 strides
        self._call("GetRankedTensorType", tensor, kind)
        size_bytes = math.prod(kind[2 : 2 + (kind[1] & 127)]) * FLOAT_BYTES  # int32 or fp32
        whole = ctypes.create_string_buffer(size_bytes + _ALIGNMENT_BYTES)
        offset = -ctypes.addressof(whole) % _ALIGNMENT_BYTES
        memory = (ctypes.c_char * size_bytes).from_buffer(whole, offset)
        self._memory[key] = memory
        size = ctypes.c_size_t(size_bytes)
        return self._create("TensorBuffer", "FromHostMemory", kind, memory, size, None)


def _quietly(work: Callable[[], None]) -> None:
    """Without what XNNPACK says on standard error of its being there."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        work()
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def runs(artifact: Artifact) -> bool:
    return is_tflite(artifact)


def installed() -> bool:
    return package_folder("ai_edge_litert") is not None


def load(artifact: Artifact, threads: int, weight_cache: str) -> Engine:
    from pathlib import Path

    folder = Path(package_folder("ai_edge_litert") or "")
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

    return NumpyEngine(artifact, "litert", call, "int32")
