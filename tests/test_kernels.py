"""Kernels for a GPU, where none is: Pallas and Triton interpret them, and compile them for one."""

import os
import re
import subprocess
import sys
import types
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from specs import SMALL

from tsm.training import engine_jax, kernels, model
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
    """A memory of 49,000 tokens, whose decay bf16 would round to 1."""
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


class WithKernel(engine_jax.Engine):
    def _namespace(self):
        own = {"coupled_scan": pallas_coupled.scan}
        return types.SimpleNamespace(**{**vars(super()._namespace()), **own})


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_with_the_kernel_is_the_same_model(bf16, monkeypatch):
    spec, calls = SMALL.replace(mixer="beam", rotation=False), []
    monkeypatch.setattr(pallas_coupled, "scan", counted(pallas_coupled.scan, calls))
    random = np.random.default_rng(0)
    values = {
        name: jnp.array(value + 0.05 * random.standard_normal(value.shape).astype(np.float32))
        for name, value in model.initialise(spec, 0).items()
    }
    tokens = random.integers(0, 256, (2, 34))
    found = []
    for kind in (WithKernel, engine_jax.Engine):
        engine = kind(spec, 0.0, bf16, compiled=True)

        def loss(values, engine=engine):
            return engine._nats(engine._cast(values), (), tokens[:, :-1], tokens[:, 1:]).mean()

        found.append(jax.value_and_grad(loss)(values))
    assert len(calls) == spec.layers
    (loss_one, one), (loss_other, other) = found
    assert abs(loss_one - loss_other) < (1e-3 if bf16 else 1e-6)
    for name in one:
        difference = jnp.linalg.norm(one[name] - other[name])
        assert difference <= (0.03 if bf16 else 1e-4) * jnp.linalg.norm(other[name]), name


def counted(function, calls):
    def call(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return call


@pytest.mark.parametrize("mixer", ["beam", "mingru"])
def test_a_step_in_bf16_multiplies_in_bf16(mixer):
    spec = SMALL.replace(mixer=mixer, rotation=False, short=False)
    engine = engine_jax.Engine(spec, 0.0, bf16=True, compiled=True)
    values = engine.load(model.initialise(spec, 0))
    tokens = np.zeros((2, 33), np.int32)

    def loss(values):
        return engine._nats(engine._cast(values), (), tokens, tokens).mean()

    text = str(jax.make_jaxpr(jax.grad(loss))(values))
    products = re.findall(r"(\w+):(\w+)\[[^]]*\](?: |\n)*= dot_general", text)
    assert len(products) == 3 * (4 * spec.layers + 1)
    assert {dtype for _, dtype in products} == {"bf16"}


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


def test_a_kernel_that_cannot_be_imported_is_told():
    with pytest.warns(UserWarning, match="kernels/gone.py is not used: No module"):
        assert kernels.gpu_scan("gone") is None


def test_a_kernel_that_works_is_the_scan():
    assert kernels.gpu_scan("pallas_coupled") is pallas_coupled.scan
