"""The C engine of runtime/native/ through ctypes, without NumPy: it computes from the weights of a
.tflite or .onnx where they lie.

The library is compiled into the wheel, or by `make native`, or by hand:

    cd runtime/native
    cc -O3 -ffp-contract=off -Wno-psabi -fPIC -shared -o libtsm.so tsm.c -lm -pthread
"""

from __future__ import annotations

import ctypes
import mmap
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime.engines import VOCABULARY, Engine, EngineError, native_library
else:
    from engines import VOCABULARY, Engine, EngineError, native_library

VERSION = 2  # TSM_VERSION of native/tsm.h
BITS = {"int8": 8, "int4": 4}
SIMD = 3  # the best that the CPU has, up to AVX-512
# In the order that native/tsm.h wants their places.
LAYER = ("mixer.short", "mixer.radius", "mixer.in", "mixer.out", "mlp.in", "mlp.out")
REFERENCE = {"mixer": "beam", "rotation": False, "coupling": True, "short": True}
LANES = 16  # channels are taken so many at a time
FIELDS = ("vocabulary", "width", "layers", "channels", "mlp_width", "taps", "bits")


class _Spec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in FIELDS]


def has_beams(spec: dict[str, Any]) -> bool:
    """Whether its mixers are beam splitters of the reference's kind."""
    return all(spec.get(name) == value for name, value in REFERENCE.items())


def computes(spec: dict[str, Any], quantization: str) -> bool:
    """Whether the C code is of a model like this: spec as in an artifact's metadata."""
    return (
        quantization in BITS
        and has_beams(spec)
        and spec["heads"] * spec["value_width"] % LANES == 0
        and spec["width"] % 8 == 0
    )


class NativeEngine(Engine):
    any_length = True

    def __init__(self, artifact: Any, simd: int = SIMD, threads: int = 1) -> None:
        super().__init__(artifact)
        self._library = _library()
        with open(artifact.path, "rb") as file:  # private and never written to: nothing is copied
            self._file = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        memory = (ctypes.c_ubyte * len(self._file)).from_buffer(self._file)
        spec = self._spec()
        runs = self._library.tsm_place_count(ctypes.byref(spec))  # before any loop over its layers
        layers = range(spec.layers if runs else 0)
        names = ["embed", *(f"blocks.{i}.{n}" for i in layers for n in LAYER), "head"]
        try:
            places = [int(place) for name in names for place in artifact.places[name]]
            numbers = (ctypes.c_uint64 * len(places))(*places)
        except (KeyError, TypeError, ValueError):
            places, numbers = [], None
        self._model = self._library.tsm_new(
            ctypes.byref(spec), memory, len(self._file), numbers, len(places), simd, threads
        )
        if not self._model:
            raise EngineError(f"{artifact.path}: its places are not those of its spec")
        self.simd = self._library.tsm_simd(self._model)
        values = {"channels": spec.channels, "history": (spec.taps - 1) * spec.width}
        wanted = {name: 4 * spec.layers * count for name, count in values.items()}
        if self._state_bytes() != wanted:
            raise EngineError(f"{artifact.path}: its state is not that of its spec")
        self._state = {name: ctypes.create_string_buffer(n) for name, n in wanted.items()}

    def __del__(self) -> None:
        if getattr(self, "_model", None):
            self._library.tsm_free(self._model)
            self._model = None

    def feed(self, data: bytes) -> array[float]:
        if not data:
            raise EngineError("feed: no bytes, wanted at least one")
        return self._read(data, every=False)

    def draw(  # type: ignore[override]  # a static one
        self,
        logits: array[float],
        adjust: array[float] | None,
        temperature: float,
        top_k: int,
        *more: float,
    ) -> int:
        """As sampling.draw."""
        added, top_k = adjust and _place(adjust), min(top_k, VOCABULARY)
        return self._library.tsm_draw(_place(logits), added, temperature, top_k, *more)

    def frequencies(self, logits: array[float]) -> array[int]:
        """The distribution of 256 logits as an arithmetic coder wants it: 257 sums from 0 to
        65,536, no step below 1, the same on every machine."""
        cumulative = array("I", bytes(4 * (VOCABULARY + 1)))
        self._library.tsm_frequencies(_place(logits), _place(cumulative))
        return cumulative

    def get_state(self) -> dict[str, bytes]:
        return {name: bytes(value) for name, value in self._state.items()}

    def _write_state(self, state: dict[str, bytes]) -> None:
        for name, value in self._state.items():
            value[:] = state[name]

    def _run(self, tokens: bytes) -> array[float]:
        return self._read(tokens, every=True)

    def _read(self, data: bytes, every: bool) -> array[float]:
        logits = array("f", bytes(4 * VOCABULARY * (len(data) if every else 1)))
        state = self._state["channels"], self._state["history"]
        if self._library.tsm_read(self._model, *state, data, len(data), _place(logits), every):
            raise EngineError(f"{self.artifact.path}: a byte beyond its vocabulary")
        return logits

    def _spec(self) -> _Spec:
        spec = self.artifact.spec
        return _Spec(
            spec["vocabulary"],
            spec["width"],
            spec["layers"],
            spec["heads"] * spec["value_width"],
            round(spec["mlp_ratio"] * spec["width"]),
            spec["compression"],
            BITS[self.artifact.quantization],
        )


def _place(values: array) -> int:
    """Its address."""
    return values.buffer_info()[0]


def _library() -> Any:
    """The C library, its calls declared as in native/tsm.h."""
    path = native_library()
    library = ctypes.CDLL(path)
    pointer, size, whole = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    real = ctypes.c_double
    for name, result, arguments in (
        ("version", ctypes.c_uint32, []),
        ("place_count", size, [pointer]),
        ("new", pointer, [pointer, pointer, size, pointer, size, whole, ctypes.c_uint32]),
        ("free", None, [pointer]),
        ("simd", whole, [pointer]),
        ("read", whole, [pointer, pointer, pointer, ctypes.c_char_p, size, pointer, whole]),
        ("frequencies", None, [pointer, pointer]),
        ("draw", ctypes.c_uint8, [pointer, pointer, real, ctypes.c_uint32, *[real] * 4]),
    ):
        call = getattr(library, f"tsm_{name}")
        call.restype, call.argtypes = result, arguments
        if name == "version" and call() != VERSION:
            raise EngineError(f"{path}: version {call()}, wanted {VERSION}")
    return library
