"""TSM models in LLM: `llm -m tsm/shakespeare 'ROMEO:'`.

A model of text has no turns: prompts and answers are one text, in their order, and an answer is
how it goes on. A prompt after an answer begins on a new line. Tokens are bytes.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import signal
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import click
import llm
from llm.parts import TextPart
from pydantic import Field, create_model, field_validator, model_validator

from tsm.runtime import (
    ArtifactError,
    EngineError,
    Grammar,
    Sampling,
    SamplingError,
    StateError,
    Stream,
    load,
)
from tsm.runtime.artifact import open_artifact
from tsm.runtime.engines import SHIPPED_MODEL
from tsm.runtime.sampling import RANGES

SHIPPED = "shakespeare"
DEFAULT_BYTES = 500
SEPARATOR = "\n"
ERRORS = (ArtifactError, EngineError, SamplingError, StateError)
DESCRIPTIONS = {
    "temperature": "0: always the likeliest byte; higher: more surprising",
    "top_k": "draw from so many of the likeliest bytes alone; 0: from all",
    "typical_p": "draw from the bytes about as surprising as the average one, of this probability "
    "together; 1: from all",
    "top_p": "draw from the likeliest bytes, of this probability together; 1: from all",
    "min_p": "draw from bytes of this part of the likeliest one's probability; 0: from all",
    "repetition_penalty": "divides the logits of bytes among the last ones; 1: nothing",
    "presence_penalty": "taken off the logits of bytes among the last ones",
    "frequency_penalty": "the same, once for each time that they stand there",
    "penalty_window": "how many last bytes the penalties look at",
    "seed": "the same one gives the same text; by default another each time",
}


def _setting(name: str) -> tuple[Any, Any]:
    """An option of a name of the sampler's, in its range."""
    kind, low, high, _ = RANGES[name]
    limits: dict[str, Any] = {"allow_inf_nan": False} if kind is float else {}
    if low > -math.inf:
        limits["ge"] = low
    if high < sys.float_info.max:
        limits["le"] = high
    return kind | None, Field(default=None, description=DESCRIPTIONS[name], **limits)


class _Checked(llm.Options):
    max_tokens: int | None = Field(
        default=None, ge=0, description=f"bytes of an answer at most; by default {DEFAULT_BYTES}"
    )
    stop: str | list[str] | None = Field(
        default=None, description="a text, or in Python several, that the answer ends before"
    )
    separator: str | None = Field(
        default=None,
        description="stands between an answer and the next prompt; by default a newline",
    )
    grammar: str | None = Field(
        default=None, description="a regular expression that the answer is a text of"
    )
    logit_bias: dict[int, float] | None = Field(
        default=None, description='what to add to the logits of bytes: {"10": -100}'
    )

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _of_json(cls, value: Any) -> Any:
        try:
            return json.loads(value) if isinstance(value, str) else value
        except RecursionError:
            raise ValueError("too deep, wanted an object of numbers") from None

    @model_validator(mode="after")
    def _can_be_sampled(self) -> _Checked:
        self.sampling()
        return self

    def sampling(self) -> Sampling:
        """Raises SamplingError, a ValueError."""
        given = {name: getattr(self, name) for name in (*RANGES, "logit_bias")}
        return Sampling(**{name: value for name, value in given.items() if value is not None})


Options = create_model("Options", __base__=_Checked, **{name: _setting(name) for name in RANGES})


def transcript(prompt: llm.Prompt) -> str:
    """The text that an answer goes on from: all prompts and answers before it."""
    text, separator = "", prompt.options.separator
    separator = SEPARATOR if separator is None else separator
    for message in prompt.messages:
        if text and message.role != "assistant" and not text.endswith(separator):
            text += separator
        text += "".join(part.text for part in message.parts if isinstance(part, TextPart))
    return text


_open = functools.cache(load)  # once a process, for sync and async


class _Answer:
    """One answer: its stream, which has read the text so far, and how it ends."""

    def __init__(self, path: str, prompt: llm.Prompt) -> None:
        """Raises llm.ModelError."""
        options = prompt.options
        try:
            grammar = None
            if prompt.schema:
                grammar = Grammar("json_schema", json.dumps(prompt.schema))
            elif options.grammar:
                grammar = Grammar("regex", options.grammar)
            self.stream = _open(path).stream(options.sampling(), grammar=grammar)
            self._schema = bool(prompt.schema)
            self._text = transcript(prompt).encode("utf-8", "replace")
            self.stream.feed(self._text)
        except (*ERRORS, OSError) as error:
            raise llm.ModelError(str(error)) from None
        count = DEFAULT_BYTES if options.max_tokens is None else options.max_tokens
        self.settings = {"count": count, "stops": options.stop or ()}

    def finish(self, response: Any) -> None:
        """Tells how it has ended. Raises llm.ModelError where an object is not whole."""
        stream = self.stream
        response.set_usage(input=len(self._text), output=stream.draws)
        response.response_json = {
            "seed": stream.sampling.seed,
            "finish_reason": stream.finish_reason,
        }
        if self._schema and stream.finish_reason == "length":
            raise llm.ModelError(
                f"the object was cut short after {stream.draws} bytes, wanted a larger max_tokens"
            )


class _Interrupts:
    """While LLM's own commands show an answer, Ctrl-C ends the answer, which is then logged, and
    not the command: a chat goes on. A second one before it has ended is as ever."""

    def __init__(self) -> None:
        self._running: list[Stream] = []
        self._before: Any = None

    @contextlib.contextmanager
    def end(self, stream: Stream) -> Iterator[None]:
        """Where it runs in a command of LLM's; in other programs Ctrl-C is theirs."""
        in_command = click.get_current_context(silent=True) is not None
        if not (in_command and threading.current_thread() is threading.main_thread()):
            yield
            return
        if not self._running:
            self._before = signal.signal(signal.SIGINT, self._handle)
        self._running.append(stream)
        try:
            yield
        finally:
            self._running.remove(stream)
            if not self._running:
                signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, self._before)
        for stream in self._running:
            stream.cancel()


_interrupts = _Interrupts()


class _Described:
    """What both kinds of model are."""

    can_stream = True
    supports_schema = True
    Options = Options

    def __init__(self, name: str, path: str) -> None:
        self.model_id, self.path = f"tsm/{name}", path


class Tsm(_Described, llm.Model):
    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: Any
    ) -> Iterator[str]:
        answer = _Answer(self.path, prompt)
        with _interrupts.end(answer.stream):
            yield from answer.stream.generate(**answer.settings)
        answer.finish(response)


class AsyncTsm(_Described, llm.AsyncModel):
    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.AsyncResponse, conversation: Any
    ) -> AsyncIterator[str]:
        import asyncio

        answer = await asyncio.to_thread(_Answer, self.path, prompt)
        with _interrupts.end(answer.stream):
            async for piece in answer.stream.generate_async(**answer.settings):
                yield piece
        answer.finish(response)


def _list_path() -> Path:
    return llm.user_dir() / "tsm-models.json"


def added() -> dict[str, str]:
    """The paths of the models that the user has added, by name. Raises click.ClickException."""
    path = _list_path()
    try:
        found = json.loads(path.read_text())
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return found
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        pass
    raise click.ClickException(f"{path}: not the list that `llm tsm add` writes, wanted that")


def _write(models: dict[str, str]) -> None:
    _list_path().write_text(json.dumps(models, indent=2) + "\n")


@llm.hookimpl
def register_models(register: Any) -> None:
    for name, path in {SHIPPED: SHIPPED_MODEL, **added()}.items():
        register(Tsm(name, path), AsyncTsm(name, path))


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    @cli.group(name="tsm")
    def group() -> None:
        "Models of TSM in files of your own"

    @group.command()
    @click.argument("path", type=click.Path(exists=True, dir_okay=False, resolve_path=True))
    @click.option("--name", help="the model is tsm/NAME (default: the file's, without suffix)")
    def add(path: str, name: str | None) -> None:
        "Add the model in a .tflite or .onnx file, which stays where it is"
        try:
            open_artifact(path)
        except (ArtifactError, OSError) as error:
            raise click.ClickException(str(error)) from None
        name = name or Path(path).stem
        if name == SHIPPED:
            raise click.ClickException(f"{name}: the shipped model's name, wanted another --name")
        _write({**added(), name: path})
        click.echo(f"tsm/{name}")

    @group.command(name="list")
    def list_() -> None:
        "The models and their files"
        for name, path in {SHIPPED: SHIPPED_MODEL, **added()}.items():
            click.echo(f"tsm/{name}  {path}")

    @group.command()
    @click.argument("name")
    def remove(name: str) -> None:
        "Forget an added model, whose file stays"
        models = added()
        if models.pop(name.removeprefix("tsm/"), None) is None:
            raise click.ClickException(f"{name}: not among {list(models)}, wanted an added model")
        _write(models)
