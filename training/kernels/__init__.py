"""Fused forms of functions of `mixers/primitives.py`. Tests hold each to the plain form.

torch_scan.py      PyTorch's own scan with its gradient; triton_scan.py, its kernel for a GPU
jax_scan.py        JAX's, also across devices
triton_coupled.py  the beam splitter's whole scan on a GPU, in PyTorch; pallas_coupled.py, in JAX
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any


@functools.cache
def gpu_scan(name: str) -> Callable[..., Any] | None:
    """`scan` of this module, if it compiles on the GPU here and agrees with the plain form; None,
    after a warning, if not."""
    try:
        module = importlib.import_module(f".{name}", __name__)
        if module.agrees():
            return module.scan
        trouble = "it does not compute what the plain form does"
    except Exception as error:  # of a compiler or driver: training goes on in the plain form
        trouble = (str(error).splitlines() or [type(error).__name__])[0]
    warnings.warn(f"kernels/{name}.py is not used: {trouble}", stacklevel=2)
    return None
