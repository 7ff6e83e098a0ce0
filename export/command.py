"""The command that both exporters are: what they are asked for, and what they print.

No artifact gets its name before it is verified: it is made in a temporary folder, held against the
weights that it was made from, and then written.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..runtime.artifact import ArtifactError, metadata_json, seal
from ..runtime.command import (
    SIGNALLED,
    Parser,
    another_command,
    complain,
    needs,
    open_output,
    progress,
    run_command,
    signals_handled_by,
)
from ..runtime.engines import VOCABULARY, EngineError
from ..runtime.files import is_stream, naming, written
from ..training.checkpoint import load_model
from ..training.spec import ModelSpec, SpecError, parameter_count, state_shapes
from .layout import ExportError, Weights, fill_offsets, no_offsets, pieces
from .prune import prune
from .tolerance import ToleranceError, check
from .verify import PASSAGE, WRITTEN_BYTES, quantization_cost, run_oracle, verify, write_text

SHIPPED_WEIGHTS = Path("models/shakespeare.safetensors")
DATA_BYTES = 4096  # of a text to measure on: its last ones, which training validates on
COSTLY_NATS = 0.02  # a byte; what quantization may cost without a warning

# (spec, weights, quantization, metadata) -> the bytes of a file, still to be sealed.
Build = Callable[[ModelSpec, Weights, str, str], bytes]


def export_main(
    name: str, description: str | None, suffix: str, build: Build, argv: list[str] | None
) -> int:
    """The command line of an exporter. Returns the exit code: 0; 1 for an artifact that computes
    otherwise than its weights; 2 for bad input; 128 and the number of a signal."""
    differs = False

    def work() -> None:
        nonlocal differs
        arguments = _parse(name, description, suffix, argv)
        write = open_output()
        try:
            report = export(name, suffix, build, arguments)
        except ToleranceError as error:
            differs = True
            complain(name, f"{arguments.out}: not written: {error}")
            return
        except KeyboardInterrupt:
            complain(name, "interrupted, nothing is written")
            raise
        finally:
            progress()
        cost = max(report.get("mean_kl_nats", 0), report.get("loss_difference_nats", 0))
        if cost > COSTLY_NATS:
            less = "int8 or none" if arguments.quantize == "int4" else "none"
            complain(
                name,
                f"warning: {arguments.quantize} costs {cost:.3f} nats a byte, more than "
                f"{COSTLY_NATS}; --quantize {less} costs less",
            )
        text = json.dumps(report) if arguments.json else shown(report)
        if is_stream(arguments.out):  # maybe to where this would go: a file ends where it ends
            print(text, file=sys.stderr)
        else:
            write(text + "\n")

    code = run_command(name, work, ExportError, SpecError)
    if code > SIGNALLED:  # TensorFlow crashes where a process ends while its threads start
        sys.stderr.flush()
        os._exit(code)
    return code or int(differs)


def shown(report: dict[str, Any]) -> str:
    """The report in words, and the commands to go on with."""
    artifact, quantization = report["artifact"], report["quantization"]
    lines = [
        f"{artifact}: {report['file_bytes']:,} bytes, {quantization}; computes as its weights do"
    ]
    left, all_of_them = report["parameters"], report["trained_parameters"]
    if left < all_of_them:
        lines.append(f"  {left:,} of {all_of_them:,} parameters; the others have no effect")
    for entry in ("prefill", "decode"):
        figures = ", ".join(f"{n} {v:.2g}" for n, v in report[entry].items())
        lines.append(f"  {entry} against the weights: {figures}")
    if "mean_kl_nats" in report:
        lines.append(
            f"  {quantization} costs a byte: KL {report['mean_kl_nats']:.4f} nats, "
            f"loss {report['loss_difference_nats']:+.4f}, on {report['measured_on']}"
        )
    if report.get("loop"):
        return "\n".join([*lines, "  generates by itself, the same text: see docs/embed.md"])
    quoted = shlex.quote(artifact)
    return "\n".join(
        [
            *lines,
            "next:",
            f"  {another_command('runtime/generate')} {quoted}",
            f"  {another_command('runtime/describe')} {quoted}",
        ]
    )


def _parse(
    name: str, description: str | None, suffix: str, argv: list[str] | None
) -> argparse.Namespace:
    parser = Parser(name, description)
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        type=Path,
        default=SHIPPED_WEIGHTS,
        help="a model.safetensors, as training writes it",
    )
    add(
        "--quantize",
        choices=["none", "int8", "int4"],
        default="int8",
        help="bits of the projections: int8 and int4 cost next to nothing on a trained model",
    )
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help=f"what to write (default: beside the model, MODEL-int8{suffix}, -int4 or -fp32)",
    )
    add(
        "--data",
        type=Path,
        metavar="FILE",
        help=f"a text to measure on what quantization costs, its last {DATA_BYTES:,} bytes "
        f"(default: {WRITTEN_BYTES} bytes that the model writes)",
    )
    add("--no-prune", action="store_true", help="leave no unit out, not even those of no effect")
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(loop=False)
    if suffix == ".onnx":
        add("--loop", action="store_true", help="sampler and loop in the graph: docs/embed.md")
    arguments = parser.parse_args(argv)
    if arguments.out is None:
        kind = "fp32" if arguments.quantize == "none" else arguments.quantize
        kind += "-loop" * arguments.loop
        arguments.out = arguments.model.with_name(f"{arguments.model.stem}-{kind}{suffix}")
    return arguments


def export(name: str, suffix: str, build: Build, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes the artifact, verified; the report of it. Raises ExportError, SpecError or
    OSError for what cannot be read, exported or written, ToleranceError for what
    computes otherwise."""
    source, out, quantization = arguments.model, arguments.out, arguments.quantize
    trained = trained_spec, trained_weights = load_model(source)
    if trained_spec.vocabulary != VOCABULARY:
        raise ExportError(
            f"{source}: vocabulary {trained_spec.vocabulary}, wanted {VOCABULARY}: tokens are bytes"
        )
    for state, shape in state_shapes(trained_spec).items():
        if 0 in shape:
            raise ExportError(
                f"{source}: state {state} of shape {shape}, wanted at least one value: of a mixer "
                "with a convolution, compression 2 or more"
            )
    check_place(out, source)
    text = last_bytes(arguments.data) if arguments.data else b""

    spec, weights = trained
    if not arguments.no_prune:
        spec, weights = prune(*trained)
        try:
            pruned, whole = (run_oracle(*each, PASSAGE)[0] for each in ((spec, weights), trained))
            check("pruned", pruned, whole, logits=True)
        except ToleranceError as error:
            raise ToleranceError(f"{error}; --no-prune leaves no unit out") from None
    parts_of = pieces(spec, weights, quantization)
    metadata = metadata_json(
        {
            "offsets": no_offsets(parts_of),
            "spec": spec.to_dict(),
            "quantization": quantization,
            "license": "Apache-2.0",
            "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "prefill_tokens": spec.chunk,
            "initial_state": "zeros",
            "state": {n: list(shape) for n, shape in state_shapes(spec).items()},
        }
    )
    progress("converting, about a minute")
    with needs(name, f"export-{suffix[1:]}"), ended_by_signals(name):
        data = build(spec, weights, quantization, metadata)
    data = seal(fill_offsets(data, parts_of) if parts_of else data)

    progress("verifying")
    report = {
        "artifact": str(out),
        "file_bytes": len(data),
        "quantization": quantization,
        "parameters": parameter_count(spec),
        "trained_parameters": parameter_count(trained_spec),
    }
    with temporary_folder() as folder:
        unverified = folder / f"artifact{suffix}"
        with naming(str(unverified)):
            unverified.write_bytes(data)
        try:
            engine, differences = verify(unverified, spec, weights)
        except (ArtifactError, EngineError) as error:
            raise ExportError(str(error).replace(str(unverified), str(out))) from None
        report |= differences
        if quantization != "none":
            report["measured_on"] = (
                f"the last {len(text):,} bytes of {arguments.data}"
                if text
                else f"{WRITTEN_BYTES} bytes that the model writes"
            )
            text = text or write_text(spec, weights)
            report |= quantization_cost(engine, *trained, text)
        if arguments.loop:
            from .loop import generating

            data = generating(unverified)
            report |= {"file_bytes": len(data), "loop": True}
    with written(out) as file:
        file.write(data)
    return report


def check_place(out: Path, source: Path) -> None:
    """Raises ExportError, before the work, for a place where no file can be written."""
    goal = Path(os.path.realpath(out))  # `written` follows links too
    if is_stream(out):
        return
    if not goal.parent.is_dir() or (goal.exists() and not goal.is_file()):
        raise ExportError(f"{out}: wanted a file in an existing folder")
    if goal.exists() and goal.samefile(source):
        raise ExportError(f"{out}: is the model that is read, wanted another file")
    if not os.access(goal if goal.exists() else goal.parent, os.W_OK):
        raise ExportError(f"{out}: permission denied, wanted a place to write to")


def last_bytes(path: Path) -> bytes:
    """The last DATA_BYTES of a text. Raises ExportError or OSError."""
    with naming(str(path)), open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - DATA_BYTES))
        text = file.read()
    if len(text) < 2:
        raise ExportError(f"{path}: {len(text)} bytes, wanted at least 2 to measure on")
    return text


_temporary: set[str] = set()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Raises OSError, which says that it is about this folder."""
    with naming("temporary folder"), tempfile.TemporaryDirectory() as folder:
        _temporary.add(folder)
        try:
            yield Path(folder)
        finally:
            _temporary.discard(folder)


@contextlib.contextmanager
def ended_by_signals(name: str) -> Iterator[None]:
    """A signal ends the process on the spot: an error that it raised would pass through C++ of the
    converters, which crashes, makes another error of it, or goes on without a word."""
    errors = os.dup(2)  # `quiet` takes standard error away

    def end(number: int, _: object) -> None:
        for folder in _temporary:
            shutil.rmtree(folder, ignore_errors=True)
        os.dup2(errors, 2)
        progress()
        complain(name, "interrupted, nothing is written")
        os._exit(SIGNALLED + number)

    try:
        with signals_handled_by(end):
            yield
    finally:
        os.close(errors)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Converters log to Python's streams and, past them, to the process's own; errors that they
    raise still show."""
    with contextlib.ExitStack() as stack:
        nowhere = stack.enter_context(open(os.devnull, "w"))
        for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
            if stream:
                stream.flush()
            copy = os.dup(number)
            stack.callback(os.close, copy)
            stack.callback(os.dup2, copy, number)
            os.dup2(nowhere.fileno(), number)
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield
