"""Before anything imports the product: shapes in its signatures are checked in every test, and what
JAX has compiled once, in whichever process, is compiled no more."""

import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / "build/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("tsm.training.model", "beartype.beartype")
install_import_hook("tsm.training.data", "beartype.beartype")

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
