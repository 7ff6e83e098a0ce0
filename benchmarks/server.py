"""The server of apps/server under load, as its users have it: real processes, sockets, clients.

    make test-apps-server        # makes build/server, the environment of this
    build/server/bin/python benchmarks/server.py
    build/server/bin/python benchmarks/server.py load --requests 1000
    build/server/bin/python benchmarks/server.py replicas --seconds 300

| part     | what it does                                                                       |
| -------- | ---------------------------------------------------------------------------------- |
| load     | streams at once, half of them left at random; each whole text against the same alone |
| sessions | resumed requests: the text against the unbroken one, the memory of the server      |
| leave    | bytes that are computed for a client that is gone                                  |
| sigterm  | SIGTERM under streams                                                              |
| replicas | three servers behind nginx (Debian's), one killed every 10 s, sessions that go on  |
| lm-eval  | lm-eval's local-completions against training/evaluate.py                           |
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import itertools
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from results import append

ROOT = Path(__file__).resolve().parent.parent
SERVE = ROOT / "apps/server/serve.py"
NGINX_CONF = ROOT / "apps/server/deploy/nginx.conf"
RESULTS = Path(__file__).parent / "server.jsonl"
MODEL = "shakespeare-int8"
START_SECONDS = 30
KILL_SECONDS = 10
STREAMS = 64

sys.path.insert(0, str(SERVE.parent))
import serve  # noqa: F401 (finds the runtime of this clone)

from tsm.runtime import Model, Sampling, load  # noqa: E402


class Served:
    """A server process. Usable in a `with` statement, which ends it."""

    def __init__(
        self,
        *options: object,
        port: int = 0,
        program: tuple[object, ...] = (sys.executable, SERVE),
    ) -> None:
        self.log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115 (until it is collected)
        command = [*program, "--port", port, *options]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.process = subprocess.Popen(
            [str(part) for part in command], stderr=self.log, env=environment
        )
        until = time.monotonic() + START_SECONDS
        while not (found := re.search(r"at http://\S+:(\d+)/v1", self.logged())):
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start: {self.logged()[-2000:]}")
            time.sleep(0.02)
        self.port = int(found[1])

    def logged(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024 / 1e6

    def metric(self, name: str) -> float:
        text = get(self.port, "/metrics").decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.M)[1])

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=120)


def get(port: int, path: str) -> bytes:
    connection = connect(port)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return body


def post(connection: http.client.HTTPConnection, body: dict[str, Any]) -> dict[str, Any]:
    """The answer of /v1/completions. Raises OSError or HTTPException where there is none."""
    _send(connection, body)
    response = connection.getresponse()
    answer = response.read()
    if response.status != 200:
        raise http.client.HTTPException(f"{response.status}: {answer[:200]}")
    return json.loads(answer)


def stream(connection: http.client.HTTPConnection, body: dict[str, Any]) -> Iterator[dict]:
    """The choices of a streamed answer, up to [DONE]. Raises OSError or HTTPException."""
    _send(connection, {**body, "stream": True})
    response = connection.getresponse()
    if response.status != 200:
        raise http.client.HTTPException(f"{response.status}: {response.read()[:200]}")
    while line := response.readline():
        if line == b"data: [DONE]\n":
            response.read()
            return
        if line.startswith(b"data: "):
            yield json.loads(line[6:])["choices"][0]
    raise http.client.HTTPException("no [DONE]")


def _send(connection: http.client.HTTPConnection, body: dict[str, Any]) -> None:
    data = json.dumps({"model": MODEL, **body})
    connection.request("POST", "/v1/completions", data, {"Content-Type": "application/json"})


def alone(model: Model, prompt: str, seed: int, count: int) -> str:
    """The text of a request that is computed by itself, by the runtime."""
    text = model.stream(Sampling(temperature=1.0, seed=seed))
    text.feed(prompt)
    return "".join(text.generate(count))


def canary(number: int) -> dict[str, Any]:
    """A request like no other."""
    prompt = f"CANARY {number:05} {random.Random(number).randbytes(8).hex()}:\n"
    return {"prompt": prompt, "seed": number, "max_tokens": 32 + number % 64}


def measure_load(requests: int = 10_000, streams: int = STREAMS) -> dict[str, Any]:
    texts: dict[int, str] = {}
    first_seconds: list[float] = []
    numbers = iter(range(requests))
    lock, left = threading.Lock(), collections.Counter()

    def ask(port: int) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            _progress("load", number, requests)
            chance = random.Random(-number)
            leaves_after = chance.randint(0, 4) if chance.random() < 0.5 else None
            connection, parts = connect(port), []
            started = time.perf_counter()
            for count, choice in enumerate(stream(connection, canary(number))):
                if not count:
                    first_seconds.append(time.perf_counter() - started)
                if count == leaves_after:
                    left["left"] += 1
                    break
                parts.append(choice["text"])
            else:
                texts[number] = "".join(parts)
            connection.close()

    with Served("--log-level", "warning") as server:
        started = time.perf_counter()
        with ThreadPoolExecutor(streams) as pool:
            for job in [pool.submit(ask, server.port) for _ in range(streams)]:
                job.result()
        seconds = time.perf_counter() - started
        drawn, rss_mb = server.metric("tsm_generated_bytes_total"), server.rss_mb()
        running = server.metric("tsm_running_requests")
        logged = server.logged()
    wrong = 0
    with load() as model:
        for count, (number, text) in enumerate(texts.items()):
            _progress("alone", count, len(texts))
            asked = canary(number)
            wrong += text != alone(model, asked["prompt"], asked["seed"], asked["max_tokens"])
    cuts = statistics.quantiles(first_seconds, n=20)
    return {
        "requests": requests,
        "streams": streams,
        "whole_texts": len(texts),
        "left": left["left"],
        "wrong_texts": wrong,
        "first_byte_p50_ms": cuts[9] * 1000,
        "first_byte_p95_ms": cuts[18] * 1000,
        "bytes_per_second": drawn / seconds,
        "requests_per_second": requests / seconds,
        "rss_mb": rss_mb,
        "still_running": running,
        "warnings": logged.count("\n") - 1,
    }


def measure_sessions(requests: int = 10_000, sessions: int = 20) -> dict[str, Any]:
    """Each session's requests go on from the state of the one before."""
    states, texts = [None] * sessions, [""] * sessions
    warm_up = requests // 10
    early_mb = 0.0
    with Served("--log-level", "warning") as server:
        connection = connect(server.port)
        for number in range(requests):
            _progress("sessions", number, requests)
            if number == warm_up:
                early_mb = server.rss_mb()
            which = number % sessions
            asked: dict[str, Any] = {"max_tokens": 8, "return_state": True}
            if states[which]:
                asked["state"] = states[which]
            else:
                asked |= {"prompt": f"SESSION {which}:\n", "seed": which}
            (choice,) = post(connection, asked)["choices"]
            states[which] = choice["state"]
            texts[which] += choice["text"]
        late_mb = server.rss_mb()
    with load() as model:
        wrong = sum(
            text
            != alone(model, f"SESSION {which}:\n", which, 8 * len(range(which, requests, sessions)))
            for which, text in enumerate(texts)
        )
    return {
        "resumed_requests": requests - sessions,
        "sessions": sessions,
        "wrong_texts": wrong,
        "rss_mb_after_a_tenth": early_mb,
        "rss_mb": late_mb,
        "state_bytes": len(states[0]),
    }


def measure_leave(times: int = 20) -> dict[str, Any]:
    """For a client that leaves after its first event, and one that leaves before its only one."""
    beyond = []
    with Served("--log-level", "warning") as server:
        for number, streamed in itertools.product(range(times), (True, False)):
            before = server.metric("tsm_generated_bytes_total")
            connection = connect(server.port)
            asked = {"prompt": "ROMEO:\n", "max_tokens": 16_384, "seed": number}
            if streamed:
                received = len(next(stream(connection, asked))["text"])
            else:
                _send(connection, asked)
                time.sleep(0.02)
                received = server.metric("tsm_generated_bytes_total") - before
            # At the socket, as a process that dies does: http.client waits for the rest.
            connection.sock.close()
            connection.close()
            while server.metric("tsm_running_requests"):
                time.sleep(0.01)
            beyond.append(server.metric("tsm_generated_bytes_total") - before - received)
    beyond.sort()
    return {
        "times": len(beyond),
        "bytes_after_leaving_p50": statistics.median(beyond),
        "bytes_after_leaving_max": beyond[-1],
    }


def measure_sigterm(streams: int = STREAMS, grace_seconds: float = 2) -> dict[str, Any]:
    reasons: list[str | None] = []
    begun = threading.Barrier(streams + 1)

    def ask(port: int, seed: int) -> None:
        reason = None
        asked = {"prompt": f"STREAM {seed}:\n", "max_tokens": 16_384, "seed": seed}
        for count, choice in enumerate(stream(connect(port), asked)):
            if not count:
                begun.wait()
            reason = choice["finish_reason"]
        reasons.append(reason)

    with Served("--grace-seconds", grace_seconds) as server, ThreadPoolExecutor(streams) as pool:
        jobs = [pool.submit(ask, server.port, seed) for seed in range(streams)]
        begun.wait()
        started = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        for job in jobs:
            job.result()
        exit_code = server.process.wait(60)
        seconds = time.perf_counter() - started
    return {
        "streams": streams,
        "finish_reasons": dict(collections.Counter(reasons)),
        "exit_code": exit_code,
        "grace_seconds": grace_seconds,
        "seconds": seconds,
    }


@contextlib.contextmanager
def nginx(ports: list[int], folder: Path) -> Iterator[int]:
    """The shipped nginx.conf in front of servers at these ports."""
    port = free_port()
    conf = NGINX_CONF.read_text().replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    for shipped, ours in zip((8081, 8082, 8083), ports, strict=True):
        conf = conf.replace(f"127.0.0.1:{shipped}", f"127.0.0.1:{ours}")
    (folder / "nginx.conf").write_text(conf)
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if not program:
        raise FileNotFoundError("nginx is not installed, wanted: apt-get install nginx-light")
    command = [program, "-p", folder, "-c", "nginx.conf", "-e", "stderr", "-g", "daemon off;"]
    process = subprocess.Popen([str(p) for p in command], stderr=(folder / "log").open("w"))
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                if b"ok" in get(port, "/health"):
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((folder / "log").read_text()[-2000:])
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def measure_replicas(
    seconds: float = 300, sessions: int = 8, kill_seconds: float = KILL_SECONDS
) -> dict[str, Any]:
    """Sessions of small requests, every second one streamed, while servers are killed."""
    ends = time.monotonic() + seconds
    counts = collections.Counter()
    texts = [""] * sessions
    bytes_asked = [0] * sessions

    def ask(port: int, which: int) -> None:
        state, connection = None, connect(port)
        while time.monotonic() < ends:
            asked: dict[str, Any] = {"max_tokens": 64, "return_state": True}
            if state:
                asked["state"] = state
            else:
                asked |= {"prompt": f"SESSION {which}:\n", "seed": which}
            try:
                if counts["requests"] % 2:
                    choices = list(stream(connection, asked))
                else:
                    choices = post(connection, asked)["choices"]
            except (OSError, http.client.HTTPException, KeyError):
                # What was streamed of it is dropped; the state of before is asked again.
                counts["asked_again"] += 1
                connection.close()
                connection = connect(port)
                time.sleep(0.05)
                continue
            counts["requests"] += 1
            state = choices[-1]["state"]
            texts[which] += "".join(choice["text"] for choice in choices)
            bytes_asked[which] += 64

    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        key = Path(folder) / "state.key"
        key.write_text(os.urandom(32).hex())
        options = ("--state-key-file", key, "--log-level", "warning")
        servers = [Served(*options) for _ in range(3)]
        stack.callback(lambda: [server.__exit__() for server in servers])
        port = stack.enter_context(nginx([server.port for server in servers], Path(folder)))
        with ThreadPoolExecutor(sessions) as pool:
            jobs = [pool.submit(ask, port, which) for which in range(sessions)]
            for number in itertools.count():
                time.sleep(max(0, min(kill_seconds, ends - time.monotonic())))
                if time.monotonic() >= ends:
                    break
                _progress("replicas", int(time.monotonic() - ends + seconds), int(seconds))
                victim = servers[number % 3]
                victim.process.kill()
                victim.process.wait()
                servers[number % 3] = Served(*options, port=victim.port)
                counts["kills"] += 1
            for job in jobs:
                job.result()
    with load() as model:
        wrong = sum(
            text != alone(model, f"SESSION {which}:\n", which, bytes_asked[which])
            for which, text in enumerate(texts)
        )
    return {
        "seconds": seconds,
        "sessions": sessions,
        "kills": counts["kills"],
        "requests": counts["requests"],
        "asked_again": counts["asked_again"],
        "bytes": sum(bytes_asked),
        "wrong_texts": wrong,
    }


TASK = """\
task: held_out
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - {{metric: bits_per_byte}}
"""


def measure_lm_eval(windows: int = 435, window: int = 256) -> dict[str, Any]:
    """The first windows of the held-out tenth of Tiny Shakespeare, each from no context."""
    import math

    limit = windows * window + 1
    evaluate = [sys.executable, ROOT / "training/evaluate.py", ROOT / f"runtime/{MODEL}.tflite"]
    evaluate += ["--limit", limit, "--window", window, "--json"]
    done = subprocess.run([str(p) for p in evaluate], capture_output=True, text=True, check=True)
    wanted = json.loads(done.stdout)
    path = re.match(r"(.*), its held-out part: bytes ([\d,]+) to", wanted["text"])
    start = int(path[2].replace(",", ""))
    text = Path(path[1]).read_bytes()[start : start + limit]
    with tempfile.TemporaryDirectory() as folder, Served("--log-level", "warning") as server:
        data = Path(folder) / "held_out.jsonl"
        data.write_text(json.dumps({"text": text[1:].decode()}) + "\n")
        (Path(folder) / "held_out.yaml").write_text(TASK.format(data=data))
        # lm-eval keeps one token of the context and one of its own out of max_length.
        model = f"model={MODEL},base_url=http://127.0.0.1:{server.port}/v1/completions"
        model += f",max_length={window + 2},custom_prefix_token_id={text[0]}"
        command = [Path(sys.executable).with_name("lm-eval"), "run", "--model", "local-completions"]
        command += ["--model_args", model, "--tasks", "held_out", "--include_path", folder]
        command += ["--output_path", folder, "--batch_size", 8]
        # Nothing is fetched: it is to find what it needs here.
        offline = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": folder}
        started = time.perf_counter()
        subprocess.run(
            [str(part) for part in command],
            env={**os.environ, **offline},
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - started
        (found,) = Path(folder).glob("**/results_*.json")
        bits = json.loads(found.read_text())["results"]["held_out"]["bits_per_byte,none"]
    loss = bits * math.log(2)
    return {
        "bytes": limit - 1,
        "lm_eval_nats_per_byte": loss,
        "evaluate_nats_per_byte": wanted["fresh_nats_per_byte"],
        "difference": abs(loss - wanted["fresh_nats_per_byte"]),
        "seconds": seconds,
    }


def _progress(what: str, done: int, of: int) -> None:
    if sys.stderr.isatty() and done % 50 == 0:
        print(f"\r\x1b[K{what} {done:,} of {of:,}", end="", file=sys.stderr, flush=True)


PARTS = {
    "load": measure_load,
    "sessions": measure_sessions,
    "leave": measure_leave,
    "sigterm": measure_sigterm,
    "replicas": measure_replicas,
    "lm-eval": measure_lm_eval,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--requests", type=int, help="of load and sessions (default: 10,000)")
    parser.add_argument("--seconds", type=float, help="of replicas (default: 300)")
    arguments = parser.parse_args()
    parts = arguments.part or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"found {unknown[0]!r}, wanted {', '.join(PARTS)}")
    for part in parts:
        options: dict[str, Any] = {}
        if arguments.requests and part in ("load", "sessions"):
            options["requests"] = arguments.requests
        if arguments.seconds and part == "replicas":
            options["seconds"] = arguments.seconds
        found = append(RESULTS, {"part": part, **PARTS[part](**options)})
        print(json.dumps(found, indent=2), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
