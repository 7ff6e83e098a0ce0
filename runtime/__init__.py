"""Generation on a device: `from tsm.runtime import load`; runtime/stream.py tells more."""

from __future__ import annotations

TYPE_CHECKING = False


if TYPE_CHECKING:
    from tsm.runtime.artifact import ArtifactError
    from tsm.runtime.engines import EngineError
    from tsm.runtime.grammar import Grammar
    from tsm.runtime.sampling import GrammarError, Sampling, SamplingError
    from tsm.runtime.state import StateError
    from tsm.runtime.stream import Model, Stream, load

__all__ = [
    "ArtifactError",
    "EngineError",
    "Grammar",
    "GrammarError",
    "Model",
    "Sampling",
    "SamplingError",
    "StateError",
    "Stream",
    "load",
]
_PLACES = {"ArtifactError": "artifact", "EngineError": "engines", "Grammar": "grammar"}


def __getattr__(name: str) -> object:  # so that its modules start alone, without the others
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"tsm.runtime.{_PLACES.get(name, 'stream')}"), name)
