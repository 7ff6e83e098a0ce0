"""What is shipped: made by this repository's exporters from the weights that it keeps."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tsm.training.checkpoint import load_model
from tsm.training.spec import PRESETS

ROOT = Path(__file__).parent.parent
MASTER = ROOT / "models" / "shakespeare.safetensors"
SHIPPED = {
    "tflite": ROOT / "runtime" / "shakespeare-int8.tflite",
    "onnx": ROOT / "models" / "shakespeare-int8.onnx",
}


def test_the_kept_weights_are_of_the_reference_shape_and_say_how_they_were_made():
    spec, _ = load_model(MASTER)
    record = json.loads(MASTER.with_suffix(".json").read_text())
    assert spec == PRESETS["shakespeare"]
    assert {"command", "machine", "hours", "step", "validation_nats_per_byte"} <= record.keys()


@pytest.mark.parametrize("suffix", SHIPPED)
def test_a_shipped_artifact_is_rebuilt_byte_for_byte(tmp_path, suffix):
    out = tmp_path / f"again.{suffix}"
    script = ROOT / "export" / f"to_{suffix}.py"
    done = subprocess.run(
        [sys.executable, str(script), str(MASTER), "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shipped = SHIPPED[suffix].read_bytes()
    assert len(shipped) <= 15_000_000
    assert out.read_bytes() == shipped
