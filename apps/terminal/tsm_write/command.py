"""A writing pad for the terminal that completes as you write.

    tsm-write open diary.txt
    tsm-write learn ~/notes      # a model of your own notes, which `open` takes from then on

While you write, gray text behind the cursor shows how it may go on: Tab takes a word of it, the
right arrow all, Esc none; any other key is just typed. The text is saved every few seconds and when
you leave, by Ctrl-Q or Ctrl-C.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from tsm.runtime.command import (
    CommandError,
    Parser,
    complain,
    needs,
    number,
    open_output,
    run_command,
)
from tsm.runtime.engines import SHIPPED_MODEL

from .learn import MODEL, learn
from .session import Session, data_folder


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-write", __doc__)
    actions = parser.add_subparsers(dest="action", required=True, parser_class=Parser)

    add = actions.add_parser("open", help="write", description="Opens a text, or begins one.")
    add.add_argument("file", type=Path, help="of the text, in UTF-8; it is made where none is")
    add.add_argument(
        "--model", type=Path, help="a .tflite or .onnx artifact (default: what was learned, if any)"
    )
    add.add_argument(
        "--threshold",
        type=number(float, 0.01, 1, "a number from 0.01 to 1"),
        help="probability below which nothing is shown (default: the completer's)",
    )
    add = actions.add_parser(
        "learn",
        help="train a model on notes",
        description="Trains the shipped model on a folder of notes, which takes minutes, and "
        "exports it. Stop it whenever you like; the same command goes on.",
    )
    add.add_argument("folder", type=Path, help="of .txt, .md, .org and .rst files, also in folders")
    add.add_argument("--out", type=Path, help="folder of the model (default: where `open` looks)")
    add.add_argument("--start", default="", help="a model.safetensors (default: the shipped one)")
    add.usage = "tsm-write learn [--out OUT] [--start START] folder [-- OPTIONS OF TSM-TRAIN]"
    given = list(sys.argv[1:] if argv is None else argv)
    end = given.index("--") if "learn" in given[:1] and "--" in given else len(given)
    arguments = parser.parse_args(given[:end])
    arguments.options = given[end + 1 :]
    return arguments


def _open(arguments: Namespace) -> None:
    if not (sys.stdin and sys.stdin.isatty() and sys.stdout and sys.stdout.isatty()):
        raise CommandError("standard input or output is no terminal, wanted one")
    with needs("tsm-write", "write"):
        from tsm.runtime import load
        from tsm.runtime.complete import THRESHOLD, Completer

        from .pad import Pad
    learned = data_folder() / MODEL
    path = arguments.model or (learned if learned.exists() else Path(SHIPPED_MODEL))
    session = Session(arguments.file)
    session.save(session.text, session.cursor)  # a place that cannot be written costs no text
    with load(path) as model, Completer(model, arguments.threshold or THRESHOLD) as completer:
        name = arguments.file.name
        pad = Pad(session.text, session.cursor, completer, session.save, session.copy, name)
        try:
            pad.run()
        except KeyboardInterrupt:  # a signal, whose exit code stays
            if pad.unsaved:
                complain("tsm-write", f"{arguments.file}: {pad.unsaved}")
            raise
        if pad.unsaved:
            raise CommandError(f"{arguments.file}: {pad.unsaved}")


def _learn(arguments: Namespace) -> None:
    write, out = open_output(), arguments.out or data_folder()
    model = learn(arguments.folder, out, arguments.start, arguments.options, write)
    write(f"\n{model}: `tsm-write open` takes it from now on\n")


def _run(arguments: Namespace) -> None:
    (_open if arguments.action == "open" else _learn)(arguments)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command("tsm-write", lambda: _run(_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
