"""Generate text from a TSM artifact, on any CPU, in memory that does not grow with the text.

    python runtime/generate.py                                  # the model shipped beside this file
    python runtime/generate.py MODEL.onnx --prompt "JULIET:" --bytes 1000 --temperature 0.9
    tsm-generate --prompt-file - --stop ROMEO: --json < scene.txt
    tsm-generate --interactive --save-state evening.tsmstate

Only the generated text goes to standard output, as UTF-8, as it comes. The same model, prompt,
settings and --seed give the same text on every run. Without --seed each run draws another one:
--json tells it, and so does standard error when the text goes to a terminal. A terminal is shown
control characters as escapes; files and pipes get them as they are. --raw gives the model's bytes,
UTF-8 or not.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
import time
from argparse import ArgumentTypeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

if not __package__:
    from by_path import PACKAGE as __package__

from . import sampling as sample
from .command import (
    Parser,
    Signalled,
    number,
    open_output,
    progress,
    run_command,
    signals_handled_by,
)
from .engines import ENGINES, SHIPPED_MODEL, THREADS_LIMIT
from .files import is_stream, open_input
from .state import StateError
from .stream import Model, Stream, load
from .text import printable

DEFAULT_PROMPT = b"ROMEO:\n"
PIECE_BYTES = 1 << 14  # of a prompt: whole blocks, for the same bits as read at once
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
NOT_TOGETHER = (
    ("raw", "json"),
    ("interactive", "json"),
    ("interactive", "samples"),
    ("save_state", "samples"),
    ("prompt_cache", "load_state"),
)
ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"\\": b"\\", b"'": b"'", b'"': b'"'}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    errors = sample.SamplingError, StateError
    return run_command("tsm-generate", lambda: _run(_arguments(argv)), *errors)


def _run(arguments: Namespace) -> None:
    write = open_output()
    arguments.prompt = _prompt(arguments)
    cache = arguments.weight_cache
    model = load(arguments.model, arguments.engine, arguments.threads, weight_cache=cache)
    arguments.engine = model.engine.name
    started = time.perf_counter()
    stream = _open_stream(model, arguments)
    if sys.stdout.isatty():
        write = _terminal(write, arguments, stream.sampling.seed)
    with contextlib.ExitStack() as stack:
        if arguments.save_state is not None:
            stack.enter_context(_saved(stream, arguments.save_state))
        if arguments.interactive:
            from .interactive import converse

            converse(stream, write, arguments.bytes, **_ends(arguments))
        else:
            _write_texts(stream, arguments, write, started)


def _prompt(arguments: Namespace) -> bytes:
    if arguments.prompt_file is not None:
        with open_input(arguments.prompt_file) as file:
            return file.read()
    if arguments.prompt is not None:
        return arguments.prompt
    return b"" if arguments.interactive or arguments.load_state else DEFAULT_PROMPT


def _open_stream(model: Model, arguments: Namespace) -> Stream:
    """The stream that the arguments ask for, its prompt read."""
    grammar = None
    if arguments.grammar is not None:
        from .grammar import parse

        grammar = parse(arguments.grammar)
    if arguments.prompt_cache:
        from .prompt_cache import read_prompt

        stream = read_prompt(model, arguments.prompt, arguments.prompt_cache)
    else:
        state = arguments.load_state
        stream = model.stream() if state is None else model.load_stream(state)
        for start in range(0, len(arguments.prompt), PIECE_BYTES):
            stream.feed(arguments.prompt[start : start + PIECE_BYTES])
            progress(f"{start:,} of {len(arguments.prompt):,} bytes of the prompt")
        progress()
    names = [*SETTINGS, "logit_bias"]
    settings = {n: value for n in names if (value := getattr(arguments, n)) is not None}
    if arguments.logit_bias:
        settings["logit_bias"] = dict(arguments.logit_bias)
    stream.sampling = stream.sampling.replace(**settings)
    stream.grammar = grammar or stream.grammar
    return stream


def _terminal(
    write: Callable[[str], None], arguments: Namespace, seed: int
) -> Callable[[str], None]:
    """Says which seed was drawn, and returns what writes to a terminal, which no text may steer."""
    drawn = arguments.seed is None and not arguments.load_state
    if drawn and arguments.samples == 1 and not arguments.json:
        print(f"seed {seed}", file=sys.stderr)
    return write if arguments.raw else lambda text: write(printable(text))


@contextlib.contextmanager
def _saved(stream: Stream, path: str) -> Iterator[None]:
    """Keeps the state of the stream in a file, however the text ends: also where a signal ends it,
    or nobody reads on."""
    received: list[int] = []

    def cancel(signal_number: int, _: object) -> None:
        received.append(signal_number)
        stream.cancel()  # between two bytes: elsewhere the state might be half of one

    if not is_stream(path):  # now rather than never: a place that cannot be written costs no text
        stream.save(path)
    end: BaseException | None = None
    with signals_handled_by(cancel):
        try:
            yield
        except (KeyboardInterrupt, OSError) as error:
            end = error
        with signals_handled_by(lambda *_: None):  # nor is the file to be half of one
            stream.save(path)
    if end:
        raise end
    if received:
        raise Signalled(received[0])


def _write_texts(
    stream: Stream, arguments: Namespace, write: Callable[[str], None], started: float
) -> None:
    """Writes one text or several, or their reports."""
    first_seed, count, cut_short = stream.sampling.seed, arguments.samples, False
    for index in range(count):
        text = stream
        if count > 1:
            text = stream.fork()
            text.sampling = text.sampling.replace(seed=first_seed + index)
        if arguments.json:
            write(json.dumps(_report(text, arguments, started)) + "\n")
        else:
            if count > 1:
                write(f"[{index + 1}/{count}, seed {text.sampling.seed}]\n")
            for piece in text.generate(arguments.bytes, **_ends(arguments)):
                write(piece)
            if count > 1 or sys.stdout.isatty():
                write("\n")  # what follows begins a line of its own
        grammar = text.grammar
        cut_short |= text.finish_reason == "length" and bool(grammar and not grammar.accepting)
        started = time.perf_counter()
    if cut_short and not arguments.save_state:
        raise sample.GrammarError("grammar: the text is cut short, wanted more --bytes")


def _ends(arguments: Namespace) -> dict[str, Any]:
    """Where the text ends and how its bytes are decoded, for Stream.generate."""
    errors = "surrogateescape" if arguments.raw else "replace"
    return {"stops": arguments.stop, "regexes": arguments.stop_regex, "errors": errors}


def _report(stream: Stream, arguments: Namespace, started: float) -> dict[str, Any]:
    """Generates a text, and says of it what there is to say."""
    logprobs: list[dict[str, Any]] = []

    def observe(byte: int) -> None:
        values = sample.log_probabilities(stream.drawn_from())
        likeliest = sorted(range(256), key=values.__getitem__, reverse=True)
        top = [[other, values[other]] for other in likeliest[: arguments.logprobs]]
        logprobs.append({"byte": byte, "logprob": values[byte], "top": top})

    wanted, draws = arguments.logprobs is not None, stream.draws
    ends = _ends(arguments)
    text = "".join(stream.generate(arguments.bytes, observe=observe if wanted else None, **ends))
    seconds, count = time.perf_counter() - started, stream.draws - draws
    report = {
        "text": text,
        "bytes": count,
        "finish_reason": stream.finish_reason,
        "prompt": arguments.prompt.decode("utf-8", "replace"),
        "seed": stream.sampling.seed,
        "engine": arguments.engine,
        "seconds": seconds,  # reading the prompt and generating; not loading
        "bytes_per_second": count / seconds,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    if wanted:
        total = math.fsum(row["logprob"] for row in logprobs)
        report.update(logprobs=logprobs, logprob_total=total)
    return report


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


def _arguments(argv: Sequence[str] | None) -> Namespace:
    whole = number(int, 0, math.inf, "a whole number, 0 or more")
    some = number(int, 1, math.inf, "a whole number, 1 or more")
    parser = Parser("tsm-generate", __doc__)
    add = parser.add_argument
    add("model", nargs="?", default=SHIPPED_MODEL, help="a .tflite or .onnx artifact")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument(
        "--prompt",
        help="text to continue, its bytes as they are typed: \\n is two characters, unless with "
        f"--escape (default: {DEFAULT_PROMPT.decode()!r})",
    )
    prompts.add_argument(
        "--prompt-file", metavar="FILE", help="file to continue; - is standard input"
    )
    add(
        "--escape",
        "-e",
        action="store_true",
        help=r"read \n, \r, \t, \\, \', \" and \xHH in --prompt and --stop as what they stand for",
    )
    add("--bytes", type=whole, default=500, metavar="N", help="bytes to generate")
    add(
        "--samples",
        type=some,
        default=1,
        metavar="N",
        help="how many texts, of seeds S, S + 1, ...",
    )
    add(
        "--interactive",
        action="store_true",
        help="answer each line of input; Ctrl-C ends an answer, Ctrl-D the conversation",
    )
    sampling = parser.add_argument_group(
        "sampling", "A loaded state has its own settings, which hold where none are given."
    )
    defaults = {**sample.Sampling().settings(), "seed": "drawn anew"}
    for name, (metavar, text) in SETTINGS.items():
        sampling.add_argument(
            f"--{name.replace('_', '-')}",
            type=number(*sample.RANGES[name]),
            metavar=metavar,
            help=f"{text} (default: {defaults[name]})",
        )
    sampling.add_argument(
        "--logit-bias",
        type=_bias,
        action="append",
        metavar="BYTE=VALUE",
        help="add to the logit of a byte, before all else; -inf: never; repeatable",
    )
    ends = parser.add_argument_group("where it ends")
    ends.add_argument(
        "--stop", action="append", default=[], help="end before this text; repeatable"
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
        type=_grammar,
        help="a regular expression, a JSON Schema or a .json file with one, which the text matches",
    )
    states = parser.add_argument_group("states")
    states.add_argument(
        "--save-state", metavar="FILE", help="keep there all that goes on from the end"
    )
    states.add_argument(
        "--load-state", metavar="FILE", help="go on from what --save-state kept there"
    )
    states.add_argument(
        "--prompt-cache",
        metavar="DIR",
        help="keep what was read of prompts there, and do not read it again",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--raw",
        action="store_true",
        help="write the bytes as the model draws them; without it, those that are not UTF-8 become "
        "U+FFFD, and a terminal is shown control characters as escapes",
    )
    output.add_argument(
        "--json", action="store_true", help="print one JSON object a text, at its end"
    )
    output.add_argument(
        "--logprobs",
        type=number(int, 0, 256, "a whole number, at most 256"),
        metavar="N",
        help="with --json: each byte's log-probability, and those of the N likeliest",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine", choices=ENGINES, default="", help="what computes (default: the best installed)"
    )
    engine.add_argument(
        "--threads",
        type=number(int, 1, THREADS_LIMIT, f"a whole number, 1 to {THREADS_LIMIT:,}"),
        default=1,
        metavar="N",
        help="threads that compute",
    )
    engine.add_argument(
        "--weight-cache",
        default="",
        metavar="DIR",
        help="with --engine litert: keep packed weights there, for XNNPACK, which is faster",
    )
    arguments = parser.parse_args(argv)
    given = {name for name, v in vars(arguments).items() if v != parser.get_default(name)}
    option = {name: f"--{name.replace('_', '-')}" for name in given}
    for pair in NOT_TOGETHER:
        if given.issuperset(pair):
            parser.error("argument {}: not allowed with {}".format(*map(option.get, pair)))
    if "logprobs" in given and not arguments.json:
        parser.error("argument --logprobs: wanted --json with it")
    if arguments.prompt is not None:
        arguments.prompt = _typed(arguments.prompt, arguments.escape)
    try:
        arguments.stop = [_stop(text, arguments) for text in arguments.stop]
    except ArgumentTypeError as error:
        parser.error(f"argument --stop: {error}")
    return arguments


def _typed(text: str, escape: bool = False) -> bytes:
    """The very bytes of an argument, in any locale."""
    data = os.fsencode(text)
    if escape:
        data = re.sub(rb"\\(?:x([0-9A-Fa-f]{2})|([nrt\\'\"]))", _escaped, data)
    return data


def _escaped(match: re.Match[bytes]) -> bytes:
    return bytes.fromhex(match[1].decode()) if match[1] else ESCAPES[match[2]]


def _stop(text: str, arguments: Namespace) -> str:
    if not text:
        raise ArgumentTypeError("found an empty string, wanted one character or more")
    data = _typed(text, arguments.escape)
    try:
        return data.decode("utf-8", "surrogateescape" if arguments.raw else "strict")
    except UnicodeDecodeError:
        wanted = "wanted text in UTF-8, or --raw"
        raise ArgumentTypeError(f"found {data!r}, {wanted}") from None


def _regex(text: str) -> re.Pattern[str]:
    text = _typed(text).decode("utf-8", "surrogateescape")
    try:
        regex = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ArgumentTypeError(f"found {text!r}, wanted an expression ({error})") from None
    if regex.match(""):
        raise ArgumentTypeError(f"found {text!r}, wanted one that no empty text matches")
    return regex


def _grammar(text: str) -> str:
    is_path = text.lower().endswith(".json")
    return text if is_path else _typed(text).decode("utf-8", "surrogateescape")


def _bias(text: str) -> tuple[int, float]:
    left, _, right = text.rpartition("=")
    try:
        byte, value = int(left, 0), float(right)
        sample.checked_bias(byte, value)
    except sample.SamplingError as error:
        raise ArgumentTypeError(str(error)) from None
    except ValueError:
        wanted = "BYTE=VALUE, as in 10=-2 or 0x0A=-inf"
        raise ArgumentTypeError(f"found {text!r}, wanted {wanted}") from None
    return byte, value


if __name__ == "__main__":
    sys.exit(main())
