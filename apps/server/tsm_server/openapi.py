"""/openapi.json: the types of messages.py, and by which path they come and go."""

from __future__ import annotations

from typing import Any

import msgspec

from . import messages
from .settings import Settings

TITLE = "TSM server"
# By path: method, what it is for, the request's type, the answer's, and the errors that it may be.
_READ = ("401", "403")
_POST = (*_READ, "400", "408", "413", "415")
PATHS: dict[str, tuple[str, str, type | None, type | None, tuple[str, ...]]] = {
    "/v1/models": ("get", "The model, in a list", None, messages.ModelList, _READ),
    "/v1/models/{model}": ("get", "The model", None, messages.Model, (*_READ, "404")),
    "/v1/completions": (
        "post",
        "Texts after prompts",
        messages.CompletionRequest,
        messages.Completion,
        (*_POST, "404", "429", "500", "503"),
    ),
    "/v1/chat/completions": (
        "post",
        "The next speech of a chat",
        messages.ChatRequest,
        messages.Chat,
        (*_POST, "404", "429", "500", "503"),
    ),
    "/tokenize": (
        "post",
        "Bytes of a text",
        messages.TokenizeRequest,
        messages.Tokens,
        (*_POST, "404"),
    ),
    "/detokenize": (
        "post",
        "Text of bytes",
        messages.DetokenizeRequest,
        messages.Text,
        (*_POST, "404"),
    ),
    "/tokenizer_info": ("get", "What the bytes are", None, messages.TokenizerInfo, _READ),
    "/health": ("get", "Whether it answers", None, messages.Health, ("403", "500")),
    "/metrics": ("get", "Figures for Prometheus", None, None, _READ),
    "/openapi.json": ("get", "This document", None, dict, _READ),
}
_CHUNKS = {messages.Completion: messages.Completion, messages.Chat: messages.Chunk}


def document(settings: Settings, version: str) -> dict[str, Any]:
    kinds = {messages.Failure, *_CHUNKS.values()}
    kinds |= {kind for row in PATHS.values() for kind in row[2:4] if kind not in (None, dict)}
    named = sorted(kinds, key=lambda kind: kind.__name__)
    template = "#/components/schemas/{name}"
    references, schemas = msgspec.json.schema_components(named, ref_template=template)
    schema_of = dict(zip(named, references, strict=True))
    for schema in schemas.values():
        if "model" in schema.get("required", ()):
            schema["properties"]["model"] = {"type": "string", "enum": [settings.model_name]}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": TITLE, "version": version},
        "paths": {path: _operation(path, schema_of) for path in PATHS},
        "components": {"schemas": schemas},
    }
    if settings.api_keys:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
        document["paths"]["/health"]["get"]["security"] = []
    return document


def _operation(path: str, schema_of: dict[type, Any]) -> dict[str, Any]:
    method, summary, request, answer, errors = PATHS[path]
    content: dict[str, Any] = {"application/json": {"schema": schema_of.get(answer, {})}}
    if answer is None:
        content = {"text/plain": {"schema": {"type": "string"}}}
    elif answer in _CHUNKS:
        chunk = {
            "contentMediaType": "application/json",
            "contentSchema": schema_of[_CHUNKS[answer]],
        }
        data = {"anyOf": [{"const": "[DONE]"}, {"type": "string", **chunk}]}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    responses = {"200": {"description": summary, "content": content}}
    failure = {"application/json": {"schema": schema_of[messages.Failure]}}
    for status in errors:
        responses[status] = {"description": "Error", "content": failure}
    if path == "/health":
        content = {"application/json": {"schema": schema_of[messages.Health]}}
        responses["503"] = {"description": "Shutting down", "content": content}
    operation: dict[str, Any] = {"summary": summary, "responses": responses}
    operation["operationId"] = method + path.replace("/", "_").replace("{", "").replace("}", "")
    if request:
        body = {"application/json": {"schema": schema_of[request]}}
        operation["requestBody"] = {"required": True, "content": body}
    if "{model}" in path:
        operation["parameters"] = [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        ]
    return {method: operation}
