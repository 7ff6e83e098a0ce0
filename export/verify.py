"""That an artifact computes what its weights do, and what quantization costs.

The NumPy oracle of `training/model.py` says what is right. The artifact is opened by the runtime's
own engines (what is verified is what users run) and held against it, block by block and byte by
byte, within `tolerance.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import array_api_compat.numpy as np_xp
import numpy as np

from ..runtime.artifact import open_artifact
from ..runtime.engines import VOCABULARY, Engine, kinds, open_engine
from ..training import model
from ..training.spec import ModelSpec
from .layout import Weights
from .tolerance import check, mean_kl_nats

# As You Like It, act 2, scene 7 (public domain), set as the corpus sets its plays.
PASSAGE = b"""JAQUES:
All the world's a stage,
And all the men and women merely players:
They have their exits and their entrances;
And one man in his time plays many parts,
His acts being seven ages. At first the infant,
Mewling and puking in the nurse's arms.
And then the whining school-boy, with his satchel
And shining morning face, creeping like snail
Unwillingly to school.
"""
WRITTEN_BYTES = 512  # of the text that a model writes to be measured on
PIECE_BYTES = 512  # that the oracle reads at a time: attention's scores must not fill the memory


def verify(path: Path, spec: ModelSpec, weights: Weights) -> tuple[Engine, dict[str, Any]]:
    """Holds the artifact against the oracle, on every engine that is here. The best engine, and its
    differences. Raises ToleranceError, ArtifactError or EngineError."""
    artifact = open_artifact(path)
    engines = [open_engine(artifact, kind) for kind in kinds(artifact) or [""]]
    differences = [verify_engine(engine, spec, weights) for engine in engines]
    return engines[0], differences[0]


def verify_engine(engine: Engine, spec: ModelSpec, weights: Weights) -> dict[str, Any]:
    """The differences of its logits from the oracle's on PASSAGE, read as a block (`prefill`) and
    byte by byte (`decode`). Raises ToleranceError."""
    quantization = engine.artifact.quantization
    row = f"{'fp32' if quantization == 'none' else quantization} artifact"
    wanted, wanted_state = run_oracle(spec, weights, PASSAGE)

    differences = {"prefill": check(row, logits_of(engine, PASSAGE), wanted, logits=True)}
    state = engine.get_state()
    for name, value in wanted_state.items():
        check(row, np.frombuffer(state[name], np.float32).reshape(value.shape), value)
    engine.reset()
    by_bytes = [logits_of(engine, PASSAGE[i : i + 1]) for i in range(len(PASSAGE))]
    differences["decode"] = check(row, np.concatenate(by_bytes), wanted, logits=True)
    return differences


def quantization_cost(
    engine: Engine, spec: ModelSpec, weights: Weights, text: bytes
) -> dict[str, float]:
    """What quantization costs on `text`, in nats a byte: the mean KL of the engine's distributions
    from those of the weights, and both losses."""
    targets = np.frombuffer(text, np.uint8).astype(np.int64)[1:]
    wanted, state = [], None
    for start in range(0, len(text), PIECE_BYTES):
        logits, state = run_oracle(spec, weights, text[start : start + PIECE_BYTES], state)
        wanted.append(logits)
    engine.reset()
    unquantized, quantized = np.concatenate(wanted)[:-1], logits_of(engine, text)[:-1]
    before, after = (
        float(model.loss(np_xp, logits[None].astype(np.float64), targets[None]).mean())
        for logits in (unquantized, quantized)
    )
    return {
        "mean_kl_nats": mean_kl_nats(quantized, unquantized),
        "loss_nats": after,
        "unquantized_loss_nats": before,
        "loss_difference_nats": after - before,
    }


def run_oracle(
    spec: ModelSpec, weights: Weights, data: bytes, state: Any = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(logits (len(data), vocabulary), state) by NumPy."""
    tokens = np.frombuffer(data, np.uint8).astype(np.int64)[None]
    state = state or model.initial_state(np_xp, spec)
    logits, state = model.forward(np_xp, spec, weights, tokens, state)
    return logits[0], state


def write_text(spec: ModelSpec, weights: Weights, count: int = WRITTEN_BYTES) -> bytes:
    """A text of `count` bytes as the model itself writes it, at temperature 1 and always the same:
    a fair one to any model, whatever it has learned."""
    random = np.random.Generator(np.random.Philox(0))
    text, state = bytearray(b"\n"), None
    while len(text) < count:
        logits, state = run_oracle(spec, weights, bytes(text[-1:]), state)
        noise = random.gumbel(size=VOCABULARY)  # the greatest of the sums is a draw
        text.append(int((logits[-1] + noise).argmax()))
    return bytes(text)


def logits_of(engine: Engine, data: bytes) -> np.ndarray:
    """(len(data), vocabulary), from the state that the engine is in."""
    return np.asarray(engine.logits_of(data), np.float32).reshape(-1, VOCABULARY)
