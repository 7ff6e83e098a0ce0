"""apps/lsp: the language server with a real client and in a real Neovim, the extension for VS Code
with what it asks of VS Code.

make test-apps-python
"""

from __future__ import annotations

import asyncio
import json
import os
import pty
import random
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
from commands import ROOT
from lsprotocol import types
from programs import install, output, run
from pygls.lsp.client import LanguageClient

from tsm.runtime import load
from tsm.runtime.complete import Completer

SERVER = ROOT / "apps/lsp/tsm_lsp.py"
URI = "file:///play.txt"
PLAY = "ROMEO:\nWhat say you to my gent"
AUTOMATIC = types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic)


class Editor:
    """An editor with one file, by pygls's own client."""

    def __init__(self, client: LanguageClient) -> None:
        self.client, self.text, self.version = client, "", 0
        self.id = types.TextDocumentIdentifier(URI)

    def open(self, text: str) -> None:
        self.text = text
        item = types.TextDocumentItem(URI, "text", self.version, text)
        self.client.text_document_did_open(types.DidOpenTextDocumentParams(item))

    def close(self) -> None:
        self.client.text_document_did_close(types.DidCloseTextDocumentParams(self.id))

    def position(self, offset: int) -> types.Position:
        """In UTF-16, as by default."""
        lines = re.split(r"\r\n|\r|\n", self.text[:offset])
        return types.Position(len(lines) - 1, len(lines[-1].encode("utf-16-le")) // 2)

    def offset(self, position: types.Position) -> int:
        starts = [0, *(found.end() for found in re.finditer(r"\r\n|\r|\n", self.text))]
        rest = self.text[starts[position.line] :].encode("utf-16-le")
        return starts[position.line] + len(rest[: 2 * position.character].decode("utf-16-le"))

    def replace(self, start: int, end: int, text: str) -> None:
        self.version += 1
        change = types.TextDocumentContentChangePartial(
            range=types.Range(self.position(start), self.position(end)), text=text
        )
        version = types.VersionedTextDocumentIdentifier(uri=URI, version=self.version)
        params = types.DidChangeTextDocumentParams(version, [change])
        self.text = self.text[:start] + text + self.text[end:]
        self.client.text_document_did_change(params)

    async def ghost(self, offset: int) -> list[tuple[str, int]]:
        """Texts, and how many characters before the cursor each replaces."""
        place = self.position(offset)
        params = types.InlineCompletionParams(AUTOMATIC, self.id, place)
        found = await self.client.text_document_inline_completion_async(params)
        assert all(item.range.end == place for item in found.items)
        return [(item.insert_text, offset - self.offset(item.range.start)) for item in found.items]

    async def menu(self, offset: int) -> list[types.CompletionItem]:
        params = types.CompletionParams(self.id, self.position(offset))
        found = await self.client.text_document_completion_async(params)
        assert found.is_incomplete
        return list(found.items)


def edit(work: Callable[[Editor], Awaitable[None]], *arguments: str) -> types.InitializeResult:
    """Starts the server, works in an editor, and ends both as editors do."""

    async def session() -> types.InitializeResult:
        client = LanguageClient("editor", "1")
        await client.start_io(sys.executable, str(SERVER), *arguments)
        params = types.InitializeParams(capabilities=types.ClientCapabilities())
        result = await client.initialize_async(params)
        client.initialized(types.InitializedParams())
        await work(Editor(client))
        await client.shutdown_async(None)
        client.exit(None)
        await client.stop()
        return result

    return asyncio.run(asyncio.wait_for(session(), 120))


def test_ghost_text_and_menu():
    async def work(editor: Editor) -> None:
        editor.open(PLAY)
        assert await editor.ghost(len(PLAY)) == [("le", 0)]
        first, *others = await editor.menu(len(PLAY))
        assert (first.label, first.text_edit.new_text, first.filter_text) == (
            "gentle",
            "gentle",
            "gent",
        )
        assert editor.offset(first.text_edit.range.start) == len(PLAY) - len("gent")
        assert others and all(item.label.startswith("gent") for item in others)

    capabilities = edit(work).capabilities
    assert capabilities.inline_completion_provider
    assert capabilities.completion_provider


def test_a_typing_error_is_replaced_also_after_characters_of_two_units():
    async def work(editor: Editor) -> None:
        text = "ROMEO:\n😀, my gracios"
        editor.open(text)
        corrections = [item for item in await editor.menu(len(text)) if item.label == "gracious"]
        assert [editor.offset(item.text_edit.range.start) for item in corrections] == [
            len(text) - len("gracios")
        ]
        assert corrections[0].filter_text == "gracios"

    edit(work)


def test_what_is_shown_is_of_the_text_as_it_is_after_any_edits():
    choices = random.Random(1)
    pieces = ["my lord", "\n", "\r\n", "gentl", "\f", "é", "😀", " the", "\u2028", "KING "]

    async def work(editor: Editor) -> None:
        editor.open(PLAY)
        with load() as model:
            for _ in range(60):
                start = choices.randrange(len(editor.text) + 1)
                end = min(len(editor.text), start + choices.choice([0, 0, 1, 3]))
                if "\r\n" in (editor.text[start - 1 : start + 1], editor.text[end - 1 : end + 1]):
                    continue  # no place for a cursor
                editor.replace(start, end, choices.choice(pieces))
                cursor = choices.choice([len(editor.text), editor.text.find("\n") + 1])
                with Completer(model) as completer:
                    completer.follow(editor.text[:cursor])
                    wanted = [(one.text, one.replaced) for one in completer.complete("line")]
                assert await editor.ghost(cursor) == wanted, editor.text
        editor.close()

    edit(work)


def test_far_down_in_a_long_file():
    async def work(editor: Editor) -> None:
        editor.open("Thou art a villain, and a rascal.\n" * 10_000 + PLAY)
        assert await editor.ghost(len(editor.text)) == [("le", 0)]
        for byte in "le":
            editor.replace(len(editor.text), len(editor.text), byte)
        assert await editor.ghost(len(editor.text) - 2) == [("le", 0)]

    edit(work)


def test_of_a_document_that_is_not_open_there_is_nothing_nor_an_error():
    async def work(editor: Editor) -> None:
        assert await editor.ghost(0) == await editor.menu(0) == []
        editor.open("I do beseech yuo")
        beyond = types.CompletionParams(editor.id, types.Position(99, 0))
        assert await editor.client.text_document_completion_async(beyond)
        editor.close()
        assert await editor.ghost(0) == []

    edit(work)


def test_a_threshold_that_nothing_reaches_shows_nothing():
    async def work(editor: Editor) -> None:
        editor.open(PLAY)
        assert await editor.ghost(len(PLAY)) == []

    edit(work, "--threshold", "0.9999")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/no/such/model"], "no such file"),
        (["--threshold", "2"], "wanted a number above 0, up to 1"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = run(sys.executable, SERVER, *arguments)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    assert message in done.stderr.decode()


def test_the_readme_s_commands(tmp_path):
    for folder in ("runtime", "apps/lsp"):  # a copy, which pip builds in
        shutil.copytree(ROOT / folder, tmp_path / folder)
    commands = re.search(r"```sh\n(.*?)```", (SERVER.parent / "README.md").read_text(), re.DOTALL)
    assert b"--threshold" in output("sh", "-ec", commands[1], cwd=tmp_path)


def typed(fd: int, keys: bytes, until: bytes, seconds: float = 20) -> bytes:
    """What a terminal shows after keys, as soon as it has shown `until`."""
    os.write(fd, keys)
    shown, end = b"", time.monotonic() + seconds
    while until not in shown and time.monotonic() < end:
        if select.select([fd], [], [], 0.1)[0]:
            shown += os.read(fd, 65536)
    assert until in shown, re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown)[-1500:].decode()
    return shown


WAIT = """
local function initialized() return vim.lsp.get_client_by_id(1).initialized end
local function wait() print(vim.wait(60000, initialized) and 'ready') end
vim.api.nvim_create_user_command('Wait', wait, {})
"""


def test_neovim(tmp_path):
    install(nvim="neovim")
    setup = tmp_path / "init.lua"
    command = f"{{ cmd = {{ '{sys.executable}', '{SERVER}' }} }}"
    setup.write_text(f"dofile('{SERVER.parent / 'tsm.lua'}')({command})\n{WAIT}")
    text = tmp_path / "play.txt"
    text.write_text("")
    process, fd = pty.fork()
    if not process:
        os.environ.update(TERM="xterm", LINES="24", COLUMNS="80", HOME=str(tmp_path))
        os.execvp("nvim", ["nvim", "-u", str(setup), "-n", str(text)])
    try:
        typed(fd, b"", b"play.txt")
        typed(fd, b":Wait\r", b"ready")
        typed(fd, b"iROMEO:\rWhat say you to my gent", b"le\x08\x08")  # behind the cursor
        typed(fd, b"\t", b"le")
        typed(fd, b"\x1b:wq\r", b"written")
    finally:
        os.close(fd)
        os.waitpid(process, 0)
    assert text.read_text() == PLAY + "le\n"


EXTENSION = """
const vscode = {
  Position: class { constructor(line, character) { Object.assign(this, { line, character }); } },
  Range: class {},
  InlineCompletionItem: class { constructor(text, range) { this.text = text; } },
  window: { showErrorMessage: (message) => console.error(message) },
  workspace: { getConfiguration: () => ({ get: (name) => settings[name] }) },
  languages: {
    registerInlineCompletionItemProvider: (_, it) => ((provider = it), { dispose() {} }),
  },
};
const [, , extension, command, text] = process.argv;
const settings = { command: JSON.parse(command), languages: ["plaintext"] };
let provider;
const load = require("node:module")._load;
require("node:module")._load = (name, ...rest) =>
  name === "vscode" ? vscode : load(name, ...rest);
const context = { subscriptions: [] };
require(extension).activate(context);
const lines = text.split("\\n");
const end = new vscode.Position(lines.length - 1, lines.at(-1).length);
const document = { lineAt: (line) => ({ text: lines[line] }), getText: () => text };
provider.provideInlineCompletionItems(document, end).then((items) => {
  console.log(JSON.stringify(items.map((item) => item.text)));
  for (const each of context.subscriptions) each.dispose();
});
"""


def test_the_extension_for_vs_code(tmp_path):
    script = tmp_path / "extension.cjs"
    script.write_text(EXTENSION)
    complete = json.dumps([sys.executable, str(ROOT / "runtime/complete.py")])
    extension = SERVER.parent / "vscode/extension.js"
    assert json.loads(output("node", script, extension, complete, PLAY)) == ["le"]
    missing = subprocess.run(
        ["node", str(script), str(extension), '["/no/such/command"]', PLAY],
        capture_output=True,
        timeout=60,
    )
    assert (missing.stdout, b"/no/such/command" in missing.stderr) == (b"[]\n", True)
