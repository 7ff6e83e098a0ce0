"""The pages keep their word: every command and program in README.md and docs/*.md runs, in a folder
that looks like a clone, and what they name exists.

pytest tests/test_docs.py

The fences of a page say what a block is:

    sh        commands, one a line
    console   commands after `$ `, each with what it prints; … stands for anything
    python    a program; a block of `text` right after it is what it prints
    c, ini    a file, whose first line is a comment with its name (a program may have one too)
    cmake, java, js, swift   the same; tests of the apps build and run what can be had here
    text      neither: a picture, an order

Pages run in the order of a first reading, in one folder, and a command that several of them show
runs once. SHORTER says which commands are made shorter, NOT_RUN which do not run, and why. The
weights that a training starts from are those of a small model, under the name of the shipped ones.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tsm.runtime import Sampling, load
from tsm.training import model
from tsm.training.checkpoint import save_model
from tsm.training.spec import PRESETS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FIRST = ["README.md", *(f"docs/{name}.md" for name in ("get-started", "train", "generate"))]
PAGES = [*FIRST, *sorted({f"docs/{p.name}" for p in DOCS.glob("*.md")} - set(FIRST))]
README_WORDS, DOCS_WORDS = 900, 13_950  # the latter with results.md
BIN = Path(sys.executable).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPTS = {
    name: target.partition(":")[0] for name, target in PYPROJECT["project"]["scripts"].items()
}
WEIGHTS = "models/shakespeare.safetensors"
EMBED_LINES = 15
PROMPT = b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n"
TEXT_BYTES = 60_000  # of my.txt

# What is appended to a command: the last of two equal options counts.
SHORTER = {
    "training/train.py": "--steps 3 --batch 2 --window 32 --eval-windows 2 --no-export",
    "training/evaluate.py": "--limit 1000",
    "training/tasks.py": "--bytes 10000",
    "runtime/bench.py": "--longest 100 --repeats 1 --bytes 5",
}
INSTALLED = "/opt/tsm/bin"  # where a page has the commands that a test has in BIN
LEFT_OUT = {"--compiled": "two minutes of a compiler"}  # of a command that is otherwise run


def nothing(command: str) -> None:
    """There is nothing of the project's own in it."""


def has_targets(command: str) -> None:
    done = shell(f"{command.replace('make', 'make -n', 1)}", ROOT)
    assert done.returncode == 0, done.stderr


def has_extras(command: str) -> None:
    """Of what it installs from this folder or one in it; and the versions that it is held to."""
    for path in re.findall(r" -c (\S+)", command):
        assert (ROOT / path).exists(), command
    for folder, _, extras in re.findall(r"\s'?(\.[/\w]*)(\[([\w,-]+)\])?'?(?:\s|$)", command):
        project = tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        known = project["optional-dependencies"]
        assert all(name in known for name in extras.split(",") if name), command


def has_options(command: str) -> None:
    """Of the project's own command in it."""
    (name,) = [name for name in SCRIPTS if name in command or source(name) in command]
    assert set(options_in(command)) <= options_of(name), command


# By how a command begins: why it does not run, and what is checked in its place.
NOT_RUN: dict[str, tuple[str, Callable[[str], None]]] = {
    "git clone": ("there is no network in a test", nothing),
    "cd ": ("the test is there already", nothing),
    "make": ("installs, trains or tests for minutes", has_targets),
    "python3.11 -m venv": ("the packages of this environment serve", nothing),
    "pip install": ("gigabytes", has_extras),
    "pip wheel": ("tests/test_packaging.py builds it", has_extras),
    "sudo": ("changes the system", has_extras),
    "docker": ("there is no daemon; tests/apps/test_server.py installs the same", nothing),
    "kubectl": ("there is no cluster; tests/apps/test_server.py checks the manifests", nothing),
    "python training/train.py --engine jax": ("several hosts; tests/test_mesh.py", has_options),
    "printf 'ROMEO:\\n' | nc": ("wants the service to run", nothing),
}


@dataclasses.dataclass
class Block:
    page: str
    line: int
    kind: str
    text: str
    printed: str | None = None  # the text after a program

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@dataclasses.dataclass
class Clone:
    """The folder, and the commands that have run there."""

    path: Path
    ran: set[str] = dataclasses.field(default_factory=set)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    path = tmp_path_factory.mktemp("clone") / "tsm"
    hidden = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build", "dist")
    shutil.copytree(ROOT, path, ignore=hidden)  # no links: a command may write there
    spec = PRESETS["tiny"]
    save_model(path / WEIGHTS, spec, model.initialise(spec, seed=0))
    pages = b"".join((ROOT / page).read_bytes() for page in PAGES)
    (path / "my.txt").write_bytes(pages[:TEXT_BYTES])
    rows = (json.dumps({"text": line.decode()}) for line in pages.splitlines())
    (path / "chats.jsonl").write_text("\n".join(rows))
    return Clone(path)


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "NO_COLOR": "1"}
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        **{"cwd": folder, "env": environment, "text": True, "timeout": 300, "check": False},
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


@functools.cache
def blocks(page: str) -> list[Block]:
    text, found = (ROOT / page).read_text(), []
    end = 0
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S):
        line = text.count("\n", 0, match.start()) + 1
        block = Block(page, line, match[1], match[2])
        follows = found and found[-1].kind == "python" and not text[end : match.start()].strip()
        if follows and block.kind == "text":
            found[-1].printed = block.text
        found.append(block)
        end = match.end()
    return found


def commands(block: Block) -> Iterator[tuple[str, str | None]]:
    """Each command of it, on one line and without its comment, and what it prints."""
    text = block.text.replace("\\\n", " ")
    if block.kind == "sh":
        lines = [(line, None) for line in text.splitlines()]
    else:
        assert text.startswith("$ "), f"{block.place}: wanted a command first"
        lines = [tuple(part.split("\n", 1)) for part in re.split(r"^\$ ", text, flags=re.M)[1:]]
    for line, printed in lines:
        if command := re.sub(r"(^|\s+)# .*", "", line).strip():
            yield command, printed


def source(script: str) -> str:
    return SCRIPTS[script].removeprefix("tsm.").replace(".", "/") + ".py"


def options_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text)


@functools.cache
def options_of(script: str) -> set[str]:
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        importlib.import_module(SCRIPTS[script]).main(["--help"])
    return set(options_in(shown.getvalue()))


def assert_printed(found: str, wanted: str, place: str) -> None:
    pattern = re.escape(wanted.strip()).replace("…", r"[^\0]*")
    assert re.fullmatch(pattern, found.strip()), f"{place}: printed\n{found}\nwanted\n{wanted}"


def run_command(command: str, printed: str | None, block: Block, clone: Clone) -> None:
    for beginning, (_, check) in NOT_RUN.items():
        if command.startswith(beginning):
            check(command)
            return
    for script in SCRIPTS:
        if source(script) in command or re.search(rf"\b{script}\b", command):
            has_options(command)
            for option in LEFT_OUT:
                command = re.sub(rf" {option}\b", "", command)
            command += f" {SHORTER.get(source(script), '')}".rstrip()
    command = command.replace(INSTALLED, str(BIN))
    if command in clone.ran and printed is None:
        return
    done = shell(command, clone.path)
    clone.ran.add(command)
    assert done.returncode == 0, f"{block.place}: {command}\n{done.stdout}{done.stderr}"
    if printed is not None:
        assert_printed(done.stdout, printed, f"{block.place}: {command}")


def saved(block: Block, clone: Clone) -> Path | None:
    """A block as the file that its first line names."""
    named = re.match(r"(?:#|//|/\*) (?:/\S*/)?([\w@-]+\.\w+)\b", block.text)
    if not named:
        return None
    path = clone.path / named[1]
    path.write_text(block.text.replace(INSTALLED, str(BIN)))
    return path


def run_program(block: Block, clone: Clone) -> str:
    path = saved(block, clone)
    if path is None:
        path = clone.path / "program.py"
        path.write_text(block.text)
    done = shell(f"python {path.name}", clone.path)
    assert done.returncode == 0, f"{block.place}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_every_command_and_program_of_a_page_runs(page, clone):
    for block in blocks(page):
        if block.kind in ("sh", "console"):
            for command, printed in commands(block):
                run_command(command, printed, block, clone)
        elif block.kind == "python":
            found = run_program(block, clone)
            if block.printed is not None:
                assert_printed(found, block.printed, block.place)
        elif block.kind in ("c", "ini", "cmake", "java", "js", "swift", "yaml"):
            assert saved(block, clone), f"{block.place}: wanted a comment with its name first"
        else:
            assert block.kind == "text", f"{block.place}: a block of kind {block.kind!r}"
    # What the page says lies in the folder of a run lies there.
    for name in re.findall(r"\bruns/[\w./-]*\w", (ROOT / page).read_text()):
        assert (clone.path / name).exists(), f"{page}: {name}"


@pytest.mark.parametrize("library", ["onnxruntime", "ai_edge_litert"])
def test_a_program_that_embeds_is_short_and_writes_what_the_runtime_writes(library, clone):
    programs = [
        block
        for page in ("README.md", "docs/embed.md")
        for block in blocks(page)
        if block.kind == "python" and library in block.text
    ]
    assert all(len(block.text.splitlines()) <= EMBED_LINES for block in programs)
    program = [each for each in programs if "range(" in each.text][-1]  # of bytes, one by one
    (path,) = re.findall(r'"([\w./-]+\.(?:onnx|tflite))"', program.text)
    (shown,) = re.findall(r'b"[^"]*"', program.text)
    (count,) = re.findall(r"range\((\d+)\)", program.text)
    # Plain LiteRT computes by XNNPACK, as this project's engine does over a cache of its weights.
    engine, weight_cache = "onnx", ""
    if library == "ai_edge_litert":
        engine, weight_cache = "litert", str(clone.path)
    greedy = Sampling(temperature=0)
    for prompt in (ast.literal_eval(shown), PROMPT):
        stream = load(clone.path / path, engine, weight_cache=weight_cache).stream(greedy)
        stream.feed(prompt)
        wanted = prompt + bytes(stream.generate_bytes(int(count)))
        written = dataclasses.replace(program, text=program.text.replace(shown, repr(prompt)))
        assert run_program(written, clone) == wanted.decode() + "\n", program.place


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_systemd_takes_the_units(clone):
    units = [
        saved(block, clone)
        for page in PAGES
        for block in blocks(page)
        if block.kind == "ini" and "[Unit]" in block.text
    ]
    assert units
    done = shell(f"systemd-analyze verify {shlex.join(str(unit) for unit in units)}", clone.path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# Options of others' commands.
FOREIGN = {"--depth": "git clone", "--now": "systemctl", "--offline": "systemd-analyze"}
FOREIGN |= {"--no-deps": "pip", "--logdir": "tensorboard", "--from-file": "kubectl"}
FOREIGN |= dict.fromkeys(("--nodes", "--ntasks-per-node", "--gpus-per-node", "--requeue"), "sbatch")
FOREIGN |= {"--read-only": "docker", "--cap-drop": "docker"}


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_a_page_names_exists(page):
    known = set().union(*map(options_of, SCRIPTS), FOREIGN)
    apps = (ROOT / "apps").glob("*/*/command.py")
    for path in (*(ROOT / "benchmarks").glob("*.py"), *apps):
        known |= set(options_in(path.read_text()))
    assert set(options_in((ROOT / page).read_text())) - known == set()


FOLDERS = ("training", "export", "runtime", "models", "docs", "tests", "benchmarks", "requirements")
SUFFIXES = "py|md|c|h|toml|json|lock|svg|sh|safetensors|tflite|onnx"


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_names_exists(page):
    text = (ROOT / page).read_text()
    paths = re.findall(rf"(?<![\w/.-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w", text)
    missing = [path for path in paths if not (ROOT / path).exists()]
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
    names = {path.name for path in [*files, *ROOT.iterdir()]}
    # What a command writes is named in its source, what a page's program is in its block.
    sources = [path.read_text() for path in files if path.suffix == ".py"]
    written = "".join([*sources, *(block.text for block in blocks(page))])
    for name in re.findall(rf"`([\w-]+\.(?:{SUFFIXES}))`", text):
        if name not in names and f'"{name}"' not in written:
            missing.append(name)
    assert missing == []


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in map(slug, headings), f"{page}: {target}"


def test_the_pages_are_short():
    pages = [*PAGES, "benchmarks/results.md"]
    words = {page: len((ROOT / page).read_text().split()) for page in pages}
    assert words.pop("README.md") <= README_WORDS
    assert sum(words.values()) <= DOCS_WORDS, words
