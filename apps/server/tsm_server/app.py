"""The routes and what answers them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tsm.runtime import Grammar, Model, SamplingError, StateError, Stream, __version__
from tsm.runtime.state import unpack

from . import messages, metrics, openapi
from .completion import Task, work
from .guard import Guard, read_body, send_error
from .messages import ApiError, encode
from .prompt_cache import PromptCache
from .reply import ChatForm, CompletionForm, Form, Reply, as_api_error
from .scheduler import Scheduler
from .sealed import Sealer
from .settings import Settings

DEFAULT_COMPLETION_BYTES, DEFAULT_CHAT_BYTES = 16, 512
MOST_STATES = 16  # of a request, 54 KB each
MOST_LOGPROBS = 4  # a byte of --output-bytes: each takes some 150 bytes until it is sent
MOST_SCHEMA_BYTES = 65_536  # of which a grammar takes 7 MB
TURN_END = "\n\n"  # of a speech in a chat, as in a play
# The same as `transcript`, for clients that apply it themselves.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.name or message.role.capitalize() }}:\n"
    "{{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")
SETTINGS += ("presence_penalty", "frequency_penalty", "penalty_window", "seed")


class Server:
    """A model and all that answers for it; `app` is the ASGI application."""

    def __init__(
        self, model: Model, settings: Settings, sealer: Sealer, cache: PromptCache
    ) -> None:
        self.settings = settings
        self.scheduler = Scheduler(settings.streams, settings.queue)
        self._model, self._sealer, self._cache = model, sealer, cache
        # Where grammars are compiled: that may take a second, and leaves the interpreter's lock.
        self._compiling = ThreadPoolExecutor(1)
        self._created = int(time.time())
        artifact = model.engine.artifact
        self._fingerprint = f"tsm-{__version__}-{artifact.sha256[:12]}"
        metrics.watch(lambda: self.scheduler.running, lambda: self.scheduler.waiting)
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.model),
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/detokenize", self.detokenize, methods=["POST"]),
            Route("/tokenizer_info", self.tokenizer_info),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
            Route("/openapi.json", self.openapi),
        ]
        handlers: Any = {ApiError: _answer_error, HTTPException: _answer_error, 500: _answer_error}
        starlette = Starlette(routes=routes, exception_handlers=handlers)
        starlette.router.redirect_slashes = False  # a redirect would repeat the client's Host
        self._document = encode(openapi.document(settings, __version__))
        self.app = Guard(starlette, settings, frozenset(route.path for route in routes))

    def drain(self) -> None:
        """From now on no request is taken; those that run go on."""
        self.scheduler.draining = True

    async def close(self) -> None:
        self._compiling.shutdown(wait=False, cancel_futures=True)
        await self._cache.close()
        self._model.close()

    # Texts

    async def completions(self, request: Request) -> Any:
        found = await self._decoded(request, messages.CompletionRequest)
        _only(found.suffix is None or found.suffix == "", "suffix", "a suffix is not supported")
        prompts = _prompts(found.prompt)
        _only(
            not (found.state and len(prompts) > 1), "state", "a state goes on with one prompt only"
        )
        n = found.n or 1
        best_of = found.best_of or n
        _only(best_of >= n, "best_of", f"best_of is {best_of}, wanted n, {n}, or more")
        stream = bool(found.stream)
        _only(not (stream and best_of > n), "best_of", "a stream cannot wait for the best texts")
        max_bytes = DEFAULT_COMPLETION_BYTES if found.max_tokens is None else found.max_tokens
        task = await self._task(
            request,
            found,
            prompts,
            max_bytes,
            best_of=best_of,
            echo=bool(found.echo),
            logprobs=found.logprobs,
        )
        return await self._reply(request, found, task, CompletionForm)

    async def chat(self, request: Request) -> Any:
        found = await self._decoded(request, messages.ChatRequest)
        top = found.top_logprobs
        _only(top is None or found.logprobs, "top_logprobs", "top_logprobs wants logprobs: true")
        given = found.max_completion_tokens
        given = found.max_tokens if given is None else given
        task = await self._task(
            request,
            found,
            [transcript(found.messages).encode()],
            DEFAULT_CHAT_BYTES if given is None else given,
            best_of=found.n or 1,
            logprobs=(top or 0) if found.logprobs else None,
            stops=(TURN_END,),
        )
        return await self._reply(request, found, task, ChatForm)

    async def _task(
        self,
        request: Request,
        found: messages.Sampled,
        prompts: list[bytes],
        max_bytes: int,
        *,
        best_of: int,
        logprobs: int | None,
        echo: bool = False,
        stops: tuple[str, ...] = (),
    ) -> Task:
        settings, total = self.settings, sum(map(len, prompts))
        most = settings.prompt_bytes
        code = "context_length_exceeded"
        _only(total <= most, "prompt", f"the prompt has {total:,} bytes, at most {most:,}", code)
        texts, most = len(prompts) * best_of, settings.output_bytes
        echoed = best_of * total if echo else 0
        _only(
            texts <= most and texts * max_bytes + echoed <= most,
            "max_tokens",
            f"{texts:,} x {max_bytes:,} bytes of text"
            + (f" and {echoed:,} of echo" if echo else "")
            + f" are asked for, at most {most:,} in all",
        )
        rows, most = (texts * max_bytes + echoed) * (1 + (logprobs or 0)), MOST_LOGPROBS * most
        _only(
            logprobs is None or rows <= most,
            "logprobs",
            f"{rows:,} log-probabilities are asked for, at most {most:,} in all",
        )
        states = len(prompts) * (found.n or 1)
        _only(
            not found.return_state or states <= MOST_STATES,
            "return_state",
            f"{states:,} states are asked for, at most {MOST_STATES}",
        )
        _only(
            found.stream or found.stream_options is None,
            "stream_options",
            "stream_options wants stream: true",
        )
        sampling = {name: getattr(found, name) for name in SETTINGS}
        sampling = {name: value for name, value in sampling.items() if value is not None}
        if found.logit_bias is not None:
            sampling["logit_bias"] = _bias(found.logit_bias)
        resumed, unfinished = None, b""
        if found.state is None:
            sampling.setdefault("temperature", 1.0)
        else:
            unfinished, state = self._sealer.open_state(found.state, _api_key(request))
            resumed = await self._resumed(state)
            if total:  # a prompt comes between
                unfinished = b""
        given = found.stop or ()
        return Task(
            prompts=prompts,
            sampling=sampling,
            max_bytes=max_bytes,
            n=found.n or 1,
            best_of=best_of,
            stops=stops + ((given,) if isinstance(given, str) else tuple(given)),
            echo=echo,
            logprobs=logprobs,
            grammar=await self._grammar(found),
            resumed=resumed,
            unfinished=unfinished,
            return_state=bool(found.return_state),
        )

    async def _resumed(self, state: bytes) -> Stream:
        try:
            header, _ = unpack(state)
        except StateError as error:
            raise as_api_error(error) from None
        return await self._compiled(self._model.load_stream, state, slow=header.get("grammar"))

    async def _grammar(self, found: messages.Sampled) -> Grammar | None:
        kind, source = _grammar_source(found)
        return await self._compiled(Grammar, kind, source, slow=True) if source else None

    async def _compiled(self, make: Callable[..., Any], *arguments: Any, slow: Any) -> Any:
        try:
            if not slow:
                return make(*arguments)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._compiling, make, *arguments)
        except (StateError, SamplingError) as error:
            raise as_api_error(error) from None

    async def _reply(
        self, request: Request, found: messages.Sampled, task: Task, form: type[Form]
    ) -> Reply:
        owner = (_api_key(request), (found.cache_salt or "").encode())
        scored = task.echo and task.logprobs is not None  # of which every byte must be read
        if task.resumed is None and not scored:
            starts = [await self._cache.start(prompt, owner) for prompt in task.prompts]
            task = task.started(tuple(starts), self._cache.kept_bytes)
        api_key, stream = _api_key(request), bool(found.stream)
        options = found.stream_options
        return Reply(
            self.scheduler,
            work(self._model, task),
            form(
                self.settings.model_name,
                self._fingerprint,
                logprobs=task.logprobs,
                include_usage=bool(options and options.include_usage),
                unfinished=task.unfinished,
                seal=lambda rest, state: self._sealer.seal_state(rest, state, api_key),
            ),
            stream=stream,
            seconds=self.settings.request_seconds,
            keep=lambda event: self._cache.put(event, owner),
        )

    async def _decoded(self, request: Request, kind: type) -> Any:
        body = await read_body(request.scope, request.receive, self.settings)
        found = messages.decode(kind, body)
        if found.model is not None:
            self._check_model(found.model)
        return found

    # Models and tokens

    async def models(self, request: Request) -> Response:
        return _json(messages.ModelList("list", [self._described()]))

    async def model(self, request: Request) -> Response:
        self._check_model(request.path_params["model"])
        return _json(self._described())

    async def tokenize(self, request: Request) -> Response:
        found = await self._decoded(request, messages.TokenizeRequest)
        data = found.prompt.encode()
        strings = [messages.token(byte) for byte in data] if found.return_token_strs else None
        most = self.settings.prompt_bytes
        return _json(messages.Tokens(len(data), most, list(data), strings))

    async def detokenize(self, request: Request) -> Response:
        found = await self._decoded(request, messages.DetokenizeRequest)
        return _json(messages.Text(bytes(found.tokens).decode("utf-8", "replace")))

    async def tokenizer_info(self, request: Request) -> Response:
        # A fresh text begins a line; nothing ends one.
        return _json(
            messages.TokenizerInfo(
                "bytes", 256, "\n", None, self.settings.prompt_bytes, CHAT_TEMPLATE
            )
        )

    def _described(self) -> messages.Model:
        return messages.Model(self.settings.model_name, "model", self._created, "tsm")

    def _check_model(self, name: str) -> None:
        if name != self.settings.model_name:
            raise ApiError(
                404,
                f"The model `{name[:100]}` does not exist, wanted `{self.settings.model_name}`",
                param="model",
                code="model_not_found",
            )

    # For those who run it

    async def health(self, request: Request) -> Response:
        draining = self.scheduler.draining
        health = messages.Health("shutting down" if draining else "ok")
        return _json(health, 503 if draining else 200)

    async def metrics(self, request: Request) -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")


def transcript(chat: list[messages.Message]) -> str:
    """A chat as a play has it: who speaks, on a line, what they say, an empty line; and last the
    line of who answers."""
    speeches = []
    for message in chat:
        content = message.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        speeches.append(f"{message.name or message.role.capitalize()}:\n{content}{TURN_END}")
    return "".join(speeches) + "Assistant:\n"


def _prompts(given: Any) -> list[bytes]:
    """Each prompt of a request: a text or a list of bytes, or a list of such."""
    if given is None or given == []:
        return [b""]
    if isinstance(given, str):
        return [given.encode()]
    kinds = {type(part) for part in given}
    _only(len(kinds) == 1, "prompt", "the prompt has parts of several types, wanted one")
    if kinds == {int}:
        return [bytes(given)]
    return [part.encode() if isinstance(part, str) else bytes(part) for part in given]


def _bias(given: dict[str, float]) -> dict[int, float]:
    """By byte; at -100 never, as clients of OpenAI's API mean it."""
    bias = {}
    for name, value in given.items():
        right = name.isascii() and name.isdigit() and len(name) <= 3 and int(name) < 256
        _only(right, "logit_bias", f"{name[:20]!r} is no token, wanted 0 to 255")
        bias[int(name)] = float("-inf") if value == -100 else value
    return bias


def _grammar_source(found: messages.Sampled) -> tuple[str, str]:
    """The kind and the source of what the text is to match, empty for none. Never a path: see
    grammar.parse."""
    wanted = found.response_format
    if found.grammar is not None:
        _only(wanted is None, "grammar", "grammar and response_format exclude each other")
        return "regex", found.grammar
    if wanted is None or wanted.type == "text":
        return "", ""
    if wanted.type == "json_object":
        return "json_schema", '{"type": "object"}'
    schema = wanted.json_schema and wanted.json_schema.schema
    _only(schema is not None, "response_format", "json_schema.schema is missing")
    source = encode(schema).decode()
    _only(
        len(source) <= MOST_SCHEMA_BYTES,
        "response_format",
        f"the schema has {len(source):,} bytes, at most {MOST_SCHEMA_BYTES:,}",
    )
    return "json_schema", source


def _only(right: Any, param: str, message: str, code: str | None = None) -> None:
    """Raises ApiError unless it is right."""
    if not right:
        raise ApiError(400, f"{param}: {message}", param=param, code=code)


def _api_key(request: Request) -> bytes:
    return request.scope["state"]["api_key"]


def _json(answer: Any, status: int = 200) -> Response:
    return Response(encode(answer), status, media_type="application/json")


class _ErrorResponse:
    background = None

    def __init__(self, error: ApiError) -> None:
        self._error = error

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send_error(send, self._error)


async def _answer_error(request: Request, error: Exception) -> Any:
    if isinstance(error, HTTPException):  # the router's: no such path, or not with this method
        message = f"{error.detail}: {request.method} {request.url.path[:100]}"
        error = ApiError(error.status_code, message, headers=dict(error.headers or {}))
    elif not isinstance(error, ApiError):
        error = ApiError(500, "Internal error", kind="server_error")
    return _ErrorResponse(error)
