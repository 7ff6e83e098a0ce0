"""A language server that completes what is typed in an editor, with a TSM model of one's own text.

    tsm-lsp runs/mine/model-int8.tflite

An editor starts it, and speaks with it over standard input and output. It answers
textDocument/inlineCompletion (ghost text to the end of the line, as far as the model is sure) and
textDocument/completion (a menu of words). Both are computed from the text before the cursor, at
each key anew: a key costs the model one byte, a deletion nothing.
"""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lsprotocol import types
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol, lsp_method
from pygls.workspace import TextDocument

from tsm.runtime import Model, __version__, load
from tsm.runtime.command import Parser, run_command
from tsm.runtime.complete import THRESHOLD, Completer, Completion, add_arguments

DOCUMENTS = 4  # whose places in the text are kept, some 6 MB each
WORDS = 5  # in a menu, at most
MENU_THRESHOLD = 0.05  # one looks through a menu: a guess costs less there than in ghost text

# pygls ends a line at form feeds and the like, too; editors count \n, \r\n and \r alone.
TextDocument.lines = property(lambda self: tuple(io.StringIO(self.source, newline="")))


class Protocol(LanguageServerProtocol):
    """pygls 2.1 knows inline completion, and does not say so to the editor."""

    @lsp_method(types.INITIALIZE)
    def lsp_initialize(self, params: types.InitializeParams) -> Any:
        result = yield from super().lsp_initialize(params)
        result.capabilities.inline_completion_provider = True
        return result


def server_of(model: Model, threshold: float = THRESHOLD) -> LanguageServer:
    """The server, to be started; threshold: of ghost text, as for Completer."""
    server = LanguageServer("tsm-lsp", __version__, protocol_cls=Protocol)
    # By document, the one used last at the end.
    completers: OrderedDict[str, Completer] = OrderedDict()

    def follow(params: Any) -> Completer | None:
        """The completer of the document, which has read up to the cursor. None: it is not open, for
        which pygls would look on the disk."""
        uri = params.text_document.uri
        document = server.workspace.text_documents.get(uri)
        if document is None:
            return None
        completer = completers.pop(uri, None) or Completer(model)
        completers[uri] = completer
        if len(completers) > DOCUMENTS:
            completers.popitem(last=False)[1].close()
        completer.follow(document.source[: document.offset_at_position(params.position)])
        return completer

    def range_of(completion: Completion, params: Any) -> types.Range:
        """What it takes the place of: as many characters before the cursor as it replaces."""
        document = server.workspace.get_text_document(params.text_document.uri)
        end = document.offset_at_position(params.position)
        replaced = document.source[end - completion.replaced : end]
        units = document.position_codec.client_num_units(replaced)
        column = max(params.position.character - units, 0)  # below 0: beyond the document's end
        start = types.Position(params.position.line, column)
        return types.Range(start, params.position)

    def complete(
        completer: Completer | None, to: str, count: int, least: float
    ) -> list[Completion]:
        if completer is None:
            return []
        completer.threshold = least
        return completer.complete(to, count)

    @server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION)
    def inline(params: types.InlineCompletionParams) -> types.InlineCompletionList:
        completer = follow(params)
        return types.InlineCompletionList(
            [
                types.InlineCompletionItem(one.text, range=range_of(one, params))
                for one in complete(completer, "line", 1, threshold)
            ]
        )

    # Incomplete: the next key changes what is probable, and the editor asks again.
    @server.feature(
        types.TEXT_DOCUMENT_COMPLETION, types.CompletionOptions(trigger_characters=[" "])
    )
    def menu(params: types.CompletionParams) -> types.CompletionList:
        completer = follow(params)
        typed = completer.word if completer else ""
        words: dict[str, Completion] = {}  # a word, and its correction, may come to the same
        for one in complete(completer, "word", WORDS, MENU_THRESHOLD):
            whole = one.text if one.replaced else typed + one.text
            words.setdefault(whole, replace(one, replaced=len(typed)))
        items = [
            types.CompletionItem(
                label=whole.strip(),
                kind=types.CompletionItemKind.Text,
                detail=f"{one.probability:.0%}",
                sort_text=f"{place:02}",
                filter_text=typed,  # as is: also of a correction, which does not begin with it
                text_edit=types.TextEdit(range_of(one, params), whole),
            )
            for place, (whole, one) in enumerate(words.items())
        ]
        return types.CompletionList(is_incomplete=True, items=items)

    @server.feature(types.TEXT_DOCUMENT_DID_CLOSE)
    def close(params: types.DidCloseTextDocumentParams) -> None:
        if completer := completers.pop(params.text_document.uri, None):
            completer.close()

    return server


def _arguments(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tsm-lsp", __doc__)
    add_arguments(parser)
    return parser.parse_args(argv)


def _run(arguments: Namespace) -> None:
    with load(arguments.model, arguments.engine) as model:
        if sys.stdin.isatty():
            print("tsm-lsp: an editor is to start this: see its README", file=sys.stderr)
        server_of(model, arguments.threshold).start_io()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    return run_command("tsm-lsp", lambda: _run(_arguments(argv)))


if __name__ == "__main__":
    sys.exit(main())
