"""Before anything imports the product: shapes in its signatures are checked in every test."""

from jaxtyping import install_import_hook

install_import_hook("tsm.training.model", "beartype.beartype")
install_import_hook("tsm.training.data", "beartype.beartype")
