"""The runtime as a device meets it: verified artifacts, whole characters, steady memory.

pytest tests/test_runtime.py
"""

from __future__ import annotations

import json
import math
import os
import pty
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path

import ai_edge_litert
import numpy as np
import pytest

from tsm.runtime import artifact, engines, generate, stream

ROOT = Path(__file__).parent.parent
RUNTIME = ROOT / "runtime"
TFLITE, ONNX = RUNTIME / "shakespeare-int8.tflite", RUNTIME / "shakespeare-int8.onnx"
PEAK_RSS_LIMIT_BYTES = 56_000_000  # the project's claim
TEXT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"

# One byte at a time against blocks, and another kernel library: the same int8 arithmetic, where
# a rounding that falls the other way moves an activation by one of its 255 steps.
BLOCK_LOGIT_TOLERANCE = 0.25

METADATA = {
    "spec": {"width": 64},
    "quantization": "int8",
    "license": "MIT",
    "source_sha256": "ab" * 32,
    "prefill_tokens": 64,
    "state": {"memory": [1, 1, 1, 2, 4], "history": [1, 1, 3, 8]},
    "places": {},
}


def python(*arguments: object, **settings) -> subprocess.CompletedProcess:
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 300, **settings}
    return subprocess.run([sys.executable, *map(str, arguments)], check=False, **settings)


def run(*arguments: object, **settings) -> subprocess.CompletedProcess:
    return python(RUNTIME / "generate.py", *arguments, **settings)


def generated(*arguments: object, **settings) -> bytes:
    done = run(*arguments, **settings)
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout


@pytest.fixture(scope="session", params=engines.ENGINES)
def engine(request) -> engines.Engine:
    path = ONNX if request.param == "onnx" else TFLITE
    return stream.load(path, request.param).engine


# Artifacts


def sealed(before: int = 10, after: int = 1000) -> bytes:
    noise = random.Random(before)
    text = artifact.metadata_json(METADATA).encode()
    return artifact.seal(noise.randbytes(before) + text + noise.randbytes(after))


PIECE = artifact.PIECE_BYTES


@pytest.mark.parametrize(
    "before", [0, 10, PIECE - 200, PIECE - 100, PIECE - 60, PIECE - 3, PIECE, 2 * PIECE - 70]
)
def test_a_sealed_file_opens_wherever_its_header_stands(tmp_path, before):
    (tmp_path / "model").write_bytes(sealed(before))
    found = artifact.open_artifact(tmp_path / "model")
    assert {key: getattr(found, key) for key in METADATA} == METADATA
    assert artifact.seal(sealed(before)) == sealed(before)


@pytest.mark.parametrize("width", [float("nan"), float("inf"), -1, None, [4]])
def test_a_spec_that_no_model_has_is_refused(tmp_path, width):
    text = artifact.metadata_json({**METADATA, "spec": {"width": width}}).encode()
    (tmp_path / "model").write_bytes(artifact.seal(text))
    with pytest.raises(artifact.ArtifactError, match="spec"):
        artifact.open_artifact(tmp_path / "model")


def damaged(kind: str) -> bytes:
    whole = bytearray(sealed())
    digest = whole.index(b'"sha256": "') + 11
    if kind.startswith("bit of "):
        places = {"first byte": 0, "spec": whole.index(b"width"), "digest": digest + 63}
        whole[{**places, "last byte": len(whole) - 1}[kind[7:]]] ^= 1
    return {
        "empty": b"",
        "no header": b"TFL3" * 1000,
        "half": bytes(whole[: len(whole) // 2]),
        "one byte short": bytes(whole[:-1]),
        "one byte long": bytes(whole) + b"\0",
        "two headers": artifact.seal(sealed()) + sealed(),
        "format 2": bytes(whole).replace(b'"tsm_artifact": 3', b'"tsm_artifact": 2'),
        "not sealed": bytes(whole).replace(bytes(whole[digest : digest + 64]), b"0" * 64),
        "not JSON": bytes(whole).replace(b'"spec": {', b'"spec": ['),
    }.get(kind, bytes(whole))


DAMAGES = [
    ("empty", "0 TSM headers"),
    ("no header", "0 TSM headers"),
    ("half", "incomplete"),
    ("one byte short", "incomplete"),
    ("one byte long", "extended"),
    ("two headers", "2 TSM headers"),
    ("format 2", "artifact format '2', wanted '3'"),
    ("not sealed", "damaged"),
    ("not JSON", "damaged"),
    ("bit of first byte", "damaged"),
    ("bit of spec", "damaged"),
    ("bit of digest", "damaged"),
    ("bit of last byte", "damaged"),
]


@pytest.mark.parametrize(("kind", "says"), DAMAGES)
def test_a_damaged_artifact_is_refused_before_any_interpreter(
    tmp_path, monkeypatch, capsys, kind, says
):
    def opened(*_):
        raise AssertionError("an interpreter was given a damaged file")

    path = tmp_path / "model.tflite"
    path.write_bytes(damaged(kind))
    monkeypatch.setattr(stream, "open_engine", opened)
    with pytest.raises(artifact.ArtifactError, match=says):
        stream.load(path)


def test_a_thousand_damages_are_each_one_clear_error(tmp_path):
    whole, choose, path = sealed(), random.Random(1), tmp_path / "model"
    for _ in range(1000):
        data, place = bytearray(whole), choose.randrange(len(whole))
        kind = choose.choice(["bit", "cut", "insert", "zeros", "twice"])
        if kind == "bit":
            data[place] ^= 1 << choose.randrange(8)
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data[place:place] = choose.randbytes(choose.randrange(1, 100))
        elif kind == "zeros":
            data[place:] = bytes(len(data) - place)
        else:
            data += data[place:]
        path.write_bytes(data)
        try:
            artifact.open_artifact(path)
            assert data == whole  # a last zero made zero
        except artifact.ArtifactError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def test_metadata_is_exactly_what_the_format_says():
    with pytest.raises(artifact.ArtifactError, match="wanted"):
        artifact.metadata_json({**METADATA, "mood": "gay"})
    with pytest.raises(artifact.ArtifactError, match="0 metadata objects"):
        artifact.seal(b"nothing")
    with pytest.raises(artifact.ArtifactError, match="2 metadata objects"):
        artifact.seal(2 * artifact.metadata_json(METADATA).encode())


def test_verifying_a_large_file_takes_little_memory(tmp_path):
    (tmp_path / "model").write_bytes(sealed(after=32 * PIECE))
    tracemalloc.start()
    artifact.open_artifact(tmp_path / "model")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 19


# Ends


def test_generation_ends_at_a_stop_string():
    whole = generated("--bytes", 300, "--temperature", 0).decode()
    stop = whole[100:104]
    assert (
        generated("--bytes", 300, "--temperature", 0, "--stop", stop).decode()
        == (whole[: whole.index(stop)])
    )


# Seeds


def test_the_same_seed_gives_the_same_text_on_every_run():
    first = generated("--seed", 7)
    assert len(first.decode()) > 100
    assert generated("--seed", 7) == first
    assert generated("--seed", 8) != first
    assert generated("--seed", 7, "--temperature", 0) == generated("--temperature", 0)
    assert generated() == generated("--seed", 0, TFLITE, "--bytes", 500, "--prompt", "ROMEO:\n")


# Engines


def test_blocks_and_single_bytes_give_the_same_logits(engine):
    engine.reset()
    blocks = np.array(engine.logits_of(TEXT)).reshape(len(TEXT), engines.VOCABULARY)
    engine.reset()
    singles = np.array([engine.feed(bytes([byte])) for byte in TEXT])
    difference = np.abs(blocks - singles)
    assert difference.max() < BLOCK_LOGIT_TOLERANCE, (difference.max(), difference.mean())
    engine.reset()
    assert np.array_equal(np.array(engine.feed(TEXT)), blocks[-1])


def test_a_saved_state_continues_exactly(engine):
    engine.reset()
    fresh = engine.get_state()
    engine.feed(TEXT)
    saved = engine.get_state()
    assert {name: len(value) for name, value in saved.items()} == {
        name: 4 * math.prod(shape) for name, shape in engine.artifact.state.items()
    }
    wanted = engine.feed(b"Second Citizen:")
    engine.feed(b"elsewhere")
    engine.set_state(saved)
    assert engine.get_state() == saved
    assert engine.feed(b"Second Citizen:") == wanted
    engine.reset()
    assert engine.get_state() == fresh != saved


def test_a_state_of_another_shape_and_an_empty_feed_are_refused(engine):
    for state in ({}, {**engine.get_state(), "history": b""}, {"history": b""}):
        with pytest.raises(engines.EngineError, match="wanted"):
            engine.set_state(state)
    with pytest.raises(engines.EngineError, match="at least one"):
        engine.feed(b"")


def test_tflite_and_onnx_are_the_same_model():
    """To the bit where the C engine computes both."""
    rows = []
    for path, kind in ((TFLITE, "native"), (ONNX, "native"), (TFLITE, "litert"), (ONNX, "onnx")):
        logits = np.array(stream.load(path, kind).engine.logits_of(TEXT)).reshape(len(TEXT), -1)
        logits -= logits.max(axis=1, keepdims=True)
        rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    assert np.array_equal(rows[0], rows[1])
    for other in rows[2:]:
        nats = (np.exp(rows[0]) * (rows[0] - other)).sum(axis=1).mean()
        assert 0 <= nats < 0.02  # ten times the 0.002 that int8 itself costs


# Command line

MISTAKES = [
    (["/no/such/model"], "no such file"),
    ([RUNTIME], "is a directory"),
    ([RUNTIME / "generate.py"], "TSM headers found, wanted exactly one"),
    ([os.devnull], "0 TSM headers"),
    (["--bytes", "-1"], "found '-1', wanted a whole number, 0 or more"),
    (["--bytes", "many"], "found 'many'"),
    (["--bytes", "1.5"], "found '1.5'"),
    (["--temperature", "nan"], "found 'nan', wanted a finite number, 0 or more"),
    (["--temperature", "inf"], "found 'inf'"),
    (["--temperature=-1"], "found '-1'"),
    (["--top-k=-1"], "found '-1'"),
    (["--top-p", "0"], "found '0', wanted a number above 0, at most 1"),
    (["--top-p", "1.01"], "found '1.01'"),
    (["--top-p", "nan"], "found 'nan'"),
    (["--min-p", "1.5"], "found '1.5', wanted a number from 0 to 1"),
    (["--typical-p", "0"], "found '0'"),
    (["--repetition-penalty", "0"], "found '0', wanted a number from 0.01 to 100"),
    (["--presence-penalty", "inf"], "found 'inf'"),
    (["--penalty-window", "5000"], "wanted a whole number, at most 4096"),
    (["--logit-bias", "a=1"], "found 'a=1', wanted BYTE=VALUE"),
    (["--logit-bias", "256=1"], "found byte 256, wanted 0 to 255"),
    (["--logit-bias", "10=nan"], "found nan"),
    (["--stop-regex", "("], "found '(', wanted an expression"),
    (["--stop-regex", "a*"], "wanted one that no empty text matches"),
    (["--grammar", "("], "grammar: '(' cannot be used"),
    (["--grammar", "/no/schema.json"], "/no/schema.json: no such file"),
    (["--load-state", "/no/state"], "/no/state: no such file"),
    (["--load-state", TFLITE], "which no state of this model has"),
    (["--load-state", ROOT / "README.md"], "no TSM state"),
    (["--save-state", "/no/state"], "/no/state: no such file or directory, wanted a file that can"),
    (["--save-state", "a", "--samples", "2"], "--save-state: not allowed with --samples"),
    (["--prompt-cache", "a", "--load-state", "b"], "--prompt-cache: not allowed with --load-state"),
    (["--prompt-cache", os.devnull], "wanted a folder for prompts"),
    (["--logprobs", "3"], "--logprobs: not allowed with no --json"),
    (["--logprobs", "-1", "--json"], "found '-1'"),
    (["--samples", "0"], "found '0', wanted a whole number, 1 or more"),
    (["--interactive", "--json"], "--interactive: not allowed with --json"),
    (["--seed", "x"], "found 'x', wanted a whole number"),
    (["--stop", ""], "found an empty string"),
    (["--prompt-file", "/no/such/prompt"], "/no/such/prompt: no such file"),
    (["--prompt-file", RUNTIME], "is a directory, wanted a readable file"),
    (["--prompt", "a", "--prompt-file", os.devnull], "not allowed with"),
    (["--colour"], "--colour"),
    (["--engine", "gpu"], "invalid choice: 'gpu'"),
    (["--engine", "onnx"], "engine onnx cannot run it, wanted native or litert"),
    ([TFLITE, ONNX], "unrecognized"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=lambda value: str(value)[-40:])
def test_a_mistake_is_one_clear_line(capfd, arguments, says):
    try:
        code = generate.main([str(argument) for argument in arguments])
    except SystemExit as left:
        code = left.code
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert says in err and err.startswith("tsm-generate: ")


def test_a_damaged_model_is_one_clear_line_and_exit_2(tmp_path):
    whole = bytearray(TFLITE.read_bytes())
    whole[len(whole) // 2] ^= 16
    for data in (whole, whole[:-100]):
        (tmp_path / "model.tflite").write_bytes(data)
        done = run(tmp_path / "model.tflite")
        assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
        assert b"model.tflite: " in done.stderr and b"wants" in done.stderr


@pytest.mark.parametrize("head", [b"\x1c\0\0\0TFL3", b"\x08\x0a\x12\x02"], ids=["tflite", "onnx"])
def test_a_sealed_file_that_is_no_model_ends_in_one_clear_line(tmp_path, head):
    data = head + bytes(100) + artifact.metadata_json(METADATA).encode()
    (tmp_path / "model").write_bytes(artifact.seal(data))
    done = run(tmp_path / "model")
    *others, last = done.stderr.decode().splitlines()  # LiteRT adds a report of its own
    assert (done.returncode, done.stdout) == (2, b"")
    assert last.startswith("tsm-generate: ") and not any("Traceback" in line for line in others)


def test_prompts_are_read_as_bytes_from_anywhere(tmp_path):
    few = ("--bytes", 40)  # sampled: greedy text soon forgets its prompt
    (tmp_path / "prompt").write_bytes(b"\xffJULIET:\n")
    wanted = generated(*few, "--prompt-file", tmp_path / "prompt")
    assert generated(*few, "--prompt-file", "-", input=b"\xffJULIET:\n") == wanted
    assert generated(*few, "--prompt", os.fsdecode(b"\xffJULIET:\n")) == wanted
    assert generated(*few, "--prompt", "") == generated(*few, "--prompt", "\n") != wanted
    latin = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert generated(*few, "--prompt", "é", env=latin) == generated(*few, "--prompt", "é")
    assert generated("--bytes", 0) == b""


def test_json_reports_one_object():
    done = json.loads(generated("--json", "--bytes", 50, "--seed", 3, "--prompt", "é:"))
    assert done["text"].encode() == generated("--bytes", 50, "--seed", 3, "--prompt", "é:")
    assert (done["bytes"], done["prompt"], done["seed"]) == (50, "é:", 3)
    assert done["seconds"] > 0 and done["peak_rss_bytes"] > 8_000_000
    assert done["bytes_per_second"] == pytest.approx(50 / done["seconds"])


@pytest.mark.parametrize(
    ("end", "code"),
    [(lambda p: p.send_signal(signal.SIGINT), 130), (lambda p: p.stdout.close(), 0)],
)
def test_an_interrupt_and_a_closed_pipe_end_quietly(end, code):
    command = [sys.executable, str(RUNTIME / "generate.py"), "--bytes", "10000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout.read(1)
            end(process)
            assert process.wait(timeout=60) == code
            assert process.stderr.read() == b""
        finally:
            process.kill()


def test_a_full_disk_is_one_clear_line():
    with open("/dev/full", "wb") as full:
        done = run("--bytes", 5, stdout=full)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"no space left" in done.stderr


# States, samples, grammars and conversations


def test_a_run_that_was_saved_goes_on_as_if_it_had_never_ended(tmp_path):
    options = ("--repetition-penalty", 1.2, "--seed", 3, "--temperature", 0.7)
    whole = generated("--bytes", 90, *options)
    first = generated("--bytes", 30, *options, "--save-state", tmp_path / "state")
    state = ("--load-state", tmp_path / "state")
    second = generated("--bytes", 60, *state)
    assert first + second == whole
    assert generated("--bytes", 60, *state) == second
    assert generated("--bytes", 60, *state, "--seed", 4) != second
    assert generated("--bytes", 60, *state, "--prompt", "JULIET:") != second


def test_an_interrupted_run_is_saved_between_two_bytes(tmp_path):
    options = ["--bytes", "10000000", "--save-state", str(tmp_path / "state")]
    command = [sys.executable, str(RUNTIME / "generate.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            first = process.stdout.read(20)
            process.send_signal(signal.SIGINT)
            first += process.stdout.read()
            assert (process.wait(timeout=60), process.stderr.read()) == (130, b"")
        finally:
            process.kill()
    more = generated("--bytes", 50, "--load-state", tmp_path / "state")
    assert generated("--bytes", len(first) + 50) == first + more


def test_a_prompt_cache_changes_no_text(tmp_path):
    options = ("--prompt", "ROMEO:\n" * 50, "--bytes", 60)
    wanted = generated(*options)
    for _ in range(2):
        assert generated(*options, "--prompt-cache", tmp_path / "cache") == wanted
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_samples_are_the_texts_of_their_seeds():
    lines = generated("--samples", 3, "--seed", 5, "--bytes", 40, "--json").splitlines()
    texts = [json.loads(line) for line in lines]
    assert [text["seed"] for text in texts] == [5, 6, 7]
    for text in texts:
        assert generated("--seed", text["seed"], "--bytes", 40).decode() == text["text"]
    plain = generated("--samples", 3, "--seed", 5, "--bytes", 40).decode()
    rows = enumerate(texts, 1)
    assert plain == "".join(f"[{i}/3, seed {t['seed']}]\n{t['text']}\n" for i, t in rows)


def test_log_probabilities_are_those_of_the_model(engine):
    names = {"NativeEngine": "native", "LiteRtEngine": "litert", "NumpyEngine": "onnx"}
    chosen = (engine.artifact.path, "--engine", names[type(engine).__name__])
    done = json.loads(generated(*chosen, "--json", "--logprobs", 2, "--bytes", 20))
    engine.reset()
    logits = np.array(engine.feed(b"ROMEO:\n"), np.float64)
    for row in done["logprobs"]:
        wanted = logits - np.logaddexp.reduce(logits)
        assert row["logprob"] == pytest.approx(wanted[row["byte"]], abs=1e-5)
        assert [byte for byte, _ in row["top"]] == list(np.argsort(-wanted)[:2])
        assert [value for _, value in row["top"]] == pytest.approx(
            np.sort(wanted)[:-3:-1], abs=1e-5
        )
        logits = np.array(engine.feed(bytes([row["byte"]])), np.float64)
    assert bytes(row["byte"] for row in done["logprobs"]).decode() == done["text"]
    assert done["logprob_total"] == pytest.approx(sum(row["logprob"] for row in done["logprobs"]))


def test_a_prompt_on_standard_input_is_read_once():
    options = ("--presence-penalty", "-0.5", "--bytes", 30)  # a value that argparse has to read
    piped = generated("--prompt-file", "-", *options, input=b"JULIET:\n")
    assert piped == generated("--prompt", "JULIET:\n", *options)


def test_settings_of_the_command_line_reach_the_sampler():
    assert b"e" not in generated("--logit-bias", "0x65=-inf", "--bytes", 300)
    assert b"\n" in generated("--bytes", 300, "--temperature", 0)
    assert b"\n" not in generated("--logit-bias", "10=-9", "--bytes", 300, "--temperature", 0)
    plain = generated("--bytes", 200)
    for option, value in (
        ("--typical-p", 0.5),
        ("--min-p", 0.2),
        ("--top-k", 5),
        ("--top-p", 0.5),
        ("--presence-penalty", 2),
        ("--frequency-penalty", 2),
        ("--repetition-penalty", 2),
    ):
        assert generated("--bytes", 200, option, value) != plain


def test_a_stop_expression_ends_the_text():
    whole = generated("--bytes", 300).decode()
    ended = generated("--bytes", 300, "--stop-regex", r" [a-z]{6}").decode()
    assert ended == re.split(r" [a-z]{6}", whole)[0] != whole


def test_a_grammar_holds_and_a_text_cut_short_says_so(tmp_path):
    schema = {"type": "object", "properties": {"n": {"enum": [7, 12]}}, "required": ["n"]}
    (tmp_path / "s.json").write_text(json.dumps({**schema, "additionalProperties": False}))
    for grammar in (tmp_path / "s.json", (tmp_path / "s.json").read_text()):
        assert type(json.loads(generated("--grammar", grammar))["n"]) is int
    done = run("--grammar", "[a-z]{50}", "--bytes", 20)
    assert (done.returncode, len(done.stdout), done.stderr.count(b"\n")) == (2, 20, 1)
    assert b"cut short, wanted more --bytes" in done.stderr


def test_a_conversation_answers_each_line(tmp_path):
    state = tmp_path / "state"
    done = run("--interactive", "--bytes", 30, "--save-state", state, input=b"ROMEO:\nJULIET:\n")
    assert (done.returncode, done.stderr) == (0, b"")
    text = stream.load().stream()
    wanted = b""
    for line in ("ROMEO:\n", "JULIET:\n"):
        text.feed(line)
        wanted += bytes(text.generate_bytes(30)) + b"\n"
    assert done.stdout == wanted
    assert generated("--bytes", 20, "--load-state", state) == bytes(text.generate_bytes(20))


def test_ctrl_c_ends_an_answer_and_not_the_conversation():
    here, there = pty.openpty()
    command = [sys.executable, str(RUNTIME / "generate.py"), "--interactive", "--bytes", "10000000"]
    seen = b""

    def until(wanted: bytes) -> None:
        nonlocal seen
        while wanted not in seen:
            assert select.select([here], [], [], 60)[0], seen
            seen += os.read(here, 4096)
        seen = seen.partition(wanted)[2]

    with subprocess.Popen(
        command, stdin=there, stdout=there, stderr=there, start_new_session=True
    ) as process:
        try:
            for _ in range(2):
                until(b"> ")
                os.write(here, b"ROMEO:\n")
                until(b"ROMEO:\r\n")  # echoed
                until(b"e")
                process.send_signal(signal.SIGINT)
            until(b"\r\n> ")
            os.write(here, b"\x04")
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(here)
            os.close(there)


# Installed, and carried away


@pytest.fixture(scope="session")
def alone(tmp_path_factory) -> Path:
    """The folder under another name, without the compiled engine, and beside it, `site`, where
    packages may be put."""
    folder = tmp_path_factory.mktemp("device") / "my model"
    shutil.copytree(RUNTIME, folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def carried(folder: Path, packages: list[str], *arguments: str) -> subprocess.CompletedProcess:
    """Runs the copy under a Python that sees the standard library and `packages` alone."""
    installed = Path(ai_edge_litert.__file__).parent.parent
    site = folder.parent / ("site" + "+".join(packages).replace("*", ""))
    site.mkdir(exist_ok=True)
    for package in packages:
        for source in installed.glob(package):
            if not (site / source.name).exists():
                (site / source.name).symlink_to(source)
    environment = {"PYTHONPATH": str(site), "PATH": os.environ["PATH"]}
    return python("-S", folder / "generate.py", *arguments, env=environment, cwd="/")


FEW = ("--bytes", "60", "--temperature", "0")


def test_the_folder_alone_with_one_interpreter_generates(alone):
    done = carried(alone, ["ai_edge_litert", "ai_edge_litert-*"], *FEW)
    assert (done.stderr, done.returncode) == (b"", 0)
    assert done.stdout == generated(*FEW, "--engine", "litert")


def test_the_folder_alone_with_the_compiled_engine_generates(tmp_path):
    folder = tmp_path / "device"
    shutil.copytree(RUNTIME, folder, ignore=shutil.ignore_patterns("__pycache__"))
    done = carried(folder, [], *FEW)
    assert (done.stderr, done.returncode) == (b"", 0)
    assert done.stdout == generated(*FEW, "--engine", "native")


def test_litert_of_another_version_runs_through_its_own_interpreter(alone):
    packages = ["ai_edge_litert", "numpy", "numpy.libs"]  # its version is not to be seen
    done = carried(alone, packages, *FEW, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"].encode() == generated(*FEW, "--engine", "litert")
    done = carried(alone, packages[:1], *FEW)  # which needs NumPy, so it is the one that ran
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done.stderr
    assert b"numpy" in done.stderr


@pytest.mark.parametrize("model", [TFLITE, ONNX])
def test_without_an_interpreter_it_says_what_to_install(alone, model):
    done = carried(alone, [], str(alone / model.name))
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert b"pip install" in done.stderr


@pytest.mark.parametrize("name", sorted(p.name for p in RUNTIME.glob("*.py")))
def test_every_file_imports_on_the_standard_library_alone(alone, name):
    code = f"import sys, runpy; runpy.run_path({str(RUNTIME / name)!r}); print(*sys.modules)"
    done = python("-S", "-c", code, env={"PYTHONPATH": str(RUNTIME)})
    assert done.returncode == 0, done.stderr
    assert not {b"numpy", b"onnxruntime", b"ai_edge_litert"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "command",
    [["-m", "tsm.runtime.generate"], ["-c", "import tsm.runtime.generate as g; g.main()"]],
)
def test_it_runs_as_an_installed_module_too(command, tmp_path):
    done = python(*command, *FEW, cwd=tmp_path)
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", generated(*FEW))


# Memory

STREAM = """
import array, json, math, re, sys
sys.path.insert(0, sys.argv[1])
import stream

model, measured = stream.load(), []
text = model.stream()
text.feed("ROMEO:")
for count, byte in enumerate(text.generate_bytes(20_000), 1):
    if count in (1_000, 2_000, 20_000):
        status = open("/proc/self/status").read()
        measured += [int(re.search(name + r":\\s+(\\d+) kB", status)[1]) * 1024
                     for name in ("VmHWM", "VmRSS")]
state = array.array("f", b"".join(model.engine.get_state().values()))
print(json.dumps([measured, all(map(math.isfinite, state)), max(map(abs, state)),
                  "numpy" in sys.modules]))
"""


def test_a_long_stream_stays_finite_in_memory_that_does_not_grow():
    done = python("-c", STREAM, RUNTIME)
    measured, finite, largest, numpy_loaded = json.loads(done.stdout)
    peak_at_1000_bytes, _, _, rss_at_2000_bytes, peak, rss = measured
    assert peak_at_1000_bytes <= PEAK_RSS_LIMIT_BYTES
    assert peak <= PEAK_RSS_LIMIT_BYTES
    assert rss - rss_at_2000_bytes < 500_000
    assert finite and largest < 1e4
    assert not numpy_loaded


def test_the_command_itself_keeps_to_the_limit():
    done = json.loads(generated("--bytes", 1000, "--json"))
    assert done["peak_rss_bytes"] <= PEAK_RSS_LIMIT_BYTES


LEAN = """
import sys
sys.path.insert(0, sys.argv[1])
if len(sys.argv) > 2:
    from stream import load
    stream = load(sys.argv[2], "native").stream()
    for _ in stream.generate(10_000):
        pass
with open("/proc/self/status") as lines:
    print(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")))
"""


def test_it_takes_little_beside_the_interpreter_and_the_model():
    """Measured: 2.5 MB, for the library, its calls and the runtime's own modules."""
    model = RUNTIME / "shakespeare-int8.tflite"
    idle, from_python = (
        int(python("-S", "-c", LEAN, RUNTIME, *given).stdout) for given in ((), (model,))
    )
    arguments = ["--engine", "native", "--bytes", 10_000, "--json"]
    report = json.loads(python("-S", RUNTIME / "generate.py", *arguments).stdout)
    for peak in (from_python, report["peak_rss_bytes"]):
        assert peak - idle - model.stat().st_size < 3_500_000
