"""onnxruntime, through its Python package."""

from __future__ import annotations

import os

from .engine import Engine, NumpyEngine, is_tflite, package_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ..artifact import Artifact


INSTALL = "pip install onnxruntime"


def runs(artifact: Artifact) -> bool:
    return not is_tflite(artifact)


def installed() -> bool:
    return package_folder("onnxruntime") is not None


def load(artifact: Artifact, threads: int, _: str) -> Engine:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which reads it
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False  # the arena grows to a prompt's size and stays there
    session = onnxruntime.InferenceSession(
        artifact.path, options, providers=["CPUExecutionProvider"]
    )
    outputs = [output.name for output in session.get_outputs()]

    def call(values: dict[str, Any]) -> dict[str, Any]:
        return dict(zip(outputs, session.run(outputs, values)))

    engine = NumpyEngine(artifact, "onnx", call, "int64")
    engine.any_length = True
    return engine
