"""Requests and answers of the API: msgspec checks what comes in by these types, and openapi.py
documents them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

Byte = Annotated[int, Meta(ge=0, le=255)]
Whole = Annotated[int, Meta(ge=0, le=1 << 31)]
Count = Annotated[int, Meta(ge=1, le=128)]
Share = Annotated[float, Meta(gt=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Stop = Annotated[str, Meta(min_length=1, max_length=64)]
Stops = Annotated[list[Stop], Meta(max_length=16)]
Top = Annotated[int, Meta(ge=0, le=20)]
Source = Annotated[str, Meta(min_length=1, max_length=16_384)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]+$")]
State = Annotated[str, Meta(max_length=1 << 19)]


class ApiError(Exception):
    """An answer that is an error of OpenAI's form."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
        self.error = Error(message=message, type=kind, param=param, code=code)

    def body(self) -> bytes:
        return encode(Failure(error=self.error))


class Error(Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class Failure(Struct):
    error: Error


# Requests. An unknown field is an error: a misspelt setting would go unnoticed.


class Request(Struct, forbid_unknown_fields=True, kw_only=True):
    pass


class StreamOptions(Request, kw_only=True):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class NamedSchema(Request, kw_only=True):
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(Request, kw_only=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: NamedSchema | None = None


class Sampled(Request, kw_only=True):
    """What completions and chats share. A resumed state keeps its settings where none are given."""

    model: str
    max_tokens: Whole | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Share | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | Stops | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] | None = None
    seed: Seed | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    # Not in OpenAI's.
    top_k: Whole | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    typical_p: Share | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None
    penalty_window: Annotated[int, Meta(ge=0, le=4096)] | None = None
    grammar: Source | None = None  # a regular expression
    cache_salt: Annotated[str, Meta(max_length=256)] | None = None
    state: State | None = None
    return_state: bool | None = None


class CompletionRequest(Sampled, kw_only=True):
    prompt: str | list[str | Byte | list[Byte]] | None = None
    best_of: Annotated[int, Meta(ge=1, le=20)] | None = None
    echo: bool | None = None
    logprobs: Top | None = None
    suffix: str | None = None


class Part(Request, kw_only=True):
    type: Literal["text"]
    text: str


class Message(Request, kw_only=True):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: Name | None = None


class ChatRequest(Sampled, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1, max_length=1024)]
    max_completion_tokens: Whole | None = None
    logprobs: bool | None = None
    top_logprobs: Top | None = None


class TokenizeRequest(Request, kw_only=True):
    prompt: str
    model: str | None = None
    add_special_tokens: bool | None = None  # there are none
    return_token_strs: bool | None = None


class DetokenizeRequest(Request, kw_only=True):
    tokens: list[Byte]
    model: str | None = None


# Answers.


class PromptDetails(Struct):
    cached_tokens: int


class Usage(Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


Finish = Literal["stop", "length"]


class Logprobs(Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(Struct):
    text: str
    index: int
    logprobs: Logprobs | None
    finish_reason: Finish | None
    state: str | UnsetType = UNSET


class Completion(Struct):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    system_fingerprint: str
    usage: Usage | None | UnsetType = UNSET


class TopLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Struct):
    content: list[TokenLogprob]
    refusal: None = None


class Answer(Struct):
    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(Struct):
    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Finish
    state: str | UnsetType = UNSET


class Chat(Struct):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    system_fingerprint: str
    usage: Usage


class Delta(Struct):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChunkChoice(Struct):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None
    state: str | UnsetType = UNSET


class Chunk(Struct):
    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    system_fingerprint: str
    usage: Usage | None | UnsetType = UNSET


class Model(Struct):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(Struct):
    object: Literal["list"]
    data: list[Model]


class Tokens(Struct):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Struct):
    prompt: str


class TokenizerInfo(Struct):
    tokenizer_class: str
    vocab_size: int
    bos_token: str
    eos_token: str | None
    model_max_length: int
    chat_template: str


class Health(Struct):
    status: Literal["ok", "shutting down"]


encode = msgspec.json.Encoder().encode
_DECODERS: dict[type, msgspec.json.Decoder] = {}


def decode(kind: type, body: bytes) -> Any:
    """A request of this type. Raises ApiError."""
    decoder = _DECODERS.setdefault(kind, msgspec.json.Decoder(kind))
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        field = re.search(r"`\$\.(\w+)|field `(\w+)`", message)
        raise ApiError(400, message, param=field and (field[1] or field[2])) from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deep") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"The body is not JSON in UTF-8: {error}") from None


def token(byte: int) -> str:
    """A byte as the clients of OpenAI's API spell it."""
    return chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"
