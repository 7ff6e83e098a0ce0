"""For scripts that are run by their path: this folder as a package, under whatever name it has.

if not __package__:
    from by_path import PACKAGE as __package__
"""

import sys

PACKAGE = "tsm_runtime"
if PACKAGE not in sys.modules:
    package = type(sys)(PACKAGE)
    package.__path__ = [sys.path[0]]
    sys.modules[PACKAGE] = package
