"""From a key to ghost text through tsm-lsp, at line 10,000 of a file: milliseconds.

    pip install ./apps/lsp && python benchmarks/lsp.py

An editor's client (pygls) types a text a character at a time; the clock runs from the change it
tells to the answer. Every tenth key is a deletion.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path

from lsprotocol import types
from pygls.lsp.client import LanguageClient

SERVER = Path(__file__).parent.parent / "apps/lsp/tsm_lsp.py"
URI = "file:///play.txt"
LINE = "Thou art a villain, and a rascal, and a traitor to the crown.\n"
TEXT = "What say you to this gentle lady, my good lord? She is the fairest of the house. "


async def measure(keys: int, lines: int) -> list[float]:
    client = LanguageClient("editor", "1")
    await client.start_io(sys.executable, str(SERVER))
    await client.initialize_async(types.InitializeParams(types.ClientCapabilities()))
    client.initialized(types.InitializedParams())
    document = types.TextDocumentItem(URI, "text", 0, LINE * lines)
    client.text_document_did_open(types.DidOpenTextDocumentParams(document))
    context = types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic)
    identifier, column, times = types.TextDocumentIdentifier(URI), 0, []
    for key in range(keys):
        start = end = types.Position(lines, column)
        text = TEXT[key % len(TEXT)]
        if key % 10 == 9:
            start, text = types.Position(lines, column - 1), ""
        column = start.character + len(text)
        change = types.TextDocumentContentChangePartial(types.Range(start, end), text)
        version = types.VersionedTextDocumentIdentifier(key + 1, URI)
        began = time.perf_counter()
        client.text_document_did_change(types.DidChangeTextDocumentParams(version, [change]))
        cursor = types.Position(lines, column)
        await client.text_document_inline_completion_async(
            types.InlineCompletionParams(context, identifier, cursor)
        )
        times.append(1e3 * (time.perf_counter() - began))
    await client.shutdown_async(None)
    client.exit(None)
    await client.stop()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keys", type=int, default=500, help="default: 500")
    parser.add_argument("--lines", type=int, default=10_000, help="above them (default: 10000)")
    arguments = parser.parse_args()
    times = sorted(asyncio.run(measure(arguments.keys, arguments.lines)))
    report = {"median_ms": statistics.median(times), "p95_ms": times[int(0.95 * len(times))]}
    print(json.dumps({"keys": len(times), **{k: round(v, 2) for k, v in report.items()}}))


if __name__ == "__main__":
    main()
