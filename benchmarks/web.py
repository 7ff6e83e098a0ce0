"""Bytes/s in headless Chromium, one thread, the shipped model: the C engine as WebAssembly,
LiteRT.js and onnxruntime-web.

    make wasm
    python benchmarks/web.py

Each engine in each round has a fresh browser: the time from nothing to the first byte, then the
likeliest bytes after ROMEO, and a prompt of 1,024. Figures are of the best round: other work only
takes time away.
Wants node and Debian's chromium; npm brings the rest to benchmarks/node_modules.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from results import append

FOLDER = Path(__file__).parent
MODULES = [FOLDER.parent / "apps/web" / name for name in ("tsm.wasm", "tsm-relaxed.wasm")]
RESULTS = FOLDER / "web.jsonl"
CHROMIUM = "/usr/bin/chromium"
ROW = "{:<20} {:>14} {:>12} {:>12} {:>12} {:>10}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for path in (*MODULES, Path(CHROMIUM)):
        if not path.exists():
            print(
                f"{path}: not there, wanted make wasm and apt-get install chromium", file=sys.stderr
            )
            return 2
    if not (FOLDER / "node_modules").exists():
        subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit"], cwd=FOLDER, check=True)
    command = ["node", FOLDER / "web.mjs", str(rounds)]
    best: dict[str, dict[str, Any]] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout
        for line in node.stdout:
            _keep_best(best, json.loads(line))
    if node.returncode:
        return 1
    texts = {name: found.pop("text") for name, found in best.items()}
    own = next(iter(texts.values()))
    others = [name for name, text in texts.items() if text != own]
    print(f"another text than {next(iter(texts))}'s: {', '.join(others) or 'none'}\n")
    print(ROW.format("", "first byte, ms", "bytes/s", "prompt", "module", "brotli"))
    for found in best.values():
        append(RESULTS, found)
        figures = [
            round(found[n])
            for n in ("first_byte_ms", "bytes_per_second", "prompt_bytes_per_second")
        ]
        sizes = [f"{found[n]:,}" for n in ("module_bytes", "module_brotli_bytes")]
        print(ROW.format(found["engine"], *figures, *sizes))
    return 0


def _keep_best(best: dict[str, dict[str, Any]], found: dict[str, Any]) -> None:
    known = best.setdefault(found["engine"], found)
    known["first_byte_ms"] = min(known["first_byte_ms"], found["first_byte_ms"])
    for name in ("bytes_per_second", "prompt_bytes_per_second"):
        known[name] = max(known[name], found[name])


if __name__ == "__main__":
    sys.exit(main())
