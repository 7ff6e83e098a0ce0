"""tsm-server by its path, in a clone of the project:

python apps/server/serve.py --help
"""

import importlib.util
import sys
from pathlib import Path

if not importlib.util.find_spec("tsm"):  # not installed: the clone's
    package = type(sys)("tsm")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["tsm"] = package

from tsm_server.command import main

if __name__ == "__main__":
    sys.exit(main())
