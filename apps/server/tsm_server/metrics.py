"""What /metrics tells, in Prometheus's text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

REQUESTS = Counter(
    "tsm_requests", "Requests answered", ["method", "path", "status"], registry=REGISTRY
)
DRAWN_BYTES = Counter("tsm_generated_bytes", "Bytes generated", registry=REGISTRY)
PROMPT_BYTES = Counter(
    "tsm_prompt_bytes", "Bytes of prompts of finished requests", registry=REGISTRY
)
CACHED_BYTES = Counter(
    "tsm_cached_prompt_bytes", "Of these, those that the prompt cache had", registry=REGISTRY
)
ABANDONED = Counter(
    "tsm_abandoned_requests", "Requests whose client left before the end", registry=REGISTRY
)
FIRST_SECONDS = Histogram(
    "tsm_first_event_seconds",
    "From a request to the first of its text",
    buckets=_SECONDS,
    registry=REGISTRY,
)
REQUEST_SECONDS = Histogram(
    "tsm_request_seconds",
    "From a request to the end of its text",
    buckets=_SECONDS,
    registry=REGISTRY,
)
_RUNNING = Gauge("tsm_running_requests", "Requests that take turns", registry=REGISTRY)
_WAITING = Gauge("tsm_waiting_requests", "Requests that wait for a place", registry=REGISTRY)


def watch(running: Callable[[], int], waiting: Callable[[], int]) -> None:
    """Where the gauges look when they are asked."""
    _RUNNING.set_function(running)
    _WAITING.set_function(waiting)


def text() -> bytes:
    return generate_latest(REGISTRY)
