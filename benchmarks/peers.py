"""TSM against llama.cpp at equal parameters: decoding by position and reading a prompt, interleaved
in one process.

    python benchmarks/peers.py                   # the shipped model, nothing pruned
    python benchmarks/peers.py --int8 runtime/shakespeare-int8.tflite --int4 mine-int4.tflite

llama.cpp comes as the package llama-cpp-python, compiled for this machine in a virtual environment
of its own (build/peers, minutes); its model is a Llama of 13.7M random weights and a vocabulary of
256, written by the package gguf. One thread each. Medians of rounds in which every system takes its
turn; decoding counts the engines alone, the sampler is `benchmarks/runtime.py`'s matter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "peers"
PACKAGES = ["llama-cpp-python==0.3.36", "gguf==0.19.0"]
WIDTH, LAYERS, HEADS, MLP_WIDTH, VOCABULARY = 384, 6, 6, 1440, 256
KINDS = ("int8", "int4")
POSITIONS = (100, 1000, 4000)
PROMPT_BYTES, TURN_BYTES, ROUNDS = 1024, 64, 9
RESULTS = Path(__file__).with_suffix(".jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for kind in KINDS:
        default = "default: made by export/to_tflite.py --no-prune"
        parser.add_argument(f"--{kind}", type=Path, help=default)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    arguments = parser.parse_args()
    python = BUILD / "bin" / "python"
    for kind in KINDS:
        if not getattr(arguments, kind):
            setattr(arguments, kind, BUILD.parent / f"peers-{kind}.tflite")
            options = ["--no-prune", "--quantize", kind, "--out", getattr(arguments, kind)]
            export = [sys.executable, ROOT / "export" / "to_tflite.py", *options]
            subprocess.run(export, check=True)
    if Path(sys.prefix) != BUILD:
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", BUILD], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES], check=True)
        artifacts = ["--int8", arguments.int8, "--int4", arguments.int4]
        rounds = ["--rounds", str(arguments.rounds)]
        os.execv(python, [str(a) for a in (python, __file__, *artifacts, *rounds)])
    compare(arguments)
    return 0


def compare(arguments: argparse.Namespace) -> None:
    from results import append

    systems: dict[str, Any] = {
        "TSM int8": Tsm(arguments.int8),
        "llama.cpp Q8_0": Llama("Q8_0"),
        "TSM int4": Tsm(arguments.int4),
        "llama.cpp Q4_0": Llama("Q4_0"),
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    for position in POSITIONS:
        for system in systems.values():
            system.go_to(position)
        for _ in range(arguments.rounds):
            for name, system in systems.items():
                started = time.perf_counter()
                for _ in range(TURN_BYTES):
                    system.feed(b"e")
                passed = time.perf_counter() - started
                seconds.setdefault((name, position), []).append(passed / TURN_BYTES)
                system.go_back(position)
    for _ in range(arguments.rounds):
        for name, system in systems.items():
            system.go_to(0)
            started = time.perf_counter()
            system.feed(b"to be or" * (PROMPT_BYTES // 8))
            passed = (time.perf_counter() - started) / PROMPT_BYTES
            seconds.setdefault((name, -1), []).append(passed)
    for (name, position), passed in seconds.items():
        what = {"prompt": PROMPT_BYTES} if position < 0 else {"position": position}
        found = {"system": name, **what, "bytes_per_second": 1 / statistics.median(passed)}
        print(append(RESULTS, found))


class Tsm:
    """The native engine."""

    def __init__(self, path: Path) -> None:
        sys.path.insert(0, str(ROOT))  # its environment has no tsm; before benchmarks/runtime.py
        from runtime.artifact import open_artifact
        from runtime.engines import open_engine

        self.engine = open_engine(open_artifact(path), "native")

    def go_to(self, position: int) -> None:
        self.engine.reset()
        if position:
            self.engine.feed(b"e" * position)
        self.state = self.engine.get_state()

    def go_back(self, position: int) -> None:
        self.engine.set_state(self.state)

    def feed(self, data: bytes) -> None:
        self.engine.feed(data)


class Llama:
    """llama.cpp through its C interface."""

    def __init__(self, kind: str) -> None:
        import llama_cpp

        self.library = llama_cpp
        llama_cpp.llama_log_set(_silent, None)
        model = llama_cpp.llama_model_default_params()
        model.n_gpu_layers = 0
        path = _gguf(kind)
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = max(POSITIONS) + PROMPT_BYTES
        context.n_batch = context.n_ubatch = 512
        context.n_threads = context.n_threads_batch = 1
        self.context = llama_cpp.llama_init_from_model(self.model, context)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)
        self.position = 0

    def go_to(self, position: int) -> None:
        self.library.llama_memory_clear(self.memory, True)
        self.position = 0
        if position:
            self.feed(b"e" * position)

    def go_back(self, position: int) -> None:
        self.library.llama_memory_seq_rm(self.memory, 0, position, -1)
        self.position = position

    def feed(self, data: bytes) -> None:
        for start in range(0, len(data), 512):
            piece = data[start : start + 512]
            batch = self.batch
            batch.n_tokens = len(piece)
            for i, byte in enumerate(piece):
                batch.token[i], batch.pos[i] = byte, self.position + i
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
                batch.logits[i] = start + i == len(data) - 1
            if self.library.llama_decode(self.context, batch):
                raise RuntimeError("llama_decode failed")
            self.position += len(piece)


def _silence() -> Any:
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda *_: None)


def _gguf(kind: str) -> Path:
    """A Llama of the width and number of layers of the TSM, its MLP so wide that it has as many
    parameters."""
    import gguf
    import numpy as np

    path = BUILD.parent / f"peer-{kind}.gguf"
    if path.exists():
        return path
    writer, random = gguf.GGUFWriter(path, "llama"), np.random.default_rng(0)
    writer.add_context_length(8192)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP_WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("none")
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}"] = (WIDTH, WIDTH)
        for name in ("ffn_gate", "ffn_up"):
            shapes[f"blk.{layer}.{name}"] = (MLP_WIDTH, WIDTH)
        shapes[f"blk.{layer}.ffn_down"] = (WIDTH, MLP_WIDTH)
    stored = getattr(gguf.GGMLQuantizationType, kind)
    for name, shape in shapes.items():
        values = (random.standard_normal(shape) * 0.05).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, stored), raw_dtype=stored)
    norms = [f"blk.{i}.{n}" for i in range(LAYERS) for n in ("attn_norm", "ffn_norm")]
    for name in [*norms, "output_norm"]:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_silent = _silence() if Path(sys.prefix) == BUILD else None

if __name__ == "__main__":
    sys.exit(main())
