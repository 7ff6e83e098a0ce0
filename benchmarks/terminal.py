"""The writing pad of the terminal, as one who writes has it.

    python benchmarks/terminal.py typed --keys 5000     # wants tmux
    python benchmarks/terminal.py latency --lines 10000

typed: keys, a mix of letters, deletions, Tab, the right arrow, Esc and new lines, are sent to
the pad in tmux. What it has to show is computed here: after every tenth key the screen has to come
to that, and to show nothing else on its way; the saved text has to be what was typed. The memory of
the process is told at each fifth.

latency: milliseconds from a key to the screen drawn with its suggestion, at the end of a text of so
many lines.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import random
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tsm.runtime import load
from tsm.runtime.complete import Completer

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "apps/terminal"))
ROWS, COLUMNS = 30, 100
WIDE = 400  # columns in which no line of the script is wrapped
BATCH = 10  # keys between two looks at the screen
TEXT = (
    "What say you to this gentleman? I will not be so bold. My lord, the king is dead, and all the "
    "people of the city are come to see him. Good morrow, good my lord! Thou art a villain. "
)
COLOR = re.compile(r"\x1b\[[0-9;]*m")
GHOST = re.compile(r"\x1b\[90m(.*?)(?:\x1b\[[0-9;]*m|$)")


class Terminal:
    """A program in a terminal of tmux's own server."""

    def __init__(self, line: list[str], environment: dict[str, str]) -> None:
        self._server = f"tsm-{os.getpid()}-{random.randrange(10**6)}"
        sets = [part for name, value in environment.items() for part in ("-e", f"{name}={value}")]
        size = ["-x", str(WIDE), "-y", str(ROWS)]
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, *sets, shlex.join(line))
        self.process = int(self._tmux("list-panes", "-F", "#{pane_pid}"))

    def _tmux(self, *arguments: str) -> str:
        line = ["tmux", "-L", self._server, *arguments]
        return subprocess.run(line, check=True, capture_output=True, text=True).stdout

    def key(self, name: str) -> None:
        self._tmux("send-keys", name)

    def type(self, text: str) -> None:
        self._tmux("send-keys", "-l", text)

    def screen(self) -> str:
        """With the escapes of its colors, and after its lines the cursor's row."""
        show = ["capture-pane", "-p", "-e", ";", "display-message", "-p", "#{cursor_y}"]
        return self._tmux(*show)

    def settled(self) -> str:
        """The screen, once it stays the same."""
        before = None
        while (now := self.screen()) != before:
            before = now
            time.sleep(0.03)
        return now

    def ended(self) -> bool:
        return not Path(f"/proc/{self.process}").exists()

    def close(self) -> None:
        """Ends the program, which saves its text first."""
        line = ["tmux", "-L", self._server, "kill-server"]
        subprocess.run(line, check=False, capture_output=True)
        while not self.ended():
            time.sleep(0.05)


def at_cursor(screen: str) -> tuple[str, str]:
    """The line that the cursor is in, and the ghost text behind it."""
    *lines, row, _ = screen.split("\n")
    line = lines[int(row)]
    ghost = GHOST.search(line)
    text = line[: ghost.start()] if ghost else line
    return spaced(COLOR.sub("", text)), spaced(ghost[1] if ghost else "")


def spaced(line: str) -> str:
    """As far as a screen tells: a tab is spaces, and none are at the end."""
    return re.sub(r"\s+", " ", line).rstrip()


class Writer:
    """What the pad has to make of keys, with a completer of its own."""

    def __init__(self, completer: Completer) -> None:
        self._completer = completer
        self.text = ""
        self._completion: Any = None

    def press(self, key: str) -> None:
        completion, before = self._completion, self.text
        if key in ("Tab", "Right"):
            if completion:
                kept = len(self.text) - completion.replaced
                word = re.match(r"\s*\S+", completion.text) if key == "Tab" else None
                self.text = self.text[:kept] + (word[0] if word else completion.text)
            elif key == "Tab":
                self.text += "\t"
        elif key == "Escape":
            self._completion = None
        elif key == "BSpace":
            self.text = self.text[:-1]
        else:
            self.text += {"Enter": "\n", "Space": " "}.get(key, key)
        if self.text != before:
            self._completer.follow(self.text)
            found = self._completer.complete(to="line")
            self._completion = found[0] if found and found[0].text else None

    def shown(self) -> tuple[str, str]:
        line, completion = self.text.rpartition("\n")[2], self._completion
        arrow = " → " if completion and completion.replaced else ""
        ghost = arrow + completion.text if completion else ""
        return spaced(line), spaced(ghost)


def script(count: int, seed: int) -> list[str]:
    """Keys, by tmux's names: of a text with typing errors, half of which are taken back."""
    draw, keys, at = random.Random(seed), [], 0
    while len(keys) < count:
        chance = draw.random()
        if chance < 0.04:
            keys += ["Tab"]
        elif chance < 0.05:
            keys += ["Right"]
        elif chance < 0.07:
            keys += ["Escape"]
        elif chance < 0.13:
            keys += ["BSpace"] * draw.randrange(1, 4)
        elif chance < 0.16:
            keys += ["Enter"]
        elif chance < 0.18:
            keys += [draw.choice("zqxö日"), *draw.choice((["BSpace"], []))]
        else:
            keys += [TEXT[at % len(TEXT)]]
            at += 1
    return keys[:count]


def typed(keys: int, seed: int = 1, tell: Callable[[dict[str, Any]], None] = print) -> None:
    """Raises AssertionError where the pad shows or saves what it should not."""
    with tempfile.TemporaryDirectory() as folder, load() as model, Completer(model) as completer:
        path, writer = Path(folder, "text.txt"), Writer(completer)
        names = [str(ROOT / "apps/terminal"), *sys.path]
        environment = {"PYTHONPATH": ":".join(filter(None, names)), "XDG_DATA_HOME": folder}
        environment |= {"LC_ALL": "C.UTF-8"}
        program = [sys.executable, "-m", "tsm_write.command", "open", str(path)]
        terminal = Terminal(program, environment)
        try:
            while "Tab: a word" not in terminal.screen():
                time.sleep(0.1)
            pressed = script(keys, seed)
            for start in range(0, keys, BATCH):
                possible = [writer.shown()]
                for key in pressed[start : start + BATCH]:
                    writer.press(key)
                    possible.append(writer.shown())
                    if len(key) == 1 and key != " ":
                        terminal.type(key)
                    else:
                        terminal.key("Space" if key == " " else key)
                ends = time.monotonic() + 20
                while (shown := at_cursor(terminal.settled())) != possible[-1]:
                    assert shown in possible, f"after key {start}: {shown!r}, not one of {possible}"
                    assert time.monotonic() < ends, f"{shown!r}, wanted {possible[-1]!r}"
                if (start + BATCH) * 5 // keys > start * 5 // keys:
                    tell({"keys": start + BATCH, **memory(terminal.process)})
            terminal.key("C-q")
            while not terminal.ended():
                time.sleep(0.05)
        finally:
            terminal.close()
        found = path.read_text()
        assert found == writer.text, f"saved {found[-80:]!r}, wanted {writer.text[-80:]!r}"


def memory(process: int) -> dict[str, float]:
    status = Path(f"/proc/{process}/status").read_text()
    return {"rss_mb": int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024}  # type: ignore[index]


def latency(lines: int, keys: int = 300) -> dict[str, float]:
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output.vt100 import Vt100_Output
    from tsm_write.pad import Pad

    text = "".join(f"{TEXT[n % 90 : n % 90 + 60]}\n" for n in range(lines))
    size = Size(rows=ROWS, columns=COLUMNS)
    milliseconds, processor = [], []
    with create_pipe_input() as keyboard, load() as model, Completer(model) as completer:
        screen = Vt100_Output(io.StringIO(), lambda: size)
        terminal = {"input": keyboard, "output": screen}
        pad = Pad(text, len(text), completer, lambda *_: None, Path, "text", **terminal)

        async def write() -> None:
            for key in script(2 * keys, seed=2):
                if len(key) > 1:
                    continue
                drawn = asyncio.Event()
                pad.app.after_render += lambda _, drawn=drawn: drawn.set()
                started, begun = time.perf_counter(), time.process_time()
                keyboard.send_text(key)
                await drawn.wait()
                milliseconds.append(1000 * (time.perf_counter() - started))
                processor.append(1000 * (time.process_time() - begun))
                pad.app.after_render._handlers.clear()
            pad.app.exit()

        pad.app.run(pre_run=lambda: pad.app.create_background_task(write()))
    row: dict[str, float] = {"lines": lines, "keys": len(milliseconds) - 1}
    for name, values in (("ms", milliseconds), ("processor_ms", processor)):
        ranked = sorted(values[1:])  # the first one reads the text
        row[f"median_{name}"] = statistics.median(ranked)
        row[f"p95_{name}"] = ranked[len(ranked) * 95 // 100]
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("typed", "latency"))
    parser.add_argument("--keys", type=int, default=5000, help="typed")
    parser.add_argument("--seed", type=int, default=1, help="typed")
    parser.add_argument("--lines", type=int, default=10_000, help="latency")
    arguments = parser.parse_args()
    if arguments.what == "typed":
        typed(arguments.keys, arguments.seed, lambda row: print(json.dumps(row), flush=True))
    else:
        print(json.dumps(latency(arguments.lines)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
