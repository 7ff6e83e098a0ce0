"""Generation on a device: `from tsm.runtime import load`.

Commands

| file        | what it does                                                       |
| ----------- | ------------------------------------------------------------------ |
| generate.py | text from an artifact                                              |
| score.py    | how surprising each byte or line of a text is; anomalies           |
| complete.py | the rest of a word or of a line, as one types                      |
| compress.py | lossless compression with the model                                |
| describe.py | what is in an artifact                                             |
| bench.py    | speed by position, time to the first byte, memory, joules          |

The library

| file            | what it is                                                     |
| --------------- | -------------------------------------------------------------- |
| stream.py       | models and streams: text generated, forked, rewound, saved     |
| sampling.py     | from logits to a byte: penalties, filters, random numbers      |
| lines.py        | lines of a log, each with a score, and which are anomalies     |
| grammar.py      | text held to a grammar                                         |
| schema.py       | which JSON Schemas a grammar can hold                          |
| text.py         | bytes to text, and where it stops                              |
| state.py        | files of a stream's state, checked before they are used        |
| prompt_cache.py | states after prompts                                           |
| artifact.py     | what an artifact says about itself; verified first             |
| engines/        | what computes: the C engine, LiteRT, onnxruntime               |
| native/         | the C library: tsm.h says what it does, tsm.c what is in it    |
| command.py      | arguments, standard streams, signals and exit codes of commands |
| files.py        | files read and written, whole or not at all                    |
| interactive.py  | a conversation by lines                                        |
| by_path.py      | how a script that is run by its path is part of the package    |
| version.py      | the version of everything here                                 |
"""

from __future__ import annotations

from .artifact import ArtifactError
from .engines import EngineError
from .grammar import Grammar
from .sampling import GrammarError, Sampling, SamplingError
from .state import StateError
from .stream import Model, Stream, load
from .version import __version__

__all__ = [
    "ArtifactError",
    "EngineError",
    "Grammar",
    "GrammarError",
    "Model",
    "Sampling",
    "SamplingError",
    "StateError",
    "Stream",
    "__version__",
    "load",
]
