"""The command tsm-generate, run as a user runs it.

pytest tests/test_generate.py
"""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from commands import (
    ASCII_LOCALE,
    ONNX,
    ROOT,
    RUNTIME,
    TFLITE,
    generated,
    on_terminal,
    output,
    refused,
    run,
)

from tsm.runtime import Sampling, artifact, stream

MISTAKES = [
    (["/no/such/model"], "no such file"),
    ([RUNTIME], "is a directory"),
    ([RUNTIME / "generate.py"], "TSM headers found, wanted exactly one"),
    ([os.devnull], "is no regular file"),
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
    (["--logprobs", "3"], "--logprobs: wanted --json with it"),
    (["--logprobs", "-1", "--json"], "found '-1'"),
    (["--samples", "0"], "found '0', wanted a whole number, 1 or more"),
    (["--raw", "--json"], "--raw: not allowed with --json"),
    (["--stop", os.fsdecode(b"\xff")], "wanted text in UTF-8, or --raw"),
    (["--threads", "0"], "found '0', wanted a whole number, 1 to 1,024"),
    (["--threads", "4294967296"], "found '4294967296', wanted a whole number, 1 to 1,024"),
    (["--interactive", "--json"], "--interactive: not allowed with --json"),
    (["--seed", "x"], "found 'x', wanted a whole number"),
    (["--stop", ""], "found an empty string"),
    (["--prompt-file", "/no/such/prompt"], "/no/such/prompt: no such file"),
    (["--prompt-file", RUNTIME], "is a directory"),
    (["--prompt", "a", "--prompt-file", os.devnull], "not allowed with"),
    (["--colour"], "--colour"),
    (["--engine", "gpu"], "invalid choice: 'gpu'"),
    (["--engine", "onnx"], "engine onnx cannot run it, wanted native or litert"),
    ([TFLITE, ONNX], "unrecognized"),
]


@pytest.mark.parametrize(("arguments", "says"), MISTAKES, ids=lambda value: str(value)[-40:])
def test_a_mistake_is_one_clear_line(arguments, says):
    line = refused(run("generate", *arguments))
    assert says in line and line.startswith("tsm-generate: ")


def test_a_damaged_model_is_one_clear_line_and_exit_2(tmp_path):
    whole = bytearray(TFLITE.read_bytes())
    whole[len(whole) // 2] ^= 16
    for data in (whole, whole[:-100]):
        (tmp_path / "model.tflite").write_bytes(data)
        done = run("generate", tmp_path / "model.tflite")
        line = refused(done)
        assert "model.tflite: " in line and "wants" in line


@pytest.mark.parametrize("head", [b"\x1c\0\0\0TFL3", b"\x08\x0a\x12\x02"], ids=["tflite", "onnx"])
def test_a_sealed_file_that_is_no_model_ends_in_one_clear_line(tmp_path, head):
    shipped = vars(artifact.open_artifact(TFLITE))
    metadata = {name: shipped[name] for name in shipped.keys() - {"path", "sha256"}}
    data = head + bytes(100) + artifact.metadata_json({**metadata, "offsets": {}}).encode()
    (tmp_path / "model").write_bytes(artifact.seal(data))
    done = run("generate", tmp_path / "model")
    *others, last = done.stderr.decode().splitlines()  # LiteRT adds a report of its own
    assert (done.returncode, done.stdout) == (2, b"")
    assert last.startswith("tsm-generate: ") and not any("Traceback" in line for line in others)


def test_generation_ends_at_a_stop_string():
    whole = generated("--bytes", 300, "--temperature", 0).decode()
    stop = whole[100:104]
    assert (
        generated("--bytes", 300, "--temperature", 0, "--stop", stop).decode()
        == (whole[: whole.index(stop)])
    )


def test_the_same_seed_gives_the_same_text_on_every_run():
    first = generated("--seed", 7)
    assert len(first.decode()) > 100
    assert generated("--seed", 7) == first
    assert generated("--seed", 8) != first
    assert generated("--seed", 7, "--temperature", 0) == generated("--temperature", 0)
    assert generated() == generated("--seed", 0, TFLITE, "--bytes", 500, "--prompt", "ROMEO:\n")


def test_prompts_are_read_as_bytes_from_anywhere(tmp_path):
    few = ("--bytes", 40)  # sampled: greedy text soon forgets its prompt
    (tmp_path / "prompt").write_bytes(b"\xffJULIET:\n")
    wanted = generated(*few, "--prompt-file", tmp_path / "prompt")
    assert generated(*few, "--prompt-file", "-", input=b"\xffJULIET:\n") == wanted
    assert generated(*few, "--prompt", os.fsdecode(b"\xffJULIET:\n")) == wanted
    assert generated(*few, "--prompt", "") == generated(*few, "--prompt", "\n") != wanted
    assert generated(*few, "--prompt", "é", env=ASCII_LOCALE) == generated(*few, "--prompt", "é")
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
        done = run("generate", "--bytes", 5, stdout=full)
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert b"no space left" in done.stderr


def test_a_run_that_was_saved_goes_on_as_if_it_had_never_ended(tmp_path):
    options = ("--repetition-penalty", 1.2, "--seed", 3, "--temperature", 0.7)
    whole = generated("--bytes", 90, *options)
    first = generated("--bytes", 30, *options, "--save-state", tmp_path / "state")
    state = ("--load-state", tmp_path / "state")
    second = output("generate", "--bytes", 60, *state)
    assert first + second == whole
    assert output("generate", "--bytes", 60, *state) == second
    assert output("generate", "--bytes", 60, *state, "--seed", 4) != second
    assert output("generate", "--bytes", 60, *state, "--prompt", "JULIET:") != second


def test_an_interrupted_run_is_saved_between_two_bytes(tmp_path):
    options = ["--seed", "0", "--bytes", "10000000", "--save-state", str(tmp_path / "state")]
    command = [sys.executable, str(RUNTIME / "generate.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            first = process.stdout.read(20)
            process.send_signal(signal.SIGINT)
            first += process.stdout.read()
            assert (process.wait(timeout=60), process.stderr.read()) == (130, b"")
        finally:
            process.kill()
    more = output("generate", "--bytes", 50, "--load-state", tmp_path / "state")
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


@pytest.mark.parametrize(("path", "kind"), [(TFLITE, "native"), (TFLITE, "litert"), (ONNX, "onnx")])
def test_log_probabilities_are_those_of_the_model(path, kind):
    done = json.loads(generated(path, "--engine", kind, "--json", "--logprobs", 2, "--bytes", 20))
    assert done["engine"] == kind
    engine = stream.load(path, kind).engine
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
    done = run("generate", "--grammar", "[a-z]{50}", "--bytes", 20)
    assert (done.returncode, len(done.stdout), done.stderr.count(b"\n")) == (2, 20, 1)
    assert b"cut short, wanted more --bytes" in done.stderr


def test_a_conversation_answers_each_line(tmp_path):
    state = tmp_path / "state"
    done = run(
        "generate",
        "--interactive",
        "--seed",
        0,
        "--bytes",
        30,
        "--save-state",
        state,
        input=b"ROMEO:\nJULIET:\n",
    )
    assert (done.returncode, done.stderr) == (0, b"")
    text = stream.load().stream(Sampling(seed=0))
    wanted = b""
    for line in ("ROMEO:\n", "JULIET:\n"):
        text.feed(line)
        wanted += bytes(text.generate_bytes(30)) + b"\n"
    assert done.stdout == wanted
    assert output("generate", "--bytes", 20, "--load-state", state) == bytes(
        text.generate_bytes(20)
    )


# Seeds, terminals


def test_each_run_without_a_seed_has_another_and_says_which():
    first, second = (json.loads(output("generate", "--bytes", 60, "--json")) for _ in range(2))
    assert first["seed"] != second["seed"] and first["text"] != second["text"]
    assert first["text"].encode() == output("generate", "--bytes", 60, "--seed", first["seed"])
    done = on_terminal("generate", "--bytes", 60)
    seed = re.fullmatch(rb"seed (\d+)\n", done.stderr)[1].decode()
    assert done.stdout == output("generate", "--bytes", 60, "--seed", seed) + b"\n"
    assert on_terminal("generate", "--bytes", 5, "--seed", seed).stderr == b""


def test_a_prompt_cache_does_not_keep_the_seed(tmp_path):
    options = ("--prompt", "ROMEO:\n" * 50, "--bytes", 30, "--json", "--prompt-cache", tmp_path)
    seeds = {json.loads(output("generate", *options))["seed"] for _ in range(2)}
    assert len(seeds) == 2


class Conversation:
    """Someone at a terminal, with tsm-generate --interactive."""

    def __init__(self, *options: object) -> None:
        self._here, there = pty.openpty()
        line = [sys.executable, str(RUNTIME / "generate.py"), "--interactive", *map(str, options)]
        streams = {"stdin": there, "stdout": there, "stderr": there}
        self.process = subprocess.Popen(line, **streams, start_new_session=True)
        os.close(there)
        self._seen = b""

    def until(self, wanted: bytes) -> None:
        while wanted not in self._seen:
            assert select.select([self._here], [], [], 60)[0], self._seen
            self._seen += os.read(self._here, 4096)
        self._seen = self._seen.partition(wanted)[2]

    def type(self, keys: bytes) -> None:
        os.write(self._here, keys)

    def interrupt(self) -> None:
        """Ctrl-C at the prompt. Readline still awake would notice it at the next key only."""
        status = Path(f"/proc/{self.process.pid}/stat")
        while status.read_text().split()[2] != "S":
            time.sleep(0.01)
        self.process.send_signal(signal.SIGINT)

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._here)


def test_ctrl_c_ends_an_answer_and_not_the_conversation():
    with Conversation("--bytes", 10_000_000) as someone:
        for _ in range(2):
            someone.until(b"> ")
            someone.type(b"ROMEO:\n")
            someone.until(b"ROMEO:\r\n")  # echoed
            someone.until(b"e")
            someone.process.send_signal(signal.SIGINT)
        someone.until(b"\r\n")
        someone.until(b"> ")
        someone.type(b"\x04")
        assert someone.process.wait(60) == 0


def test_a_line_can_be_edited_and_given_up(tmp_path):
    with Conversation("--seed", 0, "--bytes", 5, "--save-state", tmp_path / "state") as someone:
        someone.until(b"> ")
        someone.type(b"given up")
        someone.until(b"given up")
        someone.interrupt()
        someone.until(b"> ")
        someone.type(b"OMEO\x01R\x05:\xc3\xa9\n")  # Ctrl-A: to its start; Ctrl-E: to its end
        someone.until(b"> ")
        someone.interrupt()  # at an empty line
        assert someone.process.wait(60) == 130
    recent = stream.load().load_stream(tmp_path / "state").recent
    assert recent.startswith("ROMEO:é\n".encode()) and len(recent) == 14


def test_a_long_prompt_shows_how_far_it_is_read(tmp_path):
    prompt = tmp_path / "prompt.txt"
    prompt.write_bytes(b"ROMEO:\n" * 2400)
    arguments = ["--prompt-file", prompt, "--bytes", "20", "--seed", "1"]
    shown = on_terminal("generate", *arguments, stderr=subprocess.STDOUT).stdout
    assert b"16,384 of 16,800 bytes of the prompt" in shown
    with stream.load() as model:  # read in pieces, the same bits as read at once
        text = model.stream(Sampling(seed=1))
        text.feed(prompt.read_bytes())
        assert bytes(text.generate_bytes(20)) in shown
