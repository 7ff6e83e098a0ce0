"""The C engine of runtime/native/ through ctypes, without NumPy: it computes from the weights of a
.tflite or .onnx where they lie.

The library is compiled into the wheel, or by `make native`, or by hand:

    cd runtime/native
    cc -O3 -ffp-contract=off -Wno-psabi -fPIC -shared -o libtsm.so tsm.c -lm -pthread
"""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..artifact import Artifact
    from .engine import Bytes

from .engine import FLOAT_BYTES, VOCABULARY, Engine, EngineError, ModelFile, some_bytes

INSTALL = "make native (runtime/engines/native.py says how without make)"
VERSION = 7  # TSM_VERSION of native/tsm.h
NOT_FINITE = -2  # TSM_NOT_FINITE there
MESSAGE_BYTES = 160  # TSM_MESSAGE_BYTES
_LIBRARIES = (".so", ".dylib", ".pyd", ".dll")
BITS = {"int8": 8, "int4": 4}
SIMD = 3  # the best that the CPU has, up to AVX-512
MIXERS = ("beam", "addressed")  # in the order of tsm.h's numbers
SWITCHES = {"rotation": False, "coupling": True, "short": True}
MOST_LAYERS = 256  # TSM_MOST_LAYERS
STATE = ("addressed", "channels", "history", "projected")  # in the order of tsm_state_values
LANES = 16  # channels are taken so many at a time
# By field of tsm.h's tsm_spec: least, greatest, what it is a multiple of; as `runs` in engine.c.
LIMITS = {
    "vocabulary": (16, VOCABULARY, 1),
    "width": (16, 1 << 14, 8),
    "layers": (1, MOST_LAYERS, 1),
    "channels": (LANES, 1 << 14, LANES),
    "mlp_width": (16, 1 << 16, 8),
    "taps": (1, 8, 1),
    "bits": (4, 8, 4),
}
MEMORY_LIMIT = 1 << 24  # values of all addressed splitters


class _Spec(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_uint32) for name in (*LIMITS, "heads", "key_width")),
        ("mixers", ctypes.c_uint8 * MOST_LAYERS),
    ]


def has_known_mixers(spec: dict[str, Any]) -> bool:
    """Whether its mixers are those of this engine, with the switches of the reference. spec: any
    object."""
    names = str(spec.get("mixer")).split(",")
    switches = SWITCHES if "beam" in names else {"rotation": False}
    return (
        type(spec.get("layers")) is int
        and len(names) in (1, spec["layers"])
        and all(name in MIXERS for name in names)
        and all(spec.get(name) == value for name, value in switches.items())
    )


def layer_mixers(spec: dict[str, Any]) -> list[str]:
    """The mixer of each layer."""
    names = spec["mixer"].split(",")
    return names if len(names) == spec["layers"] else names * spec["layers"]


def computes(spec: dict[str, Any], quantization: str) -> bool:
    """Whether the C code is of a model like this: spec as in an artifact's metadata."""
    if quantization not in BITS or not has_known_mixers(spec):
        return False
    sizes = _sizes(spec, quantization)
    limits = ((sizes[name], *limit) for name, limit in LIMITS.items())
    if not all(low <= size <= high and size % unit == 0 for size, low, high, unit in limits):
        return False
    if not (addressed := layer_mixers(spec).count("addressed")):
        return True
    heads, key_width, channels = sizes["heads"], sizes["key_width"], sizes["channels"]
    return (
        1 <= heads * key_width <= LIMITS["width"][1]
        and spec["value_width"] % LANES == 0
        and addressed * key_width * channels <= MEMORY_LIMIT
    )


def _sizes(spec: dict[str, Any], quantization: str) -> dict[str, int]:
    """The whole numbers of tsm.h's tsm_spec."""
    return {
        "vocabulary": spec["vocabulary"],
        "width": spec["width"],
        "layers": spec["layers"],
        "channels": spec["heads"] * spec["value_width"],
        "mlp_width": round(spec["mlp_ratio"] * spec["width"]),
        "taps": spec["compression"],
        "bits": BITS[quantization],
        "heads": spec["heads"],
        "key_width": spec.get("key_width", 0),
    }


class NativeEngine(Engine):
    name, any_length = "native", True
    _model = None  # until it is opened

    def __init__(self, artifact: Artifact, simd: int = SIMD, threads: int = 1) -> None:
        super().__init__(artifact)
        self._library = _library()
        self._file = ModelFile(artifact.path)
        # Private and never written to: nothing is copied.
        self._mapped = mmap.mmap(self._file.descriptor, 0, access=mmap.ACCESS_COPY)
        size_bytes = len(self._mapped)
        address = ctypes.addressof((ctypes.c_ubyte * size_bytes).from_buffer(self._mapped))
        model, message = ctypes.c_void_p(), ctypes.create_string_buffer(MESSAGE_BYTES)
        trusted = True  # open_artifact has checked the file
        if self._library.tsm_open(
            address, size_bytes, trusted, simd, threads, ctypes.byref(model), message
        ):
            raise EngineError(f"{artifact.path}: {message.value.decode()}")
        self._model = model
        self.simd = self._library.tsm_simd(self._model)
        values = (ctypes.c_size_t * len(STATE))()
        count = self._library.tsm_state_values(self._library.tsm_spec_of(model), values)
        wanted = {name: FLOAT_BYTES * n for name, n in zip(STATE, values) if n}
        if self._state_bytes() != wanted:
            raise EngineError(f"{artifact.path}: its state is not that of its spec")
        self._state = ctypes.create_string_buffer(FLOAT_BYTES * count)
        self._parts, offset = {}, 0  # of it, by name
        for name, size in wanted.items():
            self._parts[name] = (ctypes.c_char * size).from_buffer(self._state, offset)
            offset += size

    def close(self) -> None:
        if self._model:
            self._library.tsm_free(self._model)
            self._model = None
        for name in ("_mapped", "_file"):
            if hasattr(self, name):
                getattr(self, name).close()

    def feed(self, data: Bytes) -> array[float]:
        return self._read(some_bytes(data), every=False)

    def draw(  # type: ignore[override]  # a static one
        self,
        logits: array[float],
        adjust: array[float] | None,
        temperature: float,
        top_k: int,
        *more: float,
    ) -> int:
        """As sampling.draw."""
        added, top_k = adjust and _address(adjust), min(top_k, VOCABULARY)
        return self._library.tsm_draw(_address(logits), added, temperature, top_k, *more)

    def nats(  # type: ignore[override]  # a static one
        self, logits: array[float], data: bytes
    ) -> tuple[array[float], array[float]]:
        """As sampling.nats."""
        values, entropy = (array("f", bytes(4 * len(data))) for _ in range(2))
        outputs = _address(values), _address(entropy)
        self._library.tsm_nats(_address(logits), data, len(data), *outputs)
        return values, entropy

    def frequencies(self, logits: array[float]) -> array[int]:
        """The distribution of 256 logits as an arithmetic coder wants it: 257 sums from 0 to
        65,536, no step below 1, the same on every machine."""
        cumulative = array("I", bytes(4 * (VOCABULARY + 1)))
        self._library.tsm_frequencies(_address(logits), _address(cumulative))
        return cumulative

    def get_state(self) -> dict[str, bytes]:
        return {name: bytes(value) for name, value in self._parts.items()}

    def _write_state(self, state: dict[str, bytes]) -> None:
        for name, value in self._parts.items():
            value.raw = state[name]  # a slice would be copied byte by byte

    def logits_of(self, data: Bytes) -> array[float]:
        return self._read(some_bytes(data), every=True)

    def _run(self, tokens: bytes) -> array[float]:
        return self._read(tokens, every=True)

    def _read(self, data: bytes, every: bool) -> array[float]:
        self._file.check()
        logits = array("f", bytes(4 * VOCABULARY * (len(data) if every else 1)))
        status = self._library.tsm_read(
            self._model, self._state, data, len(data), _address(logits), every
        )
        if status == NOT_FINITE:
            raise self._not_finite()
        if status:
            raise EngineError(f"{self.artifact.path}: a byte beyond its vocabulary")
        return logits


def _address(values: array) -> int:
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
        ("offset_count", size, [pointer]),
        ("new", pointer, [pointer, pointer, size, pointer, size, whole, ctypes.c_uint32]),
        ("open", whole, [pointer, size, whole, whole, ctypes.c_uint32, pointer, pointer]),
        ("spec_of", pointer, [pointer]),
        ("state_values", size, [pointer, pointer]),
        ("free", None, [pointer]),
        ("simd", whole, [pointer]),
        ("read", whole, [pointer, pointer, ctypes.c_char_p, size, pointer, whole]),
        ("frequencies", None, [pointer, pointer]),
        ("nats", None, [pointer, ctypes.c_char_p, size, pointer, pointer]),
        ("draw", ctypes.c_uint8, [pointer, pointer, real, ctypes.c_uint32, *[real] * 4]),
    ):
        call = getattr(library, f"tsm_{name}")
        call.restype, call.argtypes = result, arguments
        if name == "version" and call() != VERSION:
            raise EngineError(f"{path}: version {call()}, wanted {VERSION}")
    return library


def native_library() -> str | None:
    """The compiled C engine: what `make native` builds before what an installation has built."""
    folder = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "native")
    names = sorted(os.listdir(folder) if os.path.isdir(folder) else ())
    names = [name for name in names if name.startswith("libtsm") and name.endswith(_LIBRARIES)]
    return os.path.join(folder, min(names, key=len)) if names else None


def runs(artifact: Artifact) -> bool:
    return bool(artifact.offsets)


def installed() -> bool:
    return native_library() is not None


def load(artifact: Artifact, threads: int, _: str) -> Engine:
    return NativeEngine(artifact, threads=threads)
