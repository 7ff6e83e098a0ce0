"""The plugin for LLM, through LLM's own command and library. make test-apps-llm runs it in an
environment of its own.

build/llm/bin/python -m pytest --confcutdir tests/apps tests/apps/test_llm.py
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import llm
import pytest
from pydantic import ValidationError

from tsm.runtime import Sampling, load

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
MODEL = "tsm/shakespeare"
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.fixture
def user(tmp_path, monkeypatch) -> Path:
    """A folder of LLM's for one user."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    return tmp_path


def command(*arguments: object, **settings) -> subprocess.CompletedProcess[str]:
    settings = {"capture_output": True, "text": True, "timeout": 120, "check": False, **settings}
    line = [str(BIN / "llm"), *map(str, arguments)]
    return subprocess.run(line, stdin=subprocess.DEVNULL, **settings)


def output(*arguments: object) -> str:
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def logged(count: int = 1) -> list[dict]:
    """The last answers, the last of them last."""
    return json.loads(output("logs", "-n", count, "--json"))


def written(text: str, count: int, seed: int = 1, **settings) -> str:
    """What the runtime itself goes on with."""
    stream = load().stream(Sampling(seed=seed, **settings))
    stream.feed(text)
    return "".join(stream.generate(count))


def test_the_command_writes_what_the_runtime_writes_and_goes_on(user):
    options = ("-o", "seed", 1, "-o", "max_tokens", 150, "-o", "top_k", 20)
    done = command("-m", MODEL, "ROMEO:", "-u", *options)
    first = written("ROMEO:", 150, top_k=20)
    assert (done.returncode, done.stdout) == (0, first + "\n")
    assert "Token usage: 6 input, 150 output" in done.stderr
    text = f"ROMEO:{first}\nJULIET:"
    second = written(text, 150, top_k=20)
    for extra in ((), ("--async",), ("--no-stream",)):
        assert output("-c", "JULIET:", "-m", MODEL, "--no-log", *options, *extra) == second + "\n"
    assert output("-c", "JULIET:", *options) == second + "\n"
    for row, (prompt, answer, read) in zip(
        logged(2), (("ROMEO:", first, 6), ("JULIET:", second, len(text))), strict=True
    ):
        assert (row["model"], row["prompt"], row["response"]) == (MODEL, prompt, answer)
        assert row["options_json"] == {"max_tokens": 150, "seed": 1, "top_k": 20}
        assert row["response_json"] == {"seed": 1, "finish_reason": "length"}
        assert (row["input_tokens"], row["output_tokens"]) == (read, 150)


def test_a_seed_of_the_log_gives_the_text_again(user):
    first = output("-m", MODEL, "ROMEO:", "-o", "max_tokens", 80)
    seed = logged()[0]["response_json"]["seed"]
    assert output("-m", MODEL, "ROMEO:", "-o", "max_tokens", 80, "-o", "seed", seed) == first


def test_options_are_shown_and_checked(user):
    shown = output("models", "--options", "-q", "tsm")
    for name in ("max_tokens: int", "stop: str", "top_p: float", "seed: int", "logit_bias: dict"):
        assert name in shown
    for option, value, wanted in (
        ("temperature", "-1", "temperature\n  Input should be greater than or equal to 0"),
        ("nonsense", "1", "nonsense\n  Extra inputs"),
        ("grammar", "(", "cannot be used"),
    ):
        done = command("-m", MODEL, "x", "-o", option, value)
        assert (done.returncode, done.stdout.strip()) == (1, "")
        assert wanted in done.stderr and "Traceback" not in done.stderr, done.stderr
    options = llm.get_model(MODEL).Options
    for option, value, wanted in (
        ("temperature", "nan", "finite number"),
        ("temperature", "hot", "valid number"),
        ("top_p", "0", "greater than or equal to"),
        ("top_p", "1.5", "less than or equal to 1"),
        ("penalty_window", "5000", "less than or equal to 4096"),
        ("max_tokens", "-1", "greater than or equal to 0"),
        ("seed", "1.5", "valid integer"),
        ("logit_bias", '{"300": 1}', "300"),
        ("logit_bias", "{", "Expecting property name"),
        ("logit_bias", "[" * 100_000, "too deep"),
    ):
        with pytest.raises(ValidationError, match=wanted):
            options(**{option: value})
    biased = options(logit_bias='{"10": "-inf"}', temperature="0.5").sampling()
    assert (biased.logit_bias, biased.temperature) == ({10: -math.inf}, 0.5)


def test_a_schema_and_a_grammar_hold_the_text(user):
    schema = {
        "type": "object",
        "properties": {
            "king": {"enum": ["Lear", "Henry"]},
            "act": {"type": "integer", "minimum": 1, "maximum": 5},
        },
        "required": ["king", "act"],
        "additionalProperties": False,
    }
    found = json.loads(output("-m", MODEL, "A king: ", "--schema", json.dumps(schema)))
    assert found.keys() == {"king", "act"} and found["king"] in ("Lear", "Henry")
    assert logged()[0]["response_json"]["finish_reason"] == "grammar"
    cut = command("-m", MODEL, "A king: ", "--schema", json.dumps(schema), "-o", "max_tokens", 9)
    assert cut.returncode == 1 and "cut short after 9 bytes" in cut.stderr
    text = output("-m", MODEL, "Act ", "-o", "grammar", "I{1,3}, scene [1-9]")
    assert re.fullmatch(r"I{1,3}, scene [1-9]\n", text)


def test_an_answer_comes_as_it_is_written_and_ctrl_c_keeps_it(user):
    for extra in ([], ["--async"]):
        line = [BIN / "llm", "-m", MODEL, "ROMEO:", "-o", "max_tokens", "1000000", *extra]
        with subprocess.Popen(line, **PIPES, bufsize=0) as process:
            begun = b""
            while len(begun) < 200:  # of minutes of text
                begun += process.stdout.read(200)
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
        row = logged()[0]
        assert row["response"] == (begun + rest).decode()[:-1]
        assert row["response_json"]["finish_reason"] == "cancelled"
        assert 200 <= row["output_tokens"] < 1_000_000
        begun_text = ("ROMEO:" + row["response"]).removesuffix("\n")  # it may end a line by itself
        answer = written(f"{begun_text}\nAnd", 50)
        assert output("-c", "And", "-o", "seed", 1, "-o", "max_tokens", 50) == answer + "\n"


def test_a_chat_goes_on_after_ctrl_c(user):
    line = [BIN / "llm", "chat", "-m", MODEL, "-o", "max_tokens", "1000000", "-o", "stop", "ZZZ"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, **PIPES, bufsize=0) as process:
        for prompt in (b"ROMEO:\n", b"JULIET:\n"):
            process.stdin.write(prompt)
            seen = b""
            while len(seen) < 1000:
                seen += process.stdout.read(1000)
            process.send_signal(signal.SIGINT)
            while b"> " not in seen[-200:]:
                seen += process.stdout.read(1000)
        process.stdin.write(b"quit\n")
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    first, second = logged(2)
    assert first["response_json"]["finish_reason"] == "cancelled"
    assert second["conversation_id"] == first["conversation_id"]
    whole = "ROMEO:" + first["response"] + "\nJULIET:"
    assert second["input_tokens"] == len(whole.encode())


def test_models_are_added_and_forgotten(user, tmp_path):
    path = ROOT / "models/shakespeare-int8.onnx"
    assert output("tsm", "add", path, "--name", "mine") == "tsm/mine\n"
    assert output("tsm", "list").splitlines()[1:] == [f"tsm/mine  {path}"]
    found = output("-m", "tsm/mine", "ROMEO:", "-o", "seed", 1, "-o", "max_tokens", 40)
    stream = load(path).stream(Sampling(seed=1))
    stream.feed("ROMEO:")
    assert found == "".join(stream.generate(40)) + "\n"
    assert output("tsm", "remove", "mine") == ""
    assert command("-m", "tsm/mine", "x").returncode == 1
    damaged = tmp_path / "damaged.tflite"
    damaged.write_bytes(path.read_bytes()[:-1])
    for arguments, wanted in (
        (("add", damaged), "damaged.tflite"),
        (("add", "/nowhere.onnx"), "does not exist"),
        (("add", path, "--name", "shakespeare"), "the shipped model's name"),
        (("remove", "mine"), "wanted an added model"),
    ):
        done = command("tsm", *arguments)
        assert done.returncode in (1, 2) and wanted in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    (user / "tsm-models.json").write_text("[]")
    done = command("tsm", "list")
    assert done.returncode == 1 and "wanted that" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_library_converses_and_counts(user):
    model = llm.get_model(MODEL)
    talk = model.conversation()
    first = talk.prompt("ROMEO:", seed=3, max_tokens=90, system="A play.")
    assert first.text() == written("A play.\nROMEO:", 90, seed=3)
    second = talk.prompt("JULIET:", seed=4, stop=["\n\n", "."], separator="\n\n")
    text = f"A play.\n\nROMEO:{first.text()}\n\nJULIET:"
    wanted = written(text, 500, seed=4)
    assert second.text() == re.split(r"\n\n|\.", wanted)[0]
    usage = second.usage()
    assert usage.input == len(text) and len(second.text()) < usage.output < 500
    assert second.response_json["finish_reason"] == "stop"
    assert model.prompt("", seed=1, max_tokens=30).text() == written("\n", 30)
    with pytest.raises(ValidationError):
        model.prompt("x", temperature=-1)


def test_answers_at_once_are_those_of_each_alone(user):
    model = llm.get_async_model(MODEL)

    async def all_of_them() -> list[str]:
        async def text(seed: int) -> str:
            return await model.prompt(f"{seed}. ROMEO:", seed=seed, max_tokens=200).text()

        return await asyncio.gather(*map(text, range(4)))

    found = asyncio.run(all_of_them())
    assert found == [written(f"{seed}. ROMEO:", 200, seed=seed) for seed in range(4)]


def test_a_cancelled_task_ends_its_answer(user):
    model = llm.get_async_model(MODEL)

    async def cancelled() -> float:
        task = asyncio.ensure_future(model.prompt("ROMEO:", max_tokens=10**9).text())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return len(await model.prompt("ROMEO:", max_tokens=20).text())  # the model is free again

    assert asyncio.run(cancelled()) == 20


def test_in_a_program_of_ones_own_ctrl_c_is_its_own(user, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import llm\ntalk = llm.get_model({MODEL!r}).conversation()\n"
        "talk.prompt('ROMEO:', max_tokens=10).text()\nprint('begun', flush=True)\n"
        "try:\n    talk.prompt('JULIET:', max_tokens=10**9).text()\n"
        "except KeyboardInterrupt:\n    print(len(talk.responses), 'kept')\n"
        "print(len(talk.prompt('NURSE:', max_tokens=10).text()))\n"
    )
    line = [sys.executable, str(program)]
    with subprocess.Popen(line, **PIPES) as process:
        assert process.stdout.readline() == b"begun\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"") and rest == b"1 kept\n10\n"


def test_every_command_and_program_of_the_page_runs(user):
    page = (ROOT / "apps/llm/README.md").read_text()
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    ran = 0
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", page, re.M | re.S):
        if block.startswith(("python3.11 -m venv", "pip install")):
            continue  # this environment is made like that: see the Makefile
        line = ["bash", "-e"] if kind == "sh" else [sys.executable, "-"]
        done = subprocess.run(
            line,
            input=block,
            cwd=ROOT,
            env=environment,
            text=True,
            capture_output=True,
            timeout=120,
        )
        assert done.returncode == 0 and done.stdout, f"{block}\n{done.stdout}{done.stderr}"
        ran += 1
    assert ran == 4
    assert len(page.split()) < 420
