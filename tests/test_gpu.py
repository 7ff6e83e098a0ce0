"""Training on a GPU. Where none is: that every tensor of a step is on the device of its weights."""

import array_api_compat.torch as xp
import numpy as np
import pytest
import torch
from specs import SMALL

from tsm.training import model, optimizer
from tsm.training.engine_torch import Engine
from tsm.training.kernels import torch_scan
from tsm.training.spec import MIXERS, weights

SPECS = {name: SMALL.replace(mixer=name) for name in (*MIXERS, "gpt2")}
SETTINGS = {
    "muon_learning_rate": 0.02,
    "adam_learning_rate": 0.003,
    "weight_decay": 0.1,
    "clip": 1.0,
}
on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.parametrize("mixer", SPECS)
def test_a_step_stays_on_the_device_of_its_weights(mixer):
    """By shapes alone, on PyTorch's device `meta`, which takes no tensor of another."""
    spec = SPECS[mixer]
    engine = Engine(spec, dropout=0.1, bf16=False, compiled=False)
    engine.device = "meta"
    values = {n: v.requires_grad_() for n, v in engine.load(model.initialise(spec, 0)).items()}
    tokens = torch.zeros((2, 65), dtype=torch.int64, device="meta")
    loss = engine.loss(values, tokens, engine._noise(2, 64))
    gradients = dict(zip(values, torch.autograd.grad(loss, list(values.values())), strict=True))
    state = optimizer.initial_state(xp, weights(spec), values)
    with torch.no_grad():
        made, _, norm = optimizer.update(xp, weights(spec), values, gradients, state, 0, **SETTINGS)
    assert {x.device.type for x in (loss, norm, *made.values())} == {"meta"}


@on_a_gpu
@pytest.mark.parametrize("length", [8, 64, 65, 200])
@pytest.mark.parametrize("shapes", [((1, 1), (4, 5)), ((70,), (70,))])
def test_the_scan_on_a_gpu_is_that_of_a_cpu(shapes, length):
    random = torch.Generator().manual_seed(0)
    (kept, channels), before = shapes, (2, 3)
    inputs = [
        torch.rand((*before, length, *kept), generator=random),
        torch.randn((*before, length, *channels), generator=random),
        torch.randn((*before, *channels), generator=random),
    ]
    made = []
    for device in ("cpu", "cuda"):
        own = [x.to(device).requires_grad_() for x in inputs]
        found = torch_scan.scan(*own)
        weighted = sum(
            (x * torch.cos(torch.arange(x.numel(), device=device)).view(x.shape)).sum()
            for x in found
        )
        made.append([*found, *torch.autograd.grad(weighted, own)])
    for one, other in zip(*made, strict=True):
        assert torch.allclose(one, other.cpu(), rtol=1e-4, atol=1e-4)


@on_a_gpu
@pytest.mark.parametrize("mixer", SPECS)
def test_training_on_a_gpu_is_that_on_a_cpu(mixer, monkeypatch):
    spec, tokens = SPECS[mixer], np.random.default_rng(0).integers(0, 256, (4, 97))
    losses = []
    for available in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "is_available", lambda found=available: found)
            engine = Engine(spec, dropout=0.0, bf16=False, compiled=False)
        values, average = (engine.load(model.initialise(spec, 0)) for _ in range(2))
        state, found = engine.optimizer_state(values), []
        for step in range(5):
            settings = {"step": step, **SETTINGS}
            values, state, average, loss, _ = engine.step(
                values, state, average, tokens, 0, settings, 0.9
            )
            found.append(loss)
        losses.append(found)
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], abs=2e-3)
