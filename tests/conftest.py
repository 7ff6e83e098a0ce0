"""Before anything imports the product: shapes in its signatures are checked in every test."""

import signal

from jaxtyping import install_import_hook

install_import_hook("tsm.training.model", "beartype.beartype")
install_import_hook("tsm.training.data", "beartype.beartype")

# A shell starts what it puts in the background deaf to Ctrl-C, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
