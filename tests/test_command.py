"""The arguments of the runtime's commands: what is read without argparse is what argparse reads."""

from __future__ import annotations

import argparse
import importlib
import os
import random

import pytest

from tsm.runtime import command

# By module: what its command lines are made of, each a word or two.
PIECES = {
    "generation": """--bytes 5|--bytes=7|--bytes -1|--bytes|--bytes x|--prompt hi|--prompt=|
        --prompt -|--prompt-file NULL|--prompt-file -x|--stop a|--stop b|--stop=|--stop-regex (|
        --stop-regex a+|--temperature 0.5|--top-k 3|--seed -2|--logit-bias 10=-inf|--json|--json=1|
        --logit-bias 0x0A=1|--js|--engine native|--engine gpu|model.tflite|--|-|-d|--grammar [ab]+|
        --save-state s|--logprobs 3|--interactive|--samples 2|--threads 0|--no-such|""",
    "score": """--unit bits|--unit x|--threshold 1|--threshold 2|--quantile 0.5|file|-|--json|
        --model m""",
    "compress": "-d|--decompress|-o x|-ox|--out=y|-|file|-f|-df|--force|--json|--model m",
    "bench": "--engine native|--engine native litert|model|--longest 10|--repeats 0|--json",
    "describe": "model|--json|--other|",
}


@pytest.mark.parametrize("module", PIECES)
def test_a_plain_line_is_read_as_argparse_reads_it(module, monkeypatch, capsys):
    plain = []

    def read_twice(parser, argv):
        found, wanted = parser.plain(argv), None
        try:
            wanted = vars(parser.whole().parse_args(argv))
        except SystemExit:
            assert found is None, argv
            raise
        if found is not None:
            plain.append(argv)
            # compiled expressions are cached, so that equal ones are the same
            assert vars(found) == wanted, argv
        return argparse.Namespace(**wanted)

    monkeypatch.setattr(command.Parser, "parse_args", read_twice)
    arguments = importlib.import_module(f"tsm.runtime.{module}")._arguments
    chance = random.Random(0)
    pieces = [piece.replace("NULL", os.devnull).split() for piece in PIECES[module].split("|")]
    for _ in range(1000):
        try:
            arguments(
                [word for piece in chance.choices(pieces, k=chance.randrange(5)) for word in piece]
            )
        except SystemExit as left:
            assert left.code == 2
    assert len(plain) > 150, len(plain)
