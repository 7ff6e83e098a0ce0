"""How many threads compute, and how they wait: told to a library before it is loaded."""

from __future__ import annotations

import os

from .spec import ModelSpec

# A matrix of width x width gives a thread work for so long that waking it is worth it: measured
# with two cores at widths 96 (one thread) and 128 (two).
NUMBERS_PER_THREAD = 8192
MOST_THREADS = 1024


def default_threads(spec: ModelSpec | None = None) -> int:
    """The fastest for the shape, unless OMP_NUM_THREADS says how many; without a shape all."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    if chosen.isdecimal() and 1 <= int(chosen) <= MOST_THREADS:
        return int(chosen)
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return max(1, min(cores, spec.width**2 // NUMBERS_PER_THREAD)) if spec else cores


def prepare_threads(count: int) -> None:
    """Before PyTorch or JAX is imported. Threads that spin while they wait take the cores of the
    thread that they wait for, as soon as another process has one of them: 80 times slower. Those
    that sleep at once take long to wake: on two idle cores a third slower."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # PyTorch's OpenMP
    os.environ.setdefault(
        "GOMP_SPINCOUNT", "10000"
    )  # GCC's, which PyTorch has on Linux: some 50 us
    os.environ["OMP_NUM_THREADS"] = str(count)
    os.environ["NPROC"] = str(count)  # XLA's pool
