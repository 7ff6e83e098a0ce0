"""Coverage-guided fuzzing (atheris) of the loaders in Python: whatever a file holds, it is read, or
refused with the loader's own error in one line.

    python tests/fuzz/fuzz_loaders.py artifact CORPUS -runs=10000000
    python tests/fuzz/fuzz_loaders.py state CORPUS -runs=10000000

The first byte of an input says whether the rest gets a checksum that is right: without it nothing
would come beyond the first check. `make fuzz` sets up all of this.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import zlib
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # its environment has no tsm
with atheris.instrument_imports(include=["runtime"]):
    from runtime import GrammarError, Sampling, StateError, artifact, load, state

METADATA = {
    "spec": {"mixer": "beam", "width": 64},
    "quantization": "int8",
    "initial_state": "zeros",
    "license": "",
    "source_sha256": "0" * 64,
    "prefill_tokens": 16,
    "state": {"channels": [2, 1, 16]},
    "offsets": {"head": ["000000000064"]},
}
FILE = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)) / "model"
SHIPPED = load()


def read_artifact(data: bytes) -> None:
    if data[:1] > b"\x40":
        try:
            data = artifact.seal(data[1:])
        except artifact.ArtifactError:
            return
    FILE.write_bytes(data)
    try:
        found = artifact.open_artifact(FILE)
        assert isinstance(found.spec, dict) and found.prefill_tokens > 0
    except artifact.ArtifactError as error:
        assert "\n" not in str(error)


def read_state(data: bytes) -> None:
    if data[:1] > b"\x40":
        rest = data[1:]
        data = state.MAGIC + struct.pack("<II", state.VERSION, zlib.crc32(rest)) + rest
    try:
        SHIPPED.load_stream(data)
    except (GrammarError, StateError) as error:
        assert "\n" not in str(error)


def seeds(kind: str) -> list[bytes]:
    if kind == "artifact":
        return [b"\xff" + b"TFL3" + artifact.metadata_json(METADATA).encode() + bytes(64)]
    one = SHIPPED.stream(Sampling(logit_bias={10: -1.0}, top_k=40))
    packed = [one.to_bytes()]
    one.feed(b"ROMEO:\n")
    one.draw()
    packed.append(one.to_bytes())
    return [b"\xff" + whole[16:] for whole in packed]


def main() -> None:
    kind, corpus = sys.argv[1:3]
    Path(corpus).mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds(kind)):
        Path(corpus, f"seed-{index}").write_bytes(seed)
    atheris.Setup(
        [sys.argv[0], *sys.argv[2:]], {"artifact": read_artifact, "state": read_state}[kind]
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
