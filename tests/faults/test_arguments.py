"""Arguments that a user may well give: taken as meant, or refused in one line.

pytest tests/faults/test_arguments.py
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pytest
from commands import output, refused, run

from tsm.runtime import EngineError, Sampling, SamplingError, engines, load, stream

TFLITE = engines.SHIPPED_MODEL
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def native() -> stream.Model:
    return load()


def drawn(model: stream.Model, prompt, **settings) -> bytes:
    text = model.stream(Sampling(**{"seed": 3, **settings}))
    text.feed(prompt)
    return bytes(text.generate_bytes(20))


# Bytes and numbers of other types


@pytest.mark.parametrize("kind", ["native", "litert"])
@pytest.mark.parametrize("prompt", [bytearray(b"ROMEO:\n"), memoryview(b"xROMEO:\n")[1:]])
def test_a_prompt_is_any_object_of_bytes(kind, prompt):
    model = load(TFLITE, kind)
    assert drawn(model, prompt) == drawn(model, b"ROMEO:\n") == drawn(model, "ROMEO:\n")
    engine, rows = model.engine, []
    for data in (prompt, b"ROMEO:\n"):
        engine.reset()
        rows.append(engine.logits_of(data))
    assert rows[0] == rows[1]
    with pytest.raises(EngineError, match="no bytes, wanted at least one"):
        engine.feed(prompt[:0])


def test_numbers_of_numpy_count_as_numbers(native):
    settings = {
        "seed": np.int64(3),
        "top_k": np.uint8(40),
        "temperature": np.float32(0.5),
        "logit_bias": {np.int16(10): np.float64(-1)},
    }
    plain = {"seed": 3, "top_k": 40, "temperature": 0.5, "logit_bias": {10: -1.0}}
    assert Sampling(**settings).settings() == Sampling(**plain).settings()
    assert drawn(native, "a", **settings) == drawn(native, "a", **plain)
    native.load_stream(native.stream(Sampling(**settings)).to_bytes())  # into JSON, too
    native.engine.reset()
    assert load(threads=np.int64(2)).engine.feed(b"a") == native.engine.feed(b"a")


# Seeds


@pytest.mark.parametrize("seed", [0, 5, 2**63, 2**64 - 1])
def test_a_seed_counts_modulo_2_to_the_64(native, seed):
    wanted = drawn(native, "a", seed=seed)
    for same in (seed + 2**64, seed - 2**64, seed + 2**200):
        assert Sampling(seed=same).seed == seed
        assert drawn(native, "a", seed=same) == wanted


def test_the_seed_after_the_greatest_is_zero():
    assert Sampling(seed=18446744073709551615 + 1).seed == 0


# Threads


@pytest.mark.parametrize("kind", engines.ENGINES)
@pytest.mark.parametrize("threads", [0, -1, 4294967296, 2**70, 1.5, "2", None])
def test_threads_that_cannot_be_are_named_by_one_line(kind, threads):
    with pytest.raises(EngineError) as refused:
        load(TFLITE, kind, threads=threads)
    assert str(refused.value) == f"threads: found {threads!r}, wanted a whole number, 1 to 1,024"


# Where a text stops


def text_of(model: stream.Model, **ends) -> tuple[str, str]:
    text = model.stream(Sampling(temperature=0))
    text.feed("ROMEO:\n")
    return "".join(text.generate(200, **ends)), text.finish_reason


def test_a_string_is_one_stop_and_not_its_characters(native):
    whole, _ = text_of(native)
    stop = whole[40:46]
    assert text_of(native, stops=stop) == text_of(native, stops=[stop])
    assert text_of(native, stops=stop) == (whole[: whole.index(stop)], "stop")
    assert text_of(native, stops=(s for s in [stop]))[1] == "stop"


def test_a_string_is_one_expression_and_not_its_characters(native):
    whole, _ = text_of(native)
    regex = whole[40:43] + "[a-z ]"
    expected = text_of(native, regexes=[regex])
    assert expected[1] == "stop" and len(expected[0]) > 2
    assert text_of(native, regexes=regex) == text_of(native, regexes=re.compile(regex)) == expected


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ({"stops": ["a", ""]}, "stops: found '', wanted text of one character or more"),
        ({"stops": ""}, "stops: found ''"),
        ({"stops": b"a"}, "stops: found b'a'"),
        ({"stops": [3]}, "stops: found 3"),
        ({"regexes": "("}, "regexes: found '(', wanted an expression"),
        ({"regexes": [3]}, "regexes: found 3, wanted an expression"),
        ({"regexes": "a*"}, "regexes: found 'a*', wanted one that no empty text matches"),
        ({"regexes": b"a"}, "regexes: found b'a', wanted an expression of text"),
    ],
)
def test_an_end_that_cannot_be_is_refused_in_one_line(native, ends, says):
    with pytest.raises(SamplingError) as refused:
        text_of(native, **ends)
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


# The same on the command line


def test_samples_go_on_from_the_greatest_seed_at_zero():
    options = ("--bytes", 20, "--samples", 2, "--seed", 2**64 - 1, "--json")
    first, second = map(json.loads, output("generate", *options).splitlines())
    assert (first["seed"], second["seed"]) == (2**64 - 1, 0)
    assert second["text"].encode() == output("generate", "--bytes", 20, "--seed", 2**64)


@pytest.mark.parametrize("threads", [0, -1, 2**32, "many"])
def test_threads_that_cannot_be_are_no_fault_of_the_model(threads):
    line = refused(run("generate", f"--threads={threads}"))
    wanted = f"found '{threads}', wanted a whole number, 1 to 1,024"
    assert line == f"tsm-generate: argument --threads: {wanted}\n"


def test_escapes_are_read_where_they_are_asked_for():
    def prompt(text: str, *options: str) -> str:
        lines = output("generate", "--bytes", 1, "--json", "--prompt", text, *options)
        return json.loads(lines)["prompt"]

    assert prompt(r"a\n\x41\t\\n") == r"a\n\x41\t\\n"
    assert prompt(r"a\n\x41\t\\n\q", "--escape") == "a\nA\t\\n" + r"\q"
    text = ("--seed", 0, "--bytes", 300)
    whole = output("generate", *text)
    assert output("generate", *text, "-e", "--stop", r"\n") == whole.split(b"\n")[0] != whole
    assert output("generate", *text, "--stop", r"\n") == whole


@pytest.mark.parametrize("numbers", [array("i", [1]), array("d", [65.0])])
def test_numbers_that_are_no_bytes_are_refused(numbers):
    with load() as model, pytest.raises(EngineError, match="wanted bytes"):
        model.stream().feed(numbers)


@pytest.mark.parametrize("option", ["--save-state", "--load-state"])
@pytest.mark.parametrize("name", ["", "folder/"])
def test_a_state_without_a_name_of_a_file_is_refused_and_nothing_is_left(option, name, tmp_path):
    command = [sys.executable, str(ROOT / "runtime/generate.py"), "--bytes", "3", option, name]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert not list(tmp_path.iterdir())
