"""The checkpoint of a run on a mesh: a folder that Orbax writes, each process its own part.

It is written beside the next steps, takes its name once it is whole, and is read on any mesh, also
of one device. A run on one device has a file (checkpoint.py): one that every tool reads, and JAX
and PyTorch alike.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as orbax

from .config import RunError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of itself there


class CheckpointFolder:
    def __init__(self, path: Path) -> None:
        self.path = path
        options = orbax.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
        kinds = {
            "arrays": orbax.StandardCheckpointHandler(),
            "metadata": orbax.JsonCheckpointHandler(),
        }
        self.manager = orbax.CheckpointManager(
            path.absolute(), options=options, item_handlers=kinds
        )

    def written(self) -> bool:
        """Whether a checkpoint is there that is whole."""
        return self.manager.latest_step() is not None

    def write(self, arrays: dict[str, Any], metadata: dict[str, str]) -> None:
        """arrays: as a mesh has them, not to be given up meanwhile, or NumPy's."""
        items = orbax.args.Composite(
            arrays=orbax.args.StandardSave(arrays), metadata=orbax.args.JsonSave(metadata)
        )
        self._checked(self.manager.save, int(metadata["step"]), args=items)

    def read(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        """Of the last one: every array whole, in NumPy, and its metadata. Raises RunError."""
        step = self.manager.latest_step()
        found = self._checked(self.manager.item_metadata, step)
        wanted = {n: np.empty(of.shape, of.dtype) for n, of in found.arrays.items()}
        items = orbax.args.Composite(
            arrays=orbax.args.StandardRestore(wanted), metadata=orbax.args.JsonRestore()
        )
        restored = self._checked(self.manager.restore, step, args=items)
        return restored.arrays, restored.metadata

    def close(self) -> None:
        """Waits for what is still being written."""
        self._checked(self.manager.wait_until_finished)
        self.manager.close()

    def _checked(self, work: Any, *arguments: Any, **more: Any) -> Any:
        try:
            return work(*arguments, **more)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise RunError(f"{self.path}: {reason}, wanted a checkpoint to write or read") from None
