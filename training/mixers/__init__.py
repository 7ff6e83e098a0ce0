"""The mixers: one file each, with its table of weights, its state, its switches and its function.

| file           | what it is                                                              |
| -------------- | ----------------------------------------------------------------------- |
| beam.py        | the TSM's mixer: a beam splitter for every channel                      |
| topological.py | its form with a complex matrix per head: angles, chunked and step form  |
| addressed.py   | a matrix per head whose beam splitter couples the key's mode alone      |
| attention.py   | baseline: softmax attention over a sliding window                       |
| performer.py   | baseline: attention by random features                                  |
| linformer.py   | baseline: attention over compressed blocks                              |
| mingru.py      | baseline: a gated recurrence per channel                                |
| seed.py        | baseline: the mixer that the project started from, causal and as it was |
| table.py       | what a mixer is, and the rows of its table                              |
| primitives.py  | array code that mixers share                                            |

To add a mixer, add a file that defines `MIXERS`, a `table.Mixer` by name: it is found here.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from .table import Mixer

MIXERS: dict[str, Mixer] = {}
for _file in iter_modules(__path__):
    MIXERS |= getattr(import_module(f".{_file.name}", __name__), "MIXERS", {})
