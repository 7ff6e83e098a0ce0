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
    if name == "Grammar":
        from tsm.runtime.grammar import Grammar

        return Grammar
    from tsm.runtime import stream

    return getattr(stream, name)
