"""Engines: one way to call a verified artifact, whichever interpreter computes it.

    engine = open_engine(open_artifact("shakespeare-int8.tflite"))
    logits = engine.feed(b"ROMEO:")  # 256 floats: the byte after the last one

| file             | what it is                                                                  |
| ---------------- | --------------------------------------------------------------------------- |
| engine.py        | what every engine is and does                                               |
| native.py        | the C engine of native/, for either format: the default where it is compiled |
| litert.py        | LiteRT, for .tflite                                                         |
| onnxruntime.py   | onnxruntime, for .onnx                                                      |
| lookahead.py     | speculative decoding around another engine                                  |
| weight_cache.py  | files of weights that LiteRT's XNNPACK has packed                           |

All run on one thread unless told otherwise.
"""

from __future__ import annotations

import operator
import os

from . import litert, native, onnxruntime
from .engine import VOCABULARY, Engine, EngineError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..artifact import Artifact

__all__ = ["ENGINES", "SHIPPED_MODEL", "VOCABULARY", "Engine", "EngineError", "kinds"]
__all__ += ["open_engine"]

_RUNTIME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHIPPED_MODEL = os.path.join(_RUNTIME, "shakespeare-int8.tflite")
ENGINES = {"native": native, "litert": litert, "onnx": onnxruntime}  # the best first
THREADS_LIMIT = 1024  # the C engine takes 16 of them at most


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
    threads = _checked_threads(threads)
    vocabulary = artifact.spec.get("vocabulary", VOCABULARY)
    if vocabulary != VOCABULARY:
        raise EngineError(f"{artifact.path}: vocabulary {vocabulary}, wanted {VOCABULARY}")
    installed: list[str] = []
    for each in _kinds(artifact):  # no further than it takes: looking for packages costs 0.3 MB
        installed.append(each)
        if kind in ("", each):
            kind = each
            break
    if kind not in installed:
        missing = {n: module.INSTALL for n, module in ENGINES.items() if module.runs(artifact)}
        if kind in missing:
            raise EngineError(f"engine {kind} is not installed, wanted: {missing[kind]}")
        if not installed:
            wanted = " or ".join(missing.values())
            raise EngineError(f"{artifact.path}: no engine found, wanted: {wanted}")
        raise EngineError(
            f"{artifact.path}: engine {kind} cannot run it, wanted {' or '.join(installed)}"
        )
    if weight_cache and kind != "litert":
        raise EngineError(f"weight cache: engine {kind} packs no weights, wanted engine litert")
    try:
        engine = ENGINES[kind].load(artifact, threads, weight_cache)
    except EngineError:
        raise
    except Exception as error:  # interpreters raise their own types, some of many lines
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(f"{artifact.path}: the interpreter refused it ({reason})") from error
    if lookahead and kind == "native":
        from .lookahead import Lookahead

        return Lookahead(engine)
    return engine


def _checked_threads(threads: int) -> int:
    try:
        if 1 <= operator.index(threads) <= THREADS_LIMIT:
            return operator.index(threads)
    except TypeError:
        pass
    raise EngineError(f"threads: found {threads!r}, wanted a whole number, 1 to {THREADS_LIMIT:,}")


def kinds(artifact: Artifact) -> list[str]:
    """The engines that are here and can run this artifact, the best first."""
    return list(_kinds(artifact))


def _kinds(artifact: Artifact) -> Iterator[str]:
    for name, module in ENGINES.items():
        if module.runs(artifact) and module.installed():
            yield name
