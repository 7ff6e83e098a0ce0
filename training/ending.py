"""What a run leaves behind when it has ended: an artifact, a report, and the commands to go on."""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from ..runtime.command import another_command
from .config import TrainConfig
from .report import write
from .run import MODEL, RECORD, checkpoint_path
from .view import View, size

# Exporters, the runtimes' own format first, and a package that only its extra brings.
EXPORTERS = (("to_tflite", "tensorflow", ".tflite"), ("to_onnx", "onnxscript", ".onnx"))


def leave(
    view: View, out: Path, config: TrainConfig, best: dict[str, Any], data: list[str], export: bool
) -> None:
    """data: the options that name the text."""
    artifact = _exported(view, out) if export else None
    report = write(out)
    nats, step = best["validation_nats_per_byte"], best["step"]
    what = {
        out / MODEL: f"weights of step {step}, validation {nats:.4f} nats/byte",
        out / RECORD: "how they were made",
        checkpoint_path(out): "from which the same command goes on, as with more --steps",
        report: "curves, samples, and what surprises it",
        artifact: "for a device",
    }
    view.say("written:")
    for path, text in what.items():
        if path:
            count = sum(file.stat().st_size for file in [path, *path.rglob("*")])
            view.say(f"  {path}, {size(count)}: {text}")
    view.say("next:")
    quoted = shlex.quote(str(out / MODEL))
    window = "" if config.window == TrainConfig.window else f" --window {config.window}"
    evaluate = f"{another_command('training/evaluate')} {quoted} --data {shlex.join(data)}{window}"
    generate = f"{another_command('runtime/generate')} {shlex.quote(str(artifact))}"
    export_it = f"{another_command('export/to_onnx')} {quoted}"
    for command in (generate if artifact else export_it, evaluate):
        view.say(f"  {command}")


def _exported(view: View, out: Path) -> Path | None:
    """The artifact, of the first exporter that is installed; None where none is or it fails."""
    for name, package, suffix in EXPORTERS:
        if importlib.util.find_spec(package):
            artifact = out / f"{Path(MODEL).stem}-int8{suffix}"
            view.say(f"exporting {artifact}")
            script = Path(__file__).parents[1] / "export" / f"{name}.py"
            made = subprocess.run(
                [sys.executable, script, out / MODEL, "--out", artifact],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                check=False,
            )
            return artifact if made.returncode == 0 else None
    view.say("not exported: no exporter is installed, wanted: pip install -e '.[export-onnx]'")
    return None
