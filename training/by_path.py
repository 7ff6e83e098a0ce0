"""For scripts that are run by their path: the folder above this one as the package tsm, so that an
edited source has its effect, whatever is installed.

    if not __package__:
        from by_path import PACKAGE as __package__
"""

import os
import signal
import sys

# Until `run_command` takes over, Ctrl-C ends a script without a traceback: packages load slowly.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

PACKAGE = "tsm.training"
if PACKAGE not in sys.modules:
    package = type(sys)("tsm")
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.realpath(__file__)))]
    sys.modules["tsm"] = package
