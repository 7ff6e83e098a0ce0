"""Kernels for a GPU, where none is: Pallas and Triton interpret them, and compile them for one."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tsm.training import kernels
from tsm.training.kernels import pallas_coupled
from tsm.training.mixers import primitives

ROOT = Path(__file__).parents[1]
TRITON = ROOT / "build" / "triton-kernels"


def test_the_pallas_kernel_has_the_gradients_of_the_plain_form():
    assert pallas_coupled.agrees()


@pytest.mark.parametrize(("length", "channels"), [(1, 5), (50, 70)])
def test_the_pallas_kernel_does_what_the_plain_form_does(length, channels):
    value, radius = jax.random.normal(jax.random.key(1), (2, 3, length, channels))
    found, last = pallas_coupled.scan(value, radius, value[:, 0])
    wanted = primitives.coupled_scan(jnp, value, radius, value[:, 0])
    np.testing.assert_allclose(found, wanted[0], atol=1e-5)
    np.testing.assert_allclose(last, wanted[1], atol=1e-5)


def test_the_pallas_kernel_has_states_in_fp32_within_those_of_bf16():
    """A memory of 700 tokens, whose decay bf16 would round to 1."""
    radius = jnp.full((1, 1024, 64), -5.5, jnp.bfloat16)
    value = jnp.ones_like(radius)
    found, _ = pallas_coupled.scan(value, radius, jnp.zeros((1, 64), jnp.bfloat16))
    wide = value.astype(jnp.float32), radius.astype(jnp.float32), jnp.zeros((1, 64))
    np.testing.assert_allclose(
        found.astype(jnp.float32), primitives.coupled_scan(jnp, *wide)[0], rtol=1e-2, atol=1e-2
    )


def test_the_pallas_kernel_lowers_for_a_gpu(monkeypatch):
    """To Triton's own language; what the GPU's compiler makes of that, a GPU shows."""
    warnings.simplefilter("ignore", DeprecationWarning)  # of JAX 0.11
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def gradients(*arrays):
        return jax.grad(lambda *arrays: pallas_coupled.scan(*arrays)[0].sum(), (0, 1, 2))(*arrays)

    array = jax.ShapeDtypeStruct((4, 1024, 688), jnp.bfloat16)
    memory = jax.ShapeDtypeStruct((4, 688), jnp.bfloat16)
    lowered = jax.jit(gradients).trace(array, array, memory).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("gpu.triton") == 2


@pytest.mark.parametrize("how", ["interpret", "compile"])
def test_triton_s_kernels(how, tmp_path):
    assert TRITON.is_dir(), "make test puts Triton there"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(TRITON), os.environ.get("PYTHONPATH", "")]),
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_INTERPRET": str(int(how == "interpret")),
    }
    program = [sys.executable, str(ROOT / "tests/triton_kernels.py"), how]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("trouble", ["a compiler that fails", ""])
def test_a_kernel_that_does_not_work_is_told_and_not_used(trouble, monkeypatch):
    def agrees():
        if trouble:
            raise RuntimeError(f"{trouble}\nand more")
        return False

    monkeypatch.setattr(pallas_coupled, "agrees", agrees)
    kernels.gpu_scan.cache_clear()
    with pytest.warns(UserWarning, match=f"is not used: {trouble or 'it does not'}"):
        assert kernels.gpu_scan("pallas_coupled") is None
    kernels.gpu_scan.cache_clear()


def test_a_kernel_that_jax_has_no_more_is_told():
    """JAX 0.11 calls this form of Pallas deprecated."""
    with pytest.warns(UserWarning, match="kernels/gone.py is not used: No module"):
        assert kernels.gpu_scan("gone") is None


def test_a_kernel_that_works_is_the_scan():
    assert kernels.gpu_scan("pallas_coupled") is pallas_coupled.scan
