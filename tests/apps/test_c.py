"""apps/c: the program with its model in it, as users build and run it, here and for other machines.

make test-apps-c
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ONNX, ROOT, RUNTIME, TFLITE, on_terminal, shown_by
from commands import output as python_output
from programs import (
    VECTORS,
    assert_vectors,
    install,
    output,
    run,
    shell_commands,
    vector_lines,
)

APP = ROOT / "apps/c"
WINE = "/usr/lib/wine/wine64"
FILE_BYTES, PEAK_RSS_KIB = 10_200_000, 14_000_000 // 1024
# By name: the target of zig, None for this machine's compiler, and what runs its programs here.
MACHINES = {
    "native": (None, []),
    "x86_64": ("x86_64-linux-musl", []),
    "arm64 A53": ("aarch64-linux-musl", ["qemu-aarch64-static", "-cpu", "cortex-a53"]),
    "arm64 A76": ("aarch64-linux-musl", ["qemu-aarch64-static", "-cpu", "cortex-a76"]),
    "armhf": ("arm-linux-musleabihf", ["qemu-arm-static", "-cpu", "cortex-a15"]),
    "riscv64": ("riscv64-linux-musl", ["qemu-riscv64-static", "-cpu", "rv64"]),
    "Windows": ("x86_64-windows-gnu", [WINE]),
}
TEXT = ("--seed", 7, "--bytes", 60)
SETTINGS = [
    ["--seed", 1],
    ["--seed", 2, "--temperature", 1.3, "--top-k", 30, "--typical-p", 0.95, "--min-p", 0.001],
    ["--seed", 3, "--repetition-penalty", 1.2, "--presence-penalty", 0.1, "--top-p", 0.9],
    ["--seed", 2**64 - 1, "--frequency-penalty", 0.2, "--penalty-window", 100],
    ["--seed", 4, "--stop", "\n", "--stop", " the"],
    ["--temperature", 0, "--bytes", 0, "--seed", 0],
    ["--temperature", 4, "--seed", 5],  # hardly any UTF-8
]


def built(target: str | None) -> Path:
    """The program, just built: for None by this machine's compiler."""
    name = "tsm.exe" if target and "windows" in target else "tsm"
    path = APP / "build" / (target or "") / name
    output("make", "-s", "-C", APP, path.relative_to(APP))
    return path


@pytest.fixture(scope="session", autouse=True)
def installed():
    install(cc="build-essential", qemu_aarch64_static="qemu-user-static", valgrind="valgrind")
    install(**{WINE: "wine64"})


@pytest.fixture(scope="session")
def tsm() -> Path:
    return built(None)


@pytest.fixture(scope="session", params=MACHINES)
def machine(request, tmp_path_factory) -> list:
    """The beginning of a command: the program, and what runs it."""
    target, runner = MACHINES[request.param]
    if runner == [WINE]:
        os.environ["WINEPREFIX"] = str(tmp_path_factory.mktemp("wine"))
        os.environ.update(WINEDEBUG="-all", LC_ALL="C.UTF-8")  # names of files are UTF-8's
    return [*runner, built(target)]


def python(*arguments: object, **settings) -> bytes:
    return python_output("generate", *arguments, **settings)


def refused(done: subprocess.CompletedProcess) -> str:
    """The one line of a program that has refused its input."""
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1), done
    return done.stderr.decode()


def test_a_file_has_the_model_and_little_else(machine):
    assert TFLITE.stat().st_size < machine[-1].stat().st_size <= FILE_BYTES
    model = machine[-1].read_bytes().index(TFLITE.read_bytes())
    assert model % 16 == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_text_and_state_are_those_of_python(settings, tsm, tmp_path):
    ours, theirs = tmp_path / "c.tsmstate", tmp_path / "python.tsmstate"
    arguments = ["--bytes", 150, *settings, "--save-state"]
    found = output(tsm, *arguments, ours, "Sœur:\n")
    assert found == python(*arguments, theirs, "--prompt", "Sœur:\n")
    assert ours.read_bytes() == theirs.read_bytes()


def test_each_machine_goes_on_from_what_python_saved_and_python_from_that(machine, tmp_path):
    first, second, again = (tmp_path / f"{name}.tsmstate" for name in ("first", "sœcond", "again"))
    text = python(*TEXT, "--prompt", "日本:\n", "--save-state", first)
    text += output(*machine, "--load-state", first, "--save-state", second, "--bytes", 60, "née ")
    text += python("--load-state", second, "--bytes", 60, "--save-state", again)
    wanted = python(*TEXT, "--prompt", "日本:\n", "--save-state", first)
    options = ("--load-state", first, "--save-state", first, "--bytes", 60)
    wanted += python(*options, "--prompt", "née ")
    wanted += python(*options)
    assert text == wanted
    assert again.read_bytes() == first.read_bytes()


@pytest.mark.parametrize("name", MACHINES)
def test_vectors_hold(name, tmp_path):
    target, runner = MACHINES[name]
    program = tmp_path / "vectors.exe"
    compiler = ["cc", "-Wno-psabi"]
    if target:
        compiler = [ROOT / "build/zig/bin/python", "-m", "ziglang", "cc", f"--target={target}"]
    sources = [ROOT / "tests/apps/vectors.c", RUNTIME / "native/tsm.c"]
    flags = ["-std=gnu11", "-O3", "-ffp-contract=off", f"-I{RUNTIME / 'native'}"]
    libraries = [] if name == "Windows" else ["-lm", "-pthread"]
    output(*compiler, *flags, "-o", program, *sources, *libraries)
    # An emulator reads 30 bytes a second: it is spared the long prompt.
    vectors = [v for v in VECTORS if len(v["prompt"]) < 1000 or not runner or runner == [WINE]]
    assert len(vectors) >= len(VECTORS) - 1
    for simd in (3,) if runner else (0, 1, 2, 3):
        given = {"input": vector_lines(vectors), "timeout": 1200}
        assert_vectors(output(*runner, program, TFLITE, simd, **given), vectors)


def test_a_prompt_comes_by_standard_input(machine):
    prompt = ("All:\n" + VECTORS[0]["text"]).encode() + b"\r\nSpeak, \xff speak."
    found = output(*machine, *TEXT, input=prompt)
    assert found == python(*TEXT, "--prompt-file", "-", input=prompt)


def test_a_long_prompt_is_read_as_it_comes(tsm):
    prompt = RUNTIME.joinpath("generate.py").read_bytes()
    assert output(tsm, *TEXT, input=prompt) == python(*TEXT, "--prompt-file", "-", input=prompt)


def test_a_prompt_may_begin_with_a_hyphen(tsm):
    assert output(tsm, *TEXT, "--", "--bytes") == python(*TEXT, "--prompt=--bytes")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["--bytes", "-1"], "--bytes: found '-1', wanted a whole number, 0 or more"),
        (["--bytes", "1e3"], "--bytes: found '1e3', wanted a whole number"),
        (["--seed", "9" * 30], "wanted a whole number"),
        (["--top-k", str(2**32)], "wanted a whole number"),
        (["--temperature", "warm"], "--temperature: found 'warm', wanted a number"),
        (["--temperature", "nan"], "temperature: wanted a finite number, 0 or more"),
        (["--top-p", "2"], "top_p: wanted a number above 0, at most 1"),
        (["--penalty-window", "5000"], "penalty_window: wanted a whole number, at most 4096"),
        (["--stop", ""], "stops: an empty one, wanted a character"),
        (["--stop", "x"] * 17, "--stop: found 'x', wanted 16 of them at most"),
        (["--heat", "1"], "option: found '--heat', wanted one of tsm --help"),
        (["a\nb\x1b[2J", "c"], "prompt: found 'c', wanted one text, in quotes"),
        (["a", "b\n\x1b[2J\x9b"], r"prompt: found 'b\n\x1b[2J\x9b', wanted one text"),
        (["--seed"], "--seed: wanted a value after it"),
        (["--load-state", "nowhere"], "nowhere: No such file or directory"),
        (["--load-state", "."], ".: "),
        (["--load-state", str(TFLITE)], "no TSM state, wanted what"),
        (["--save-state", "/proc/nowhere"], "/proc/nowhere: No such file or directory"),
        (["--save-state", "/dev/full"], "/dev/full: No space left on device"),
    ],
)
def test_bad_input_is_one_line(arguments, wanted, tsm, tmp_path):
    done = run(tsm, *arguments, cwd=tmp_path, stdin=subprocess.DEVNULL)
    line = refused(done)
    assert line.startswith("tsm: ") and wanted in line


def test_a_damaged_state_is_refused(tsm, tmp_path):
    state = tmp_path / "state"
    output(tsm, "--bytes", 20, "--save-state", state, "x")
    whole = state.read_bytes()
    for at in range(0, len(whole), 997):
        state.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert str(state) in refused(run(tsm, "--load-state", state, "x"))
        state.write_bytes(whole[:at])
        refused(run(tsm, "--load-state", state, "x"))


def test_a_program_without_a_model_says_so(tmp_path):
    model = tmp_path / "notes.txt"
    model.write_text("no model")
    output("make", "-s", "-C", APP, f"MODEL={model}")
    assert "the model in it: no TSM header found" in refused(run(APP / "build/tsm", "x"))
    output("make", "-s", "-C", APP, f"MODEL={ONNX}")
    assert output(APP / "build/tsm", *TEXT, "x") == python(ONNX, *TEXT, "--prompt", "x")
    output("make", "-s", "-C", APP)  # as it was


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_a_state_that_goes_on(number, tsm, tmp_path):
    state = tmp_path / "state"
    command = [tsm, "--seed", "1", "--bytes", str(10**9), "--save-state", state, "JULIET:"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        text = process.stdout.read(100)
        process.send_signal(number)
        text += process.stdout.read()
    assert process.returncode == 128 + number
    text += python("--load-state", state, "--bytes", 50)
    assert text == python("--seed", 1, "--bytes", len(text), "--prompt", "JULIET:")


def test_a_signal_while_it_waits_for_a_prompt(tsm):
    with subprocess.Popen([tsm], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(b"x" * 5000)
        process.stdin.flush()
        while Path(f"/proc/{process.pid}/wchan").read_text() not in ("pipe_read", "anon_pipe_read"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130


def test_a_signal_that_is_ignored_stays_so(tsm):
    script = f"trap '' HUP; exec {tsm} --bytes 3000 x & sleep 0.3; kill -HUP $!; wait $!"
    done = run("bash", "-c", script)
    assert (done.returncode, len(done.stdout)) == (0, 3000)


def test_a_reader_that_has_enough_is_no_mistake(tsm, tmp_path):
    state = tmp_path / "state"
    command = [tsm, "--seed", "1", "--bytes", str(10**9), "--save-state", state, "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.read(50)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 0
    assert len(python("--load-state", state, "--bytes", 20)) == 20


def test_a_full_disk_is_one_line(tsm):
    with open("/dev/full", "wb") as full:
        done = subprocess.run([tsm, "x"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (2, b"tsm: standard output: No space left on device\n")


def test_a_full_disk_costs_no_state(tsm, tmp_path):
    state = tmp_path / "state"
    output(tsm, "--seed", 1, "--bytes", 5, "--save-state", state, "x")
    state.chmod(0o600)
    kept = state.read_bytes()
    command = f"ulimit -f 8; trap '' XFSZ; {tsm} --load-state {state} --save-state {state} x"
    line = refused(run("bash", "-c", command))
    assert f"{state}: File too large" in line
    assert state.read_bytes() == kept and [*tmp_path.iterdir()] == [state]
    link = tmp_path / "link"
    link.symlink_to(state)
    output(tsm, "--load-state", state, "--bytes", 5, "--save-state", link, "x")
    output(tsm, "--load-state", link, "--bytes", 5, "--save-state", state, "x")
    assert link.is_symlink() and state.read_bytes() != kept
    assert state.stat().st_mode & 0o777 == 0o600


def test_a_terminal_is_not_steered(tsm):
    settings = ["--temperature", "100", "--bytes", "8000"]
    wanted = on_terminal("generate", "--prompt", "x", *settings, "--seed", 1).stdout
    assert b"\\x1b" in wanted and re.search(rb"\\x[89]", wanted)
    assert shown_by([tsm, *settings, "--seed", "1", "x"]).stdout == wanted


def test_without_a_seed_each_run_draws_one_which_a_terminal_is_told(tsm):
    runs = [shown_by([tsm, "--bytes", "100", "x"]) for _ in range(2)]
    assert runs[0].stdout != runs[1].stdout
    seed = re.fullmatch(rb"seed (\d+)\n", runs[0].stderr)[1].decode()
    assert runs[0].stdout == output(tsm, "--bytes", 100, "--seed", seed, "x") + b"\n"


def test_text_comes_as_it_is_generated(tsm):
    command = [tsm, "--bytes", "2000", "x"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0) as process:
        pieces = []
        while piece := process.stdout.read(65536):
            pieces.append(piece)
    assert len(pieces) > 20


def test_memory_of_a_fresh_process_is_small_and_does_not_grow(tsm):
    """By getrusage; of a small parent, whose own peak its child begins with."""
    program = """if True:
        import os, sys
        child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
        print(os.wait4(child, 0)[2].ru_maxrss, file=sys.stderr)
    """

    def peak_kib(count: int) -> int:
        command = [sys.executable, "-ISc", program, tsm, "--bytes", count, "--seed", 1, "x"]
        return int(run(*command).stderr)

    few = peak_kib(100)
    print(f"peak {few} KiB")
    assert 9000 < few <= PEAK_RSS_KIB
    assert peak_kib(20_000) <= few + 300


@pytest.fixture(scope="session")
def sanitized() -> Path:
    program = APP / "build/tsm"
    flags = "CFLAGS=-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all"
    output("make", "-s", "-C", APP, flags)
    moved = program.with_name("tsm-sanitized")
    program.replace(moved)
    output("make", "-s", "-C", APP)
    return moved


def uses(state: Path) -> list[tuple[int, list[object]]]:
    """Exit code and arguments: every way through the program."""
    return [
        (0, ["--bytes", 40, "--stop", "\n\n", "--save-state", state, "JULIET:"]),
        (0, ["--bytes", 40, "--load-state", state, "--save-state", state, "é"]),
        (0, ["--bytes", 10, "--repetition-penalty", 1.1, "--top-p", 0.5]),
        (0, ["--help"]),
        (2, ["--load-state", TFLITE, "x"]),
        (2, ["--top-p", 2, "x"]),
        (2, ["--stop", "", "x"]),
        (2, ["--bytes", "x"]),
    ]


def test_sanitizers_find_nothing(sanitized, tmp_path):
    for code, arguments in uses(tmp_path / "state"):
        done = run(sanitized, *arguments, stdin=subprocess.DEVNULL)
        assert done.returncode == code and b"Sanitizer" not in done.stderr, done.stderr


def test_valgrind_finds_nothing(tsm, tmp_path):
    for code, arguments in uses(tmp_path / "state")[:3]:
        checked = ["valgrind", "-q", "--leak-check=full", "--error-exitcode=99", tsm]
        done = run(*checked, *arguments, stdin=subprocess.DEVNULL)
        assert (done.returncode, done.stderr) == (code, b"")


def test_the_commands_of_the_page_run(tmp_path):
    for folder in ROOT.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    commands = shell_commands(APP / "README.md")
    assert len(commands) >= 6
    printed = {c: output("bash", "-o", "pipefail", "-c", c, cwd=tmp_path) for c in commands}
    (juliet,) = [text for command, text in printed.items() if "JULIET" in command]
    assert juliet == python("--seed", 1, "--bytes", 200, "--prompt", "JULIET:")
    assert (tmp_path / "evening.tsmstate").exists()


def test_the_page_names_what_is_there():
    page = (APP / "README.md").read_text()
    assert len(page.split()) <= 400
    targets = {target for target, _ in MACHINES.values() if target}
    assert targets <= set(re.findall(r"`([\w-]+)`", page))
    shown = output("make", "-n", "-C", ROOT, "test-apps-c").decode()
    assert "tests/apps/test_c.py" in shown
    usage = output(APP / "build/tsm", "--help").decode()
    for option in set(re.findall(r"--[a-z-]+", shlex.join(shell_commands(APP / "README.md")))):
        assert option in f"{usage} --help"
