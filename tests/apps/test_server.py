"""apps/server as its users have it: the command, its sockets, and the clients that people use.

make test-apps-server

benchmarks/server.py has the same with larger numbers.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
import uvicorn

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps/server"
DEPLOY = APP / "deploy"
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(APP))
import serve  # noqa: F401 (finds the runtime of this clone)
import server as bench
from server import MODEL, Served, connect, get
from tsm_server.protocol import READ_BYTES, limited
from tsm_server.settings import Settings
from uvicorn.server import ServerState

from tsm.runtime import Grammar, Sampling, load
from tsm.runtime.sampling import log_probabilities

pytestmark = pytest.mark.filterwarnings("default")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def model():
    with load() as model:
        yield model


@pytest.fixture(scope="module")
def server():
    with Served("--log-level", "debug") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    url = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


def generated(model, prompt: str | bytes, count: int, stops=(), grammar=None, **settings) -> str:
    stream = model.stream(Sampling(**{"temperature": 1.0, **settings}), grammar=grammar)
    stream.feed(prompt)
    return "".join(stream.generate(count, stops=stops))


def asked(server: Served, **fields) -> httpx.Response:
    return httpx.post(
        f"http://127.0.0.1:{server.port}/v1/completions",
        json={"model": MODEL, **fields},
        timeout=60,
    )


def answered(server: Served, **fields) -> dict:
    response = asked(server, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def text_of(server: Served, **fields) -> str:
    return answered(server, **fields)["choices"][0]["text"]


def refused(response: httpx.Response, status: int, param: str | None = None) -> str:
    """The message of an error of OpenAI's form."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    if param:
        assert error["param"] == param
    return error["message"]


# openai's client


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("gpt-5")
    assert refusal.value.code == "model_not_found"


def test_a_completion_is_the_runtimes(client, model):
    found = client.completions.create(model=MODEL, prompt="ROMEO:", seed=7, max_tokens=100)
    assert found.choices[0].text == generated(model, "ROMEO:", 100, seed=7)
    assert found.choices[0].finish_reason == "length"
    assert (found.usage.prompt_tokens, found.usage.completion_tokens) == (6, 100)
    assert found.object == "text_completion" and isinstance(found.created, int)
    assert found._request_id


def test_a_stream_has_the_same_text_a_reason_at_its_end_and_usage(client, model):
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model=MODEL,
            prompt="ROMEO:",
            seed=7,
            max_tokens=100,
            stream=True,
            stream_options=options,
        )
    )
    *texts, last = chunks
    assert "".join(c.choices[0].text for c in texts) == generated(model, "ROMEO:", 100, seed=7)
    assert [c.choices[0].finish_reason for c in texts] == [None] * (len(texts) - 1) + ["length"]
    assert (last.choices, last.usage.total_tokens) == ([], 106)
    assert all(c.usage is None for c in texts) and len({c.id for c in chunks}) == 1


def test_the_frames_of_a_stream_to_the_byte(server):
    connection = connect(server.port)
    body = {"model": MODEL, "prompt": "A", "max_tokens": 20, "stream": True, "seed": 1}
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    response = connection.getresponse()
    assert response.getheader("content-type") == "text/event-stream; charset=utf-8"
    *frames, done, rest = response.read().decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for frame in frames:
        assert frame.startswith("data: ")
        assert "usage" not in json.loads(frame[6:])


def test_settings_reach_the_runtime(client, model):
    settings = {"temperature": 0.7, "top_p": 0.9, "seed": -5}
    settings |= {"presence_penalty": 0.3, "frequency_penalty": 0.2}
    ours = {"top_k": 40, "min_p": 0.01, "typical_p": 0.95, "repetition_penalty": 1.1}
    found = client.completions.create(
        model=MODEL,
        prompt="JULIET:\n",
        max_tokens=80,
        logit_bias={"101": -100, "97": 2},
        extra_body={**ours, "penalty_window": 32},
        **settings,
    )
    bias = {101: -math.inf, 97: 2.0}
    wanted = {**settings, **ours, "penalty_window": 32, "logit_bias": bias}
    assert found.choices[0].text == generated(model, "JULIET:\n", 80, **wanted)
    assert "e" not in found.choices[0].text


def test_several_prompts_and_texts_are_numbered(client, model):
    prompts = ["ROMEO:", "JULIET:"]
    found = client.completions.create(model=MODEL, prompt=prompts, n=2, seed=3, max_tokens=30)
    assert [c.index for c in found.choices] == [0, 1, 2, 3]
    wanted = [generated(model, p, 30, seed=3 + j) for p in prompts for j in range(2)]
    assert [c.text for c in found.choices] == wanted
    streamed = dict.fromkeys(range(4), "")
    for chunk in client.completions.create(
        model=MODEL, prompt=prompts, n=2, seed=3, max_tokens=30, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert list(streamed.values()) == wanted


def test_prompts_of_ids_are_their_bytes(client, model):
    ids = list("é ROMEO:".encode())
    found = client.completions.create(model=MODEL, prompt=ids, seed=1, max_tokens=20)
    several = client.completions.create(model=MODEL, prompt=[ids, [65]], seed=1, max_tokens=20)
    wanted = generated(model, bytes(ids), 20, seed=1)
    assert found.choices[0].text == several.choices[0].text == wanted
    assert several.choices[1].text == generated(model, "A", 20, seed=1)


def test_an_empty_prompt_begins_a_line(client, model):
    for prompt in ("", None, []):
        body = {"prompt": prompt}
        found = client.completions.create(
            model=MODEL, prompt="x", extra_body=body, seed=1, max_tokens=20
        )
        assert found.choices[0].text == generated(model, "\n", 20, seed=1)


def test_the_best_of_several(client, model):
    found = client.completions.create(
        model=MODEL, prompt="ROMEO:", n=2, best_of=5, seed=1, max_tokens=20, temperature=1.5
    )

    def mean(text: str) -> float:
        stream, total = model.stream(), 0.0
        stream.feed("ROMEO:")
        for byte in text.encode():
            total += log_probabilities(stream.logits())[byte]
            stream.feed(bytes([byte]))
        return total / len(text.encode())

    texts = [generated(model, "ROMEO:", 20, seed=1 + j, temperature=1.5) for j in range(5)]
    assert [c.text for c in found.choices] == sorted(texts, key=mean, reverse=True)[:2]
    assert found.usage.completion_tokens == 100


@pytest.mark.parametrize("stop", ["\n\n", ["zzz", "\n"], "the"])
def test_stops_end_a_text_and_are_no_part_of_it(client, model, stop):
    stops = [stop] if isinstance(stop, str) else stop
    kind = {"model": MODEL, "prompt": "ROMEO:\n", "stop": stop, "seed": 2, "max_tokens": 500}
    found = client.completions.create(**kind, logprobs=0).choices[0]
    assert (found.text, found.finish_reason) == (
        generated(model, "ROMEO:\n", 500, stops, seed=2),
        "stop",
    )
    assert "".join(found.logprobs.tokens) == found.text
    streamed = [c.choices[0] for c in client.completions.create(**kind, stream=True)]
    assert "".join(c.text for c in streamed) == found.text
    assert streamed[-1].finish_reason == "stop"


def test_log_probabilities_are_the_models(client, model):
    found = client.completions.create(
        model=MODEL, prompt="ROMEO:", seed=1, max_tokens=30, logprobs=3, temperature=1.5
    ).choices[0]
    stream = model.stream()
    stream.feed("ROMEO:")
    for place, token in enumerate(found.logprobs.tokens):
        values = log_probabilities(stream.logits())
        assert found.logprobs.token_logprobs[place] == pytest.approx(values[ord(token)])
        best = sorted(range(256), key=values.__getitem__, reverse=True)[:3]
        assert {chr(b) for b in best} | {token} == set(found.logprobs.top_logprobs[place])
        assert found.logprobs.text_offset[place] == place
        stream.feed(token)


def test_echo_scores_the_prompt(client, model):
    prompt = "Café: what light?" * 20
    found = client.completions.create(
        model=MODEL, prompt=prompt, max_tokens=0, echo=True, logprobs=2
    ).choices[0]
    data, logprobs = prompt.encode(), found.logprobs
    assert (found.text, found.finish_reason) == (prompt, "length")
    assert logprobs.tokens[3:5] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert logprobs.text_offset[:6] == [0, 1, 2, 3, 3, 4]
    rows = model.stream().logits_of(data)
    for place in range(1, len(data)):
        values = log_probabilities(rows[256 * place - 256 : 256 * place])
        assert logprobs.token_logprobs[place] == pytest.approx(values[data[place]], abs=1e-12)
        assert max(logprobs.top_logprobs[place].values()) == pytest.approx(max(values))
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None


def test_an_echo_goes_on_in_the_text(client, model):
    kind = {
        "model": MODEL,
        "prompt": "ROMEO:",
        "echo": True,
        "seed": 1,
        "max_tokens": 30,
        "logprobs": 1,
    }
    found = client.completions.create(**kind).choices[0]
    assert found.text == "ROMEO:" + generated(model, "ROMEO:", 30, seed=1)
    streamed = [c.choices[0] for c in client.completions.create(**kind, stream=True)]
    assert "".join(c.text for c in streamed) == found.text
    values = [value for c in streamed for value in c.logprobs.token_logprobs]
    assert values == found.logprobs.token_logprobs


def test_characters_are_never_cut(client, model):
    """At this temperature half of the bytes are no ASCII."""
    bias = {str(byte): 12 for byte in range(0xC3, 0xC8)} | {str(b): 11 for b in range(0x80, 0xC0)}
    kind = {
        "model": MODEL,
        "prompt": "A",
        "seed": 1,
        "max_tokens": 300,
        "logit_bias": bias,
        "temperature": 2,
    }
    whole = client.completions.create(**kind).choices[0].text
    wanted = {int(byte): float(value) for byte, value in bias.items()}
    assert whole == generated(model, "A", 300, seed=1, temperature=2, logit_bias=wanted)
    assert len(re.findall("[\x80-\u07ff]", whole)) > 10
    parts = [c.choices[0].text for c in client.completions.create(**kind, stream=True)]
    assert "".join(parts) == whole


def test_a_chat_is_a_transcript(client, model):
    messages = [
        {"role": "system", "content": "A street in Verona."},
        {"role": "user", "name": "JULIET", "content": [{"type": "text", "text": "Who is there?"}]},
    ]
    prompt = "System:\nA street in Verona.\n\nJULIET:\nWho is there?\n\nAssistant:\n"
    kind = {"model": MODEL, "messages": messages, "seed": 4}
    found = client.chat.completions.create(**kind, logprobs=True, top_logprobs=2)
    wanted = generated(model, prompt, 512, ["\n\n"], seed=4)
    choice = found.choices[0]
    assert (choice.message.role, choice.message.content) == ("assistant", wanted)
    assert (choice.finish_reason, found.object) == ("stop", "chat.completion")
    assert bytes(b for row in choice.logprobs.content for b in row.bytes).decode() == wanted
    assert all(len(row.top_logprobs) == 2 for row in choice.logprobs.content)
    chunks = list(client.chat.completions.create(**kind, stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == wanted
    assert [c.choices[0].finish_reason for c in chunks][-2:] == [None, "stop"]
    short = client.chat.completions.create(**kind, max_completion_tokens=5)
    assert short.choices[0].finish_reason == "length"


def test_grammars_hold(client, model):
    found = client.completions.create(
        model=MODEL, prompt="Tel. ", seed=1, extra_body={"grammar": "[0-9]{3}-[0-9]{4}"}
    ).choices[0]
    assert re.fullmatch("[0-9]{3}-[0-9]{4}", found.text) and found.finish_reason == "stop"
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 9}},
    }
    schema |= {"required": ["age"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    messages = [{"role": "user", "content": "Age?"}]
    chat = client.chat.completions.create(
        model=MODEL, messages=messages, response_format=wanted, seed=1
    )
    assert list(json.loads(chat.choices[0].message.content)) == ["age"]
    grammar = Grammar("json_schema", json.dumps(schema))
    prompt = "User:\nAge?\n\nAssistant:\n"
    assert chat.choices[0].message.content == generated(
        model, prompt, 512, ["\n\n"], grammar, seed=1
    )


def test_a_path_is_a_grammar_like_any_other(server, tmp_path):
    """The runtime's command reads a grammar that ends in .json from a file."""
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    text = text_of(server, grammar=str(path), max_tokens=300)
    assert re.fullmatch(str(path), text)


def test_errors_are_openais(client):
    with pytest.raises(openai.NotFoundError) as refusal:
        client.completions.create(model="gpt-5", prompt="A")
    assert refusal.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt="A", temperature=3)
    assert refusal.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refusal:
        client.completions.create(model=MODEL, prompt="A", suffix="B")
    assert "suffix" in refusal.value.message


def test_an_error_within_a_stream_is_an_event(client):
    """A grammar whose next byte is never to be drawn."""
    kind = {"model": MODEL, "prompt": "A", "max_tokens": 99, "logit_bias": {"99": -100}}
    grammar = {"grammar": "[ab]{40}c"}
    parts = []
    with pytest.raises(openai.APIError, match="excludes every byte"):
        for chunk in client.completions.create(**kind, stream=True, extra_body=grammar):
            parts.append(chunk.choices[0].text)
    assert re.fullmatch("[ab]{32}", "".join(parts))
    with pytest.raises(openai.BadRequestError, match="excludes every byte"):
        client.completions.create(**kind, extra_body=grammar)


def test_a_stream_that_is_closed_is_not_computed(server, client):
    with client.completions.create(
        model=MODEL, prompt="A", max_tokens=16_384, stream=True
    ) as stream:
        next(iter(stream))
    before = server.metric("tsm_generated_bytes_total")
    while server.metric("tsm_running_requests"):
        time.sleep(0.01)
    assert server.metric("tsm_generated_bytes_total") - before < 4_000


def test_tokens_and_back(server):
    url = f"http://127.0.0.1:{server.port}"
    found = httpx.post(f"{url}/tokenize", json={"prompt": "é!", "return_token_strs": True}).json()
    assert found["tokens"] == [0xC3, 0xA9, 33]
    assert found["token_strs"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
    back = httpx.post(f"{url}/detokenize", json={"tokens": found["tokens"]}).json()
    assert back == {"prompt": "é!"}
    info = httpx.get(f"{url}/tokenizer_info").json()
    assert (info["vocab_size"], info["bos_token"], info["eos_token"]) == (256, "\n", None)


def test_the_chat_template_is_the_transcript(server):
    import jinja2

    info = json.loads(get(server.port, "/tokenizer_info"))
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(
        info["chat_template"]
    )
    messages = [{"role": "user", "content": "Hi"}, {"role": "user", "name": "B", "content": "Ho"}]
    shown = template.render(messages=messages, add_generation_prompt=True)
    assert shown == "User:\nHi\n\nB:\nHo\n\nAssistant:\n"


# llm's own client of OpenAI's servers


def test_llm_writes_logs_stops_and_refuses(server, model, tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path))
    one = {"model_name": MODEL, "api_base": f"http://127.0.0.1:{server.port}/v1"}
    models = [{**one, "model_id": "plain", "completion": True}, {**one, "model_id": "chat"}]
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))  # which is YAML

    def llm(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("llm"), "-m", name, "ROMEO:", *arguments]
        command = [str(part) for part in command]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    text = generated(model, "ROMEO:", 100, seed=7)
    options = ("-o", "seed", 7, "-o", "max_tokens", 100)
    for extra in ((), ("--no-stream",), ("-o", "logprobs", 3)):
        assert llm("plain", *options, *extra).stdout == text + "\n", extra
    logs = [str(Path(sys.executable).with_name("llm")), "logs", "-n", "1", "--json"]
    (row,) = json.loads(subprocess.run(logs, capture_output=True, check=True).stdout)
    pieces = [piece["top_logprobs"] for piece in row["response_json"]["logprobs"]]
    assert sum(map(len, pieces)) == 100 and {3, 4} == {*map(len, itertools.chain(*pieces))}
    stop = text[20:24]
    found = llm("plain", *options, "-o", "stop", stop).stdout
    assert found == text[: text.index(stop)] + "\n"
    assert re.search(r"\d+ input, \d+ output", llm("chat", *options, "-u").stderr)
    refusal = llm("plain", "-o", "max_tokens", 10**9)
    assert refusal.returncode == 1 and "max_tokens" in refusal.stderr
    assert "Traceback" not in refusal.stderr


# States and caches


def test_a_state_goes_on_to_the_bit(server, model):
    whole = generated(model, "ROMEO:", 300, seed=9, temperature=0.7)
    parts, state, settings = [], None, {"prompt": "ROMEO:", "seed": 9, "temperature": 0.7}
    for count in (1, 99, 0, 150, 50):
        fields = {"state": state} if state else settings
        found = answered(server, max_tokens=count, return_state=True, **fields)
        parts.append(found["choices"][0]["text"])
        state = found["choices"][0]["state"]
    assert "".join(parts) == whole


def test_a_resumed_text_never_cuts_a_character(server, model):
    bias = {str(byte): 12 for byte in range(0xC3, 0xC8)} | {str(b): 11 for b in range(0x80, 0xC0)}
    settings = {"prompt": "A", "seed": 1, "temperature": 2, "logit_bias": bias}
    wanted = {int(byte): float(value) for byte, value in bias.items()}
    whole = generated(model, "A", 120, seed=1, temperature=2, logit_bias=wanted)
    text, rows, state = "", 0, None
    for _ in range(120):
        fields = {"state": state} if state else settings
        (choice,) = answered(server, max_tokens=1, return_state=True, logprobs=0, **fields)[
            "choices"
        ]
        text, state = text + choice["text"], choice["state"]
        rows += len(choice["logprobs"]["tokens"])
    (last,) = answered(server, max_tokens=0, state=state)["choices"]
    assert (text + last["text"], rows) == (whole, 120)


def test_a_state_takes_more_prompt_and_other_settings(server, model):
    state = answered(server, prompt="ROMEO:", seed=1, max_tokens=20, return_state=True)
    state = state["choices"][0]["state"]
    text = text_of(server, state=state, prompt="\n\nJULIET:\n", temperature=0.5, max_tokens=40)
    stream = model.stream(Sampling(temperature=1.0, seed=1))
    stream.feed("ROMEO:")
    list(stream.generate_bytes(20))
    stream.feed("\n\nJULIET:\n")
    stream.sampling = stream.sampling.replace(temperature=0.5)
    assert text == "".join(stream.generate(40))


def test_foreign_and_damaged_states_are_refused(server, tmp_path):
    state = answered(server, prompt="A", max_tokens=1, return_state=True)["choices"][0]["state"]
    whole = base64.urlsafe_b64decode(state)
    generator = random.Random(0)
    damaged = ["", "A", "!", "é", state[:-8], state + "AAAA", "A" * len(state)]
    for _ in range(50):
        data = bytearray(whole)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        damaged.append(base64.urlsafe_b64encode(data).decode())
    for other in damaged:
        refused(asked(server, state=other, max_tokens=1), 400, "state")
    with Served() as another:  # with a key of its own
        refused(asked(another, state=state, max_tokens=1), 400, "state")
    assert text_of(server, state=state, max_tokens=1)


def test_a_cached_prompt_changes_nothing_but_what_is_read(server, model):
    prompt = "".join(f"{n}. What, ho! apothecary!\n" for n in range(40))
    wanted = generated(model, prompt, 40, seed=5)
    fields = {"prompt": prompt, "seed": 5, "max_tokens": 40}
    for cached in (0, len(prompt) // 256 * 256):
        found = answered(server, **fields)
        assert found["choices"][0]["text"] == wanted
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    longer = answered(server, **{**fields, "prompt": prompt + "More."})
    assert longer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    salted = answered(server, **fields, cache_salt="mine")
    assert salted["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert salted["choices"][0]["text"] == wanted


def test_a_cached_prompt_has_nothing_of_the_request_that_read_it(server, model):
    prompt = "".join(f"{n}. A plague o' both your houses!\n" for n in range(20))
    settings = {"temperature": 0.3, "logit_bias": {"101": -100}, "repetition_penalty": 2}
    text_of(server, prompt=prompt, seed=1, max_tokens=9, grammar="[0-9]{9}", **settings)
    wanted = generated(model, prompt, 40, seed=2)
    assert text_of(server, prompt=prompt, seed=2, max_tokens=40) == wanted


def test_a_cache_in_redis_is_shared_and_may_fail(tmp_path, model):
    program = shutil.which("redis-server")
    assert program, "wanted apt-get install redis-server"
    port = bench.free_port()
    key = tmp_path / "state.key"
    key.write_text("k" * 64)
    command = [program, "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    redis = subprocess.Popen([*command, "--bind", "127.0.0.1"], stdout=subprocess.DEVNULL)
    options = ("--redis", f"redis://127.0.0.1:{port}", "--state-key-file", key)
    prompt = "".join(f"{n}. Good night, good night!\n" for n in range(40))
    fields = {"prompt": prompt, "seed": 5, "max_tokens": 20}
    wanted = generated(model, prompt, 20, seed=5)

    def cached(server: Served, wait: bool = False) -> int:
        until = time.monotonic() + 10
        while True:
            found = answered(server, **fields)
            assert found["choices"][0]["text"] == wanted
            count = found["usage"]["prompt_tokens_details"]["cached_tokens"]
            if count or not wait or time.monotonic() > until:
                return count

    try:
        with contextlib.ExitStack() as stack:
            _wait_for_port(port)
            first, second, third = (stack.enter_context(Served(*options)) for _ in range(3))
            cached(first)
            with socket.create_connection(("127.0.0.1", port)) as raw:  # what is in it
                deadline = time.monotonic() + 10
                while b":1\r\n" not in _redis(raw, "DBSIZE") and time.monotonic() < deadline:
                    time.sleep(0.02)
                names = _redis(raw, "KEYS *")
                assert b"tsm:prompt:" in names
            assert cached(second, wait=True) == len(prompt) // 256 * 256
            # A forged entry is a miss.
            name = re.search(rb"tsm:prompt:[0-9a-f]{64}", names)[0].decode()
            with socket.create_connection(("127.0.0.1", port)) as raw:
                _redis(raw, f"SET {name} forged")
            assert cached(third) == 0
            redis.kill()
            redis.wait()
            fields["prompt"] = prompt = "x" + prompt
            wanted = generated(model, prompt, 20, seed=5)
            cached(first)
            assert get(first.port, "/health")
    finally:
        redis.kill()
        redis.wait()


def test_a_redis_that_does_not_answer_is_gone_without(model):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}"
        with Served("--redis", url) as server:
            text = text_of(server, prompt="A" * 600, seed=1, max_tokens=9)
            assert text == generated(model, "A" * 600, 9, seed=1)
            assert "WARNING Redis: slow; without it for" in server.logged()


def _redis(raw: socket.socket, command: str) -> bytes:
    raw.sendall(command.encode() + b"\r\n")
    return raw.recv(65_536)


def _wait_for_port(port: int) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


# Many at once


def test_streams_at_once_are_each_the_same_alone():
    found = bench.measure_load(requests=150)
    assert found["wrong_texts"] == found["still_running"] == found["warnings"] == 0
    assert found["whole_texts"] + found["left"] == 150
    assert found["left"] > 40 and found["whole_texts"] > 40
    assert found["rss_mb"] < 60


def test_resumed_sessions_cost_the_server_nothing():
    found = bench.measure_sessions(requests=300)
    assert found["wrong_texts"] == 0
    assert found["rss_mb"] < 60
    assert found["rss_mb"] - found["rss_mb_after_a_tenth"] < 1


def test_nothing_is_computed_for_those_who_left():
    found = bench.measure_leave(times=3)
    # Of 16,384; benchmarks/server.py leave counts them on a machine that does nothing else.
    assert found["bytes_after_leaving_max"] < 4_000


def test_sigterm_ends_all_streams_with_a_reason():
    found = bench.measure_sigterm(grace_seconds=1)
    assert found["finish_reasons"] == {"length": 64}
    assert found["exit_code"] == 0


def test_replicas_behind_nginx_go_on_with_each_others_sessions():
    found = bench.measure_replicas(seconds=12, kill_seconds=3)
    assert found["wrong_texts"] == 0
    assert found["kills"] >= 2 and found["requests"] > 40


def test_lm_eval_gives_the_loss_of_evaluate():
    assert bench.measure_lm_eval(windows=24)["difference"] < 1e-5


def test_sigterm_lets_short_texts_end_and_takes_no_new_ones(model):
    with Served("--grace-seconds", 30) as server:
        connection = connect(server.port)
        chunks = bench.stream(connection, {"prompt": "A", "max_tokens": 3000, "seed": 1})
        text = next(chunks)["text"]
        server.process.send_signal(signal.SIGTERM)
        text += "".join(choice["text"] for choice in chunks)
        assert text == generated(model, "A", 3000, seed=1)
        assert server.process.wait(30) == 0
        with pytest.raises(OSError):
            get(server.port, "/health")


def test_ctrl_c_ends_it_at_once():
    with Served("--grace-seconds", 600) as server:
        chunks = bench.stream(connect(server.port), {"prompt": "A", "max_tokens": 16_384})
        next(chunks)
        server.process.send_signal(signal.SIGINT)
        assert [choice["finish_reason"] for choice in chunks][-1] == "length"
        assert server.process.wait(30) == 130


def test_a_full_queue_is_429_and_a_place_comes_free(model):
    with Served("--streams", 1, "--queue", 1) as server:
        long = {"prompt": "A", "max_tokens": 16_384}
        first = bench.stream(connect(server.port), long)
        next(first)
        waiting = connect(server.port)
        bench._send(waiting, long)
        while server.metric("tsm_waiting_requests") != 1:
            time.sleep(0.01)
        response = asked(server, prompt="A", max_tokens=1)
        assert "wait" in refused(response, 429)
        assert int(response.headers["retry-after"]) >= 1
        waiting.sock.close()  # who waits no more leaves the queue
        first.close()
        while server.metric("tsm_running_requests") + server.metric("tsm_waiting_requests"):
            time.sleep(0.01)
        assert text_of(server, prompt="A", seed=1, max_tokens=9) == generated(model, "A", 9, seed=1)


def test_a_request_has_its_time():
    with Served("--request-seconds", 1, "--streams", 1) as server:
        chunks = bench.stream(connect(server.port), {"prompt": "A", "max_tokens": 16_384})
        next(chunks)
        waits = asked(server, prompt="A", max_tokens=16_384)  # in the queue, then for a part
        assert [choice["finish_reason"] for choice in chunks][-1] == "length"
        if waits.status_code == 200:
            assert waits.json()["choices"][0]["finish_reason"] == "length"
        else:
            refused(waits, 503)


# Abuse: a proper refusal or a closed socket, and the next request is answered


@pytest.fixture()
def alive(server, model):
    yield
    assert text_of(server, prompt="B", seed=1, max_tokens=9) == generated(model, "B", 9, seed=1)
    assert server.process.poll() is None
    assert "Traceback" not in server.logged()


@pytest.fixture(scope="module")
def strict():
    """Short times, few connections, a key."""
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"tsm-test-keys-{os.getpid()}"
    path.write_text("first-key\nsecond-key\nschlüssel\n")
    options = ("--header-seconds", 1, "--body-seconds", 1, "--read-seconds", 1)
    options += ("--output-bytes", 1 << 17)  # more than a socket holds
    options += (
        "--connections",
        20,
        "--api-key-file",
        path,
        "--allow-origin",
        "https://pad.example",
    )
    with Served(*options) as server:
        yield server
    path.unlink()


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost:80:80", "", "[::2]:80", "LOCALHOSTX"],
)
def test_another_host_is_refused(server, alive, host):
    """DNS rebinding."""
    response = httpx.get(f"http://127.0.0.1:{server.port}/v1/models", headers={"Host": host})
    assert response.status_code in (400, 403)
    for own in ("localhost", f"LocalHost:{server.port}", "[::1]:1"):
        response = httpx.get(f"http://127.0.0.1:{server.port}/v1/models", headers={"Host": own})
        assert response.status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:3000"])
def test_web_pages_are_refused(server, alive, origin):
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    body = {"model": MODEL, "prompt": "A"}
    response = httpx.post(url, json=body, headers={"Origin": origin})
    refused(response, 403)
    assert "access-control-allow-origin" not in response.headers
    refused(httpx.options(url, headers={"Origin": origin}), 403)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "", "application/json2"]
)
def test_a_simple_post_is_415(server, alive, kind):
    body = json.dumps({"model": MODEL, "prompt": "A"})
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    refused(httpx.post(url, content=body, headers={"Content-Type": kind}), 415)


def test_a_page_that_is_allowed_may_ask(strict):
    url = f"http://127.0.0.1:{strict.port}/v1/models"
    origin = {"Origin": "https://pad.example"}
    assert httpx.options(url, headers=origin).status_code == 204
    response = httpx.get(url, headers={**origin, "Authorization": "Bearer second-key"})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://pad.example"


@pytest.mark.parametrize(
    "value", ["", "Bearer", "Bearer first-ke", "Basic first-key", "first-key", "Bearer \xff"]
)
def test_without_the_key_nothing(strict, value):
    headers = {"Authorization": value.encode("latin-1")} if value else {}
    for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
        response = httpx.get(f"http://127.0.0.1:{strict.port}{path}", headers=headers)
        refused(response, 401)
    assert httpx.get(f"http://127.0.0.1:{strict.port}/health", headers=headers).status_code == 200


def test_a_key_beyond_ascii_is_its_bytes(strict):
    headers = {"Authorization": "Bearer schlüssel".encode()}
    assert httpx.get(f"http://127.0.0.1:{strict.port}/v1/models", headers=headers).is_success


def test_keys_are_apart_and_never_logged(strict):
    url = f"http://127.0.0.1:{strict.port}/v1/completions"
    body = {"model": MODEL, "prompt": "C" * 600, "max_tokens": 1, "return_state": True}
    first, second = ({"Authorization": f"Bearer {name}-key"} for name in ("first", "second"))
    found = httpx.post(url, json=body, headers=first).json()
    cached = httpx.post(url, json=body, headers=first).json()
    apart = httpx.post(url, json=body, headers=second).json()
    counts = [f["usage"]["prompt_tokens_details"]["cached_tokens"] for f in (found, cached, apart)]
    assert counts == [0, 512, 0]
    resumed = {"model": MODEL, "state": found["choices"][0]["state"], "max_tokens": 1}
    assert httpx.post(url, json=resumed, headers=first).status_code == 200
    refused(httpx.post(url, json=resumed, headers=second), 400, "state")
    assert "first-key" not in strict.logged() and "second-key" not in strict.logged()


NUMBERS = ["max_tokens", "temperature", "top_p", "n", "best_of", "logprobs", "presence_penalty"]
NUMBERS += ["frequency_penalty", "seed", "top_k", "min_p", "typical_p", "repetition_penalty"]
NUMBERS += ["penalty_window"]


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_gets_through_that_is_none(server, alive, name):
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    for value in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        str(2**63),
        str(-(2**63) - 1),
        '"1"',
        "true",
        "[]",
        "{}",
        "9" * 400,
        "-1e308",
    ):
        body = f'{{"model": "{MODEL}", "prompt": "A", "max_tokens": 1, "{name}": {value}}}'
        if name == "max_tokens":
            body = f'{{"model": "{MODEL}", "prompt": "A", "max_tokens": {value}}}'
        response = httpx.post(url, content=body, headers=JSON)
        refused(response, 400)


def test_fuzzed_fields_are_refused_or_answered(server, alive):
    generator = random.Random(5)
    values = [
        None,
        True,
        0,
        -1,
        1.5,
        2**31,
        2**63,
        1e308,
        "",
        "a",
        "\0",
        "é" * 70,
        [],
        [1],
        [[]],
        [[256]],
        [-1],
        [None],
        ["a", 1],
        {},
        {"a": 1},
        {"101": 1e308},
        [["a"]],
        {"type": "x"},
    ]
    fields = list(NUMBERS) + ["prompt", "stop", "logit_bias", "stream_options", "response_format"]
    fields += ["grammar", "state", "cache_salt", "echo", "stream", "user", "suffix", "model", "x"]
    connection = connect(server.port)
    for _ in range(300):
        body = {"model": MODEL, "prompt": "A", "max_tokens": 2}
        body |= {
            generator.choice(fields): generator.choice(values)
            for _ in range(generator.randint(1, 3))
        }
        connection.request("POST", "/v1/completions", json.dumps(body), JSON)
        response = connection.getresponse()
        data = response.read()
        assert response.status in (200, 400, 404), (body, data)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "m", "prompt": "\xff"}',
        b'{"model": "m", "prompt": "\\ud800"}',
        b'{"model": "m", "logit_bias": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b'{"model": "m", "prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "m", "response_format": {"type": "json_schema", "json_schema": {"schema": '
        + b'{"a":' * 50_000
        + b"1"
        + b"}" * 50_000
        + b"}}}",
    ],
    ids=range(9),
)
def test_no_body_gets_through_that_is_none(server, alive, body):
    url = f"http://127.0.0.1:{server.port}/v1/completions"
    refused(httpx.post(url, content=body, headers=JSON), 400)


def schema_of(schema: dict) -> dict:
    return {"type": "json_schema", "json_schema": {"schema": schema}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ["A"] * 40_000, "max_tokens": 0}, "max_tokens"),
        ({"prompt": "A", "max_tokens": 40_000}, "max_tokens"),
        ({"prompt": "A", "max_tokens": 1000, "n": 100}, "max_tokens"),
        ({"prompt": "A" * 100_000}, "prompt"),
        ({"prompt": [1, "A"]}, "prompt"),
        ({"prompt": [256]}, "prompt"),
        ({"prompt": "A", "n": 3, "best_of": 2}, "best_of"),
        ({"prompt": "A", "best_of": 2, "stream": True}, "best_of"),
        ({"prompt": "A", "stream_options": {"include_usage": True}}, "stream_options"),
        ({"prompt": "A", "stop": ""}, "stop"),
        ({"prompt": "A", "stop": ["a"] * 17}, "stop"),
        ({"prompt": "A", "logit_bias": {"256": 1}}, "logit_bias"),
        ({"prompt": "A", "logit_bias": {"१": 1}}, "logit_bias"),
        ({"prompt": "A", "logit_bias": {str(b): -100 for b in range(256)}}, "logit_bias"),
        ({"prompt": "A", "grammar": "("}, "grammar"),
        ({"prompt": "A", "grammar": "a", "response_format": {"type": "json_object"}}, "grammar"),
        ({"prompt": "A", "response_format": {"type": "json_schema"}}, "response_format"),
        ({"prompt": "A", "temprature": 1}, "temprature"),
        # Small requests whose answers would take gigabytes.
        ({"prompt": ["A"] * 17, "max_tokens": 0, "return_state": True}, "return_state"),
        ({"prompt": "A", "max_tokens": 32_000, "logprobs": 20}, "logprobs"),
        (
            {"prompt": "A", "response_format": schema_of({"enum": ["A" * 70_000]})},
            "response_format",
        ),
        ({"prompt": "A", "response_format": schema_of({"multipleOf": 99_999_989})}, "grammar"),
    ],
)
def test_what_cannot_be_done_is_said(server, alive, fields, param):
    refused(asked(server, **fields), 400, param)


def test_a_body_of_5_mb_is_413(server, alive):
    refused(asked(server, prompt="A" * 5_000_000), 413)

    def pieces():
        yield b'{"model": "x", "prompt": "'
        for _ in range(80):
            yield b"A" * 65_536

    url = f"http://127.0.0.1:{server.port}/v1/completions"
    refused(httpx.post(url, content=pieces(), headers=JSON), 413)


def raw(server: Served, data: bytes = b"", *more: bytes, pause: float = 0.3) -> bytes:
    """What comes back before the server closes the socket."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(data)
            for piece in more:
                time.sleep(pause)
                connection.sendall(piece)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65_536):
                received += piece
        return received


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer first-key\r\n"
HEAD += b"Content-Type: application/json\r\n"


def test_slow_clients_are_closed(strict):
    start = time.monotonic()
    assert raw(strict) == b""  # nothing at all
    assert raw(strict, b"GET /health HT", *[b"T"] * 10) == b""  # a head byte by byte
    body = raw(strict, HEAD + b"Content-Length: 100\r\n\r\n{", *[b" "] * 10)
    assert body.startswith(b"HTTP/1.1 408 ")
    chunked = raw(strict, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\n \r\n"] * 10)
    assert chunked.startswith(b"HTTP/1.1 408 ")
    # A body that nobody asked for, after the answer.
    unread = b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\n"
    assert raw(strict, unread, *[b" "] * 30).startswith(b"HTTP/1.1 200 ")
    assert time.monotonic() - start < 120
    assert get(strict.port, "/health")


def test_a_client_that_does_not_read_is_closed(strict):
    """Its window full, it is dropped, and what it asked for is not computed to the end."""
    body = json.dumps(
        {
            "model": MODEL,
            "prompt": "A",
            "max_tokens": 16_000,
            "stream": True,
            "logprobs": 20,
            "temperature": 2,
        }
    ).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", strict.port))
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until = time.monotonic() + 90
        while "POST /v1/completions 200 left" not in strict.logged():
            assert time.monotonic() < until
            time.sleep(0.1)
    assert get(strict.port, "/health")


def test_no_client_holds_up_the_others_by_what_it_sends():
    """A body in chunks of a byte costs 20 us each; of what comes at once, no more is taken than
    others can wait for."""
    taken = []

    class Noted(limited(Settings())):
        def data_received(self, data: bytes) -> None:
            taken.append(len(data))

    async def send(total: int) -> None:
        config, state = uvicorn.Config(lambda: None), ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Noted(config, state, {}), "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"1\r\n \r\n" * (total // 6))
            while sum(taken) < total // 6 * 6:
                await asyncio.sleep(0.01)
            writer.close()

    asyncio.run(asyncio.wait_for(send(1 << 20), 60))
    assert max(taken) <= READ_BYTES


def test_too_many_connections_are_closed(strict):
    sockets = [socket.create_connection(("127.0.0.1", strict.port)) for _ in range(40)]
    try:
        closed = 0
        for connection in sockets:
            connection.settimeout(0.2)
            try:
                closed += connection.recv(1) == b""
            except ConnectionResetError:
                closed += 1
            except TimeoutError:
                pass
        assert closed >= 20
    finally:
        for connection in sockets:
            connection.close()
    until = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if get(strict.port, "/health"):
                break
        assert time.monotonic() < until


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\x1b[31mred HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=range(7),
)
def test_what_is_no_http_is_400(server, alive, data):
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        with contextlib.suppress(OSError):  # closed before all is sent
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65_536):
                received += piece
    assert received == b"" or re.match(rb"HTTP/1.1 4\d\d ", received)


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/models/",
        "/../../etc/passwd",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/%00",
        "/v1/completions/",
        "//evil.example/",
        "/docs",
        "/v1/models/%F0%9F%92%A9",
    ],
)
def test_there_is_no_other_path(server, alive, path):
    connection = connect(server.port)
    connection.request("GET", path)
    response = connection.getresponse()
    data = response.read()
    assert response.status == 404 and json.loads(data)["error"]["message"]
    assert not response.getheader("location")


def test_another_method_is_405(server, alive):
    for method, path in (("GET", "/v1/completions"), ("DELETE", "/v1/models"), ("PUT", "/health")):
        response = httpx.request(method, f"http://127.0.0.1:{server.port}{path}")
        refused(response, 405)
        assert response.headers["allow"]


def test_logs_are_lines_whatever_is_asked(server):
    path = "/%1b%5b31mred%0d%0a2026-01-01 INFO POST /forged 200%0a%e2%80%a8%c2%9b".replace(
        " ", "%20"
    )
    httpx.get(f"http://127.0.0.1:{server.port}{path}")
    logged = server.logged()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", logged)
    lines = [line for line in logged.split("\n") if "forged" in line]
    assert len(lines) == 1 and r"\x1b[31mred\r\n" in lines[0]


def test_no_connection_goes_out(server, alive):
    """What the process has open: the listening socket and the clients'."""
    asked(server, prompt="A", max_tokens=1, grammar="https://example.com/[a-z]")
    schema = {"$ref": "https://example.com/schema.json"}
    wanted = {"type": "json_schema", "json_schema": {"schema": schema}}
    refused(asked(server, prompt="A", max_tokens=1, response_format=wanted), 400)
    inodes = set()
    for fd in Path(f"/proc/{server.process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(fd)))
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{server.process.pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[9] in inodes:
                assert int(columns[1].split(":")[1], 16) == server.port


def test_metrics_are_well_formed(server):
    from prometheus_client.parser import text_string_to_metric_families

    asked(server, prompt="A", max_tokens=1)
    text = get(server.port, "/metrics").decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert found["tsm_generated_bytes"].samples[0].value > 0
    paths = {s.labels["path"] for s in found["tsm_requests"].samples if "path" in s.labels}
    assert paths <= {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/health",
        "/metrics",
        "/openapi.json",
        "other",
    }


def test_schemathesis_finds_nothing(server):
    program = Path(sys.executable).with_name("schemathesis")
    url = f"http://127.0.0.1:{server.port}"
    settings = Path(__file__).with_name("schemathesis.toml")
    command = [program, "--config-file", settings, "run", f"{url}/openapi.json"]
    command += ["--max-examples", 10, "--seed", 1, "--no-color"]
    done = subprocess.run([str(p) for p in command], capture_output=True, text=True, cwd="/tmp")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Traceback" not in server.logged()


# The command


def served(*options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, APP / "serve.py", *options]
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--address", "0.0.0.0"], "wanted --api-key-file"),
        (["--address", "::"], "wanted --api-key-file"),
        (["--address", "example.com"], "wanted an IP address"),
        (["--api-key-file", "/nowhere"], "no such file"),
        (["--api-key-file", "/dev/null"], "wanted one a line"),
        (["--state-key-file", "/dev/null"], "wanted 32 or more"),
        (["--port", "70000"], "wanted 0 to 65535"),
        (["--streams", "0"], "wanted a whole number"),
        (["--redis", "http://localhost"], "--redis"),
        (["/nowhere.tflite"], "/nowhere.tflite"),
    ],
)
def test_a_mistake_is_one_line(options, says):
    done = served(*options)
    assert done.returncode == 2 and says in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_a_port_in_use_is_one_line(server):
    done = served("--port", server.port)
    assert done.returncode == 2 and "in use" in done.stderr and done.stderr.count("\n") == 1


def test_another_address_with_a_key(tmp_path):
    (tmp_path / "keys").write_text("a-key")
    with Served("--address", "0.0.0.0", "--api-key-file", tmp_path / "keys") as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with openai.OpenAI(base_url=url, api_key="a-key") as client:
            assert client.models.list().data
        other = openai.OpenAI(base_url=url, api_key="another", max_retries=0)
        with other, pytest.raises(openai.AuthenticationError):
            other.models.list()


# The pages and what is deployed


def blocks(page: Path) -> list[list[str]]:
    """The commands of each `sh` block."""
    return [
        block.splitlines()
        for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S)
    ]


def test_the_commands_of_the_readme_run(tmp_path):
    hidden = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "libtsm*")
    for name in ("runtime", "apps/server", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=hidden)
    install, ask = blocks(APP / "README.md")
    python = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{python}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)

    def run(line: str) -> str:
        done = subprocess.run(
            line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    help_text = [run(line) for line in install][-1]
    assert "--state-key-file" in help_text
    for name in re.findall(r"`(--[a-z-]+)`", (APP / "README.md").read_text()):
        assert name in help_text
    with Served(program=(tmp_path / ".venv-server/bin/tsm-server",)) as server:
        for line in ask:
            answer = (
                json.loads(run(line.replace("8080", str(server.port))))
                if "-sN" not in line
                else None
            )
            if answer is None:
                assert run(line.replace("8080", str(server.port))).endswith("data: [DONE]\n\n")
            else:
                assert "error" not in answer


def test_what_is_deployed_is_well_formed(tmp_path):
    import kubernetes_validate
    import yaml

    for document in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()):
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
        if document["kind"] == "Deployment":
            (container,) = document["spec"]["template"]["spec"]["containers"]
    unit = (DEPLOY / "tsm-server.service").read_text()
    image = (APP / "Containerfile").read_text()
    for source in re.findall(r"^COPY (?!--from)(\S+)", image, re.M):
        assert (ROOT / source).exists()
    known = set(re.findall(r"--[a-z-]+", served("--help").stdout))
    in_image = json.loads(re.search(r"^CMD (.*)$", image, re.M)[1])
    in_unit = unit[unit.index("ExecStart=") : unit.index("LoadCredential")].split()
    for option in [*container["args"], *in_image, *in_unit]:
        assert not option.startswith("--") or option.partition("=")[0] in known
    # Programs that are not here must not be missed.
    program = tmp_path / "tsm-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "tsm-server.service").write_text(
        unit.replace("/opt/tsm/bin/tsm-server", str(program))
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / "tsm-server.service"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
