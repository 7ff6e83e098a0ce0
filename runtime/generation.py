"""The command tsm-generate: its arguments, and what is made of them.

It has a file of its own because Python compiles a script, generate.py, anew at every start: 0.7 MB
of peak memory.
"""

from __future__ import annotations

import math
import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from argparse import Namespace
    from collections.abc import Iterator, Sequence
    from typing import Any

if TYPE_CHECKING or __package__:  # else run from its folder, wherever that is
    from tsm.runtime import sampling as sample
    from tsm.runtime.command import SUPPRESS, ArgumentError, Parser, end, number
    from tsm.runtime.engines import ENGINES, SHIPPED_MODEL
    from tsm.runtime.state import StateError
    from tsm.runtime.stream import Model, Stream, load
else:
    import sampling as sample
    from command import SUPPRESS, ArgumentError, Parser, end, number
    from engines import ENGINES, SHIPPED_MODEL
    from state import StateError
    from stream import Model, Stream, load

DEFAULT_PROMPT = b"ROMEO:\n"
# By setting of Sampling: what stands for its value, and what it does.
SETTINGS = {
    "temperature": ("T", "0 always takes the likeliest byte; 1 draws as the model predicts"),
    "top_k": ("K", "draw from the K likeliest; 0: all"),
    "typical_p": ("P", "draw from bytes of the most usual surprise, of this total probability"),
    "top_p": ("P", "draw from the fewest bytes of this total probability"),
    "min_p": ("P", "draw from bytes of at least P times the likeliest's probability"),
    "repetition_penalty": ("R", "divide the logits of recent bytes by R"),
    "presence_penalty": ("A", "lower the logits of recent bytes by A"),
    "frequency_penalty": ("A", "lower the logits of recent bytes by A for each time they came"),
    "penalty_window": ("N", "how many bytes are recent, prompt included"),
    "seed": ("S", "same seed, same text"),
}


def peak_rss_bytes() -> int | None:
    """The most memory that this process has held, or None where the system does not say."""
    try:
        # Not getrusage on Linux: a child starts with its parent's peak there.
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        if sys.platform != "darwin":
            return None
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _file_bytes(path: str) -> bytes:
    try:
        if path == "-":
            return sys.stdin.buffer.read()
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ArgumentError(f"{path}: {reason}, wanted a readable file") from None


def _stop(text: str) -> str:
    if not text:
        raise ArgumentError("found an empty string, wanted one character or more")
    return text


def _regex(text: str) -> re.Pattern[str]:
    import re

    try:
        regex = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ArgumentError(f"found {text!r}, wanted an expression ({error})") from None
    if regex.match(""):
        raise ArgumentError(f"found {text!r}, wanted one that no empty text matches")
    return regex


def _bias(text: str) -> tuple[int, float]:
    left, _, right = text.rpartition("=")
    try:
        byte, value = int(left, 0), float(right)
        sample.checked_bias(byte, value)
    except sample.SamplingError as error:
        raise ArgumentError(str(error)) from None
    except ValueError:
        wanted = "BYTE=VALUE, as in 10=-2 or 0x0A=-inf"
        raise ArgumentError(f"found {text!r}, wanted {wanted}") from None
    return byte, value


def _arguments(argv: Sequence[str] | None) -> Namespace:
    whole = number(int, 0, math.inf, "a whole number, 0 or more")
    parser = Parser("tsm-generate", "Generate text from a TSM model.", defaults=True)
    add = parser.add_argument
    add("model", nargs="?", default=SHIPPED_MODEL, help="a .tflite or .onnx artifact")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt",
        type=os.fsencode,  # the very bytes typed, in any locale
        default=SUPPRESS,
        help=f"text to continue (default: {DEFAULT_PROMPT.decode()!r})",
    )
    prompts.add_argument(
        "--prompt-file",
        type=_file_bytes,
        dest="prompt",
        metavar="FILE",
        default=SUPPRESS,
        help="file to continue; - is standard input",
    )
    add("--bytes", type=whole, default=500, metavar="N", help="bytes to generate")
    sampling = parser.add_argument_group("sampling")
    defaults = sample.Sampling().settings()
    for name, (metavar, text) in SETTINGS.items():
        sampling.add_argument(
            f"--{name.replace('_', '-')}",
            type=number(*sample.RANGES[name]),
            default=SUPPRESS,  # a loaded state has its own
            metavar=metavar,
            help=f"{text} (default: {defaults[name]})",
        )
    sampling.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        default=SUPPRESS,
        metavar="BYTE=VALUE",
        help="add to the logit of a byte, before all else; -inf: never; repeatable",
    )
    ends = parser.add_argument_group("where it ends")
    ends.add_argument(
        "--stop", type=_stop, action="append", default=[], help="end before it; repeatable"
    )
    ends.add_argument(
        "--stop-regex",
        type=_regex,
        action="append",
        default=[],
        metavar="REGEX",
        help="end before a match, of up to 256 characters; repeatable",
    )
    ends.add_argument(
        "--grammar",
        default="",
        help="a regular expression, a JSON Schema or a .json file with one, which the text matches",
    )
    states = parser.add_argument_group("states")
    for name, text in (
        ("--save-state", "keep there all that goes on from the end"),
        ("--load-state", "go on from it, with its settings where none are given"),
        ("--prompt-cache", "keep what was read of prompts there, and do not read it again"),
    ):
        metavar = "DIR" if name == "--prompt-cache" else "FILE"
        states.add_argument(name, default=SUPPRESS, metavar=metavar, help=text)
    some = number(int, 1, math.inf, "a whole number, 1 or more")
    add("--samples", type=some, default=1, metavar="N", help="texts, with seeds S, S + 1, ...")
    add("--interactive", action="store_true", help="answer each line of input; Ctrl-C: enough")
    add("--engine", choices=ENGINES, default="", help="what computes; by default the best here")
    add("--threads", type=some, default=1, metavar="N", help="that compute")
    add(
        "--weight-cache",
        default="",
        metavar="DIR",
        help="with --engine litert: keep packed weights there, for XNNPACK, which is faster",
    )
    add("--json", action="store_true", help="print one JSON object a text, at its end")
    add(
        "--logprobs",
        type=number(int, 0, 256, "a whole number, at most 256"),
        default=SUPPRESS,
        metavar="N",
        help="with --json: each byte's log-probability, and those of the N likeliest",
    )
    arguments = parser.parse_args(argv)
    for name, other, clash in (
        ("--logprobs", "no --json", not arguments.json),
        ("--interactive", "--json", arguments.json),
        ("--interactive", "--samples", arguments.samples > 1),
        ("--save-state", "--samples", arguments.samples > 1),
        ("--prompt-cache", "--load-state", "load_state" in arguments),
    ):
        if clash and getattr(arguments, name[2:].replace("-", "_"), False) is not False:
            parser.error(f"argument {name}: not allowed with {other}")
    if "prompt" not in arguments:
        goes_on = arguments.interactive or "load_state" in arguments
        arguments.prompt = b"" if goes_on else DEFAULT_PROMPT
    return arguments


def _write(text: str) -> None:
    sys.stdout.buffer.write(text.encode("utf-8"))  # in any locale
    sys.stdout.buffer.flush()


def _open_stream(model: Model, arguments: Namespace) -> Stream:
    """The stream that the arguments ask for, its prompt read."""
    given = vars(arguments)
    settings = {name: given[name] for name in SETTINGS if name in given}
    if "logit_bias" in given:
        settings["logit_bias"] = dict(given["logit_bias"])
    grammar = None
    if arguments.grammar:
        if TYPE_CHECKING or __package__:
            from tsm.runtime.grammar import parse
        else:
            from grammar import parse
        grammar = parse(arguments.grammar)
    if "prompt_cache" in given:
        if TYPE_CHECKING or __package__:
            from tsm.runtime.prompt_cache import read_prompt
        else:
            from prompt_cache import read_prompt
        stream = read_prompt(model, arguments.prompt, given["prompt_cache"])
    else:
        old = given.get("load_state")
        stream = model.load_stream(old) if old else model.stream()
        stream.feed(arguments.prompt)
    stream.sampling = stream.sampling.replace(**settings)
    stream.grammar = grammar or stream.grammar
    return stream


def _report(
    stream: Stream, arguments: Namespace, pieces: Iterator[str], started: float
) -> dict[str, Any]:
    """Joins the pieces, and says of them what there is to say."""
    before = stream.draws
    text = "".join(pieces)
    seconds, count = time.perf_counter() - started, stream.draws - before
    return {
        "text": text,
        "bytes": count,
        "finish_reason": stream.finish_reason,
        "prompt": arguments.prompt.decode("utf-8", "replace"),
        "seed": stream.sampling.seed,
        "seconds": seconds,  # reading the prompt and generating; not loading
        "bytes_per_second": count / seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }


def _generate(stream: Stream, arguments: Namespace, started: float, heading: str) -> None:
    """Writes one text, or its report."""
    wanted, rows = getattr(arguments, "logprobs", None), []

    def observe(byte: int) -> None:
        values = sample.log_probabilities(stream.drawn_from())
        likeliest = sorted(range(256), key=values.__getitem__, reverse=True)[:wanted]
        top = [[other, values[other]] for other in likeliest]
        rows.append({"byte": byte, "logprob": values[byte], "top": top})

    pieces = stream.generate(
        arguments.bytes,
        stops=arguments.stop,
        regexes=arguments.stop_regex,
        observe=None if wanted is None else observe,
    )
    if arguments.json:
        report = _report(stream, arguments, pieces, started)
        if wanted is not None:
            report.update(logprobs=rows, logprob_total=math.fsum(r["logprob"] for r in rows))
        import json  # only now: it is no part of what the report says of memory

        _write(json.dumps(report) + "\n")
        return
    _write(heading)
    for piece in pieces:
        _write(piece)
    if heading or sys.stdout.isatty():
        _write("\n")  # what follows begins a line of its own


def _run(arguments: Namespace) -> None:
    cache = arguments.weight_cache
    model = load(arguments.model, arguments.engine, arguments.threads, weight_cache=cache)
    started = time.perf_counter()
    stream = _open_stream(model, arguments)
    saved, unfinished = getattr(arguments, "save_state", None), False
    if saved:
        import signal

        stream.save(saved)  # now rather than never: a place that cannot be written costs no text
        # Ends the text between two bytes, with a state that can be kept.
        signal.signal(signal.SIGINT, lambda *_: stream.cancel())
    if arguments.interactive:
        if TYPE_CHECKING or __package__:
            from tsm.runtime.interactive import converse
        else:
            from interactive import converse
        stop = {"stops": arguments.stop, "regexes": arguments.stop_regex}
        converse(stream, _write, count=arguments.bytes, **stop)
    else:
        seed = stream.sampling.seed
        for index in range(arguments.samples):
            one = stream
            if arguments.samples > 1:
                one = stream.fork()
                one.sampling = one.sampling.replace(seed=seed + index)
            texts = arguments.samples
            heading = f"[{index + 1}/{texts}, seed {one.sampling.seed}]\n" if texts > 1 else ""
            _generate(one, arguments, started, heading)
            started = time.perf_counter()
            if one.finish_reason == "length" and one.grammar and not one.grammar.accepting:
                unfinished = True
    if saved:
        stream.save(saved)
    if unfinished and not saved:
        raise sample.GrammarError("grammar: the text is cut short, wanted more --bytes")
    if stream.finish_reason == "cancelled":
        raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code: 0, 2 for bad input, 130 for Ctrl-C."""
    return end("tsm-generate", lambda: _run(_arguments(argv)), sample.SamplingError, StateError)
