"""The package tsm: tsm.runtime and, in a full installation, tsm.training and tsm.export."""

from importlib import import_module

__version__ = import_module(f"{__name__}.runtime.version").__version__
