"""Generation on a device: `from tsm.runtime import load`; runtime/stream.py tells more."""

from __future__ import annotations

TYPE_CHECKING = False


if TYPE_CHECKING:
    from tsm.runtime.grammar import Grammar
    from tsm.runtime.sampling import Sampling
    from tsm.runtime.stream import Model, Stream, load

__all__ = ["Grammar", "Model", "Sampling", "Stream", "load"]


def __getattr__(name: str) -> object:  # so that its modules start alone, without the others
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tsm.runtime import grammar, sampling, stream

    return next(getattr(m, name) for m in (grammar, sampling, stream) if hasattr(m, name))
