"""Scans and other kernels of one library each, in place of the plain form of `mixers/`."""

from __future__ import annotations

import warnings
from collections.abc import Callable


def works(name: str, agrees: Callable[[], bool]) -> bool:
    """Whether a kernel compiles here and agrees with the plain form; warns where it does not."""
    try:
        trouble = "" if agrees() else "it does not compute what the plain form does"
    except Exception as error:  # of a compiler or driver: training goes on in the plain form
        trouble = (str(error).splitlines() or [type(error).__name__])[0]
    if trouble:
        warnings.warn(f"{name} is not used: {trouble}", stacklevel=2)
    return not trouble
