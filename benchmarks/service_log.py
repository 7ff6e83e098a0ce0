"""The log of a web shop that does not exist, and faults in it whose lines are known.

    python benchmarks/service_log.py --days 3 > shop.log
    python benchmarks/service_log.py --day 3 --faults 0.05 --labels odd.jsonl > odd.log

Six components write; requests overlap, and each goes through steps of its own. One request in a
hundred is rare and normal. With --faults that part of the requests has one fault, of KINDS in
turn. A label a line: {"fault": its kind or "", "rare": whether it is rare and normal}.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice

START = datetime(2026, 3, 2, 6, 0)
GAP_MS, STEP_MS = 1200, 120  # means: between two requests, between two steps of one
RARE = 0.01  # of the requests
ORDERS_A_DAY = 5000

KINDS = {
    "message": "a line that nothing ever wrote before",
    "value": "a known line with a number, an address or a path out of its range",
    "source": "a known line of another level or component",
    "garbled": "a known line with random bytes in it, or cut short",
    "missing": "the line after a step that is left out",
    "order": "two steps of a request the wrong way round",
    "repeated": "a step that comes a second time",
}
NAMES = ("alva", "beate", "chidi", "dana", "emre", "farida", "goran", "ines", "jonas", "kaya")
COMPONENTS = ("gateway", "auth", "catalog", "orders", "payment", "scheduler")
UNSEEN = (
    "segmentation fault at address {hex}, core dumped",
    "out of memory: killed worker {n}",
    "no space left on device: /var/lib/shop",
    "Traceback (most recent call last): KeyError: 'price'",
    "certificate of db-1 has expired",
    "deadlock detected, transaction {n} rolled back",
    "DNS lookup of smtp.example.org failed: timed out",
    "checksum mismatch in segment {n}, wanted {hex}",
    "user root logged in from 203.0.113.{b}",
    "too many open files",
    "clock moved backwards by {n} s",
    "replica db-3 is {n} transactions behind",
    "panic: runtime error: index out of range [{b}]",
    "fan {b} stopped, temperature 94 C",
    "firewall rule {n} dropped a packet from 198.51.100.{b}",
    "schema version {n} is not known, wanted 41",
    "disabled user {hex} asks for a token",
    "queue mail is full, {n} messages dropped",
)
# A pattern of a known line, and what is out of the range of its group.
OUT_OF_RANGE = (
    (r"in (\d+) ms", ("{n}7341", "-{b}", "NaN")),
    (r"(\d+\.\d\d) EUR", ("-12.00", "{n}731.55", "0.00")),
    (r"from (10\.\d+\.\d+\.\d+)", ("203.0.113.{b}", "198.51.100.{b}", "0.0.0.0")),
    (r"-> (\d\d\d)", ("500", "503", "418", "0")),
    (r"attempt (\d) of", ("9", "0", "{n}")),
    (r"/items/(\d+)", ("-1", "../../etc/passwd", "1%20OR%201=1", "{n}{n}")),
    (r"(\d+) rows", ("{n}{n}", "-1")),
    (r"(\d) items", ("0", "{n}", "-2")),
    (r"card \*\*\*\*(\d+)", ("{b}1111{b}", "None")),
)


@dataclass(frozen=True)
class Step:
    """A line to be; `fault` and `rare` are its label."""

    component: str
    level: str
    message: str
    fault: str = ""
    rare: bool = False


class Shop:
    """Makes requests: lists of steps."""

    def __init__(self, draw: random.Random, day: int) -> None:
        self.draw, self.order = draw, 10_000 + ORDERS_A_DAY * day
        kinds = {self.page: 50, self.login: 20, self.buy: 15, self.health: 10, self.job: 5}
        self._kinds, self._weights = list(kinds), list(kinds.values())

    def request(self) -> list[Step]:
        if self.draw.random() < RARE:
            return [replace(step, rare=True) for step in self.rare()]
        return self.draw.choices(self._kinds, self._weights)[0]()

    def ms(self, mean: float) -> int:
        return 1 + int(self.draw.expovariate(1 / mean))

    def gateway(self, asked: str, status: int, mean_ms: float, *between: Step) -> list[Step]:
        draw = self.draw
        address = f"10.20.{draw.randrange(4)}.{draw.randrange(1, 255)}"
        number = f"{draw.randrange(16**4):04x}"
        first = Step("gateway", "INFO", f"req {number} {asked} from {address}")
        level = "INFO" if status < 400 else "WARN"
        size = draw.randrange(300, 9000)
        done = f"req {number} -> {status}, {size} B in {self.ms(mean_ms)} ms"
        return [first, *between, Step("gateway", level, done)]

    def page(self) -> list[Step]:
        item = self.draw.randrange(1, 500)
        steps = [Step("catalog", "DEBUG", f"cache hit for item {item}")]
        if self.draw.random() < 0.3:
            steps = [
                Step("catalog", "DEBUG", f"cache miss for item {item}"),
                Step("catalog", "DEBUG", f"select items: 1 rows in {self.ms(4)} ms"),
            ]
        return self.gateway(f"GET /items/{item}", 200, 12, *steps)

    def login(self) -> list[Step]:
        name = self.draw.choice(NAMES)
        if self.draw.random() < 0.2:
            attempt = self.draw.randrange(1, 4)
            wrong = Step("auth", "WARN", f"password of {name} is wrong, attempt {attempt} of 5")
            return self.gateway("POST /login", 401, 30, wrong)
        session = f"{self.draw.randrange(16**6):06x}"
        right = Step("auth", "INFO", f"password of {name} is right")
        opened = Step("auth", "INFO", f"session {session} opened for {name}")
        return self.gateway("POST /login", 200, 30, right, opened)

    def buy(self) -> list[Step]:
        draw = self.draw
        self.order += 1
        items, card = draw.randrange(1, 9), draw.randrange(1000, 10_000)
        price = f"{draw.randrange(500, 20_000) / 100:.2f} EUR"
        return self.gateway(
            "POST /orders",
            201,
            90,
            Step("orders", "INFO", f"order {self.order} begun, {items} items, {price}"),
            Step("catalog", "INFO", f"reserved {items} items for order {self.order}"),
            Step("payment", "INFO", f"card ****{card} charged {price} in {self.ms(60)} ms"),
            Step("orders", "INFO", f"order {self.order} paid, mail to {draw.choice(NAMES)} queued"),
        )

    def health(self) -> list[Step]:
        return self.gateway("GET /health", 200, 1)

    def job(self) -> list[Step]:
        name = self.draw.choice(("carts", "sessions", "thumbnails"))
        rows = self.draw.randrange(200)
        return [
            Step("scheduler", "INFO", f"job {name} started"),
            Step("scheduler", "INFO", f"job {name} removed {rows} rows in {self.ms(40)} ms"),
            Step("scheduler", "INFO", f"job {name} done"),
        ]

    def rare(self) -> list[Step]:
        draw, db = self.draw, self.draw.randrange(1, 4)
        return draw.choice(
            (
                [Step("gateway", "INFO", "configuration read again from /etc/shop.toml")],
                [Step("gateway", "WARN", f"certificate ends in {draw.randrange(2, 30)} days")],
                [
                    Step("orders", "WARN", f"connection to db-{db} lost, trying again"),
                    Step("orders", "INFO", f"connected to db-{db} after {self.ms(300)} ms"),
                ],
                [Step("catalog", "WARN", f"garbage collected in {self.ms(200)} ms")],
                [Step("payment", "WARN", f"provider is slow: {800 + self.ms(400)} ms")],
                [Step("scheduler", "INFO", f"backup of {draw.randrange(80, 99)} MB written")],
                [Step("auth", "INFO", f"keys rotated, {draw.randrange(2, 5)} are valid")],
                [Step("auth", "WARN", f"{draw.choice(NAMES)} is locked out for 15 minutes")],
            )
        )


def filled(text: str, draw: random.Random) -> str:
    numbers = {"n": draw.randrange(100, 10_000), "b": draw.randrange(2, 250)}
    return text.format(hex=f"{draw.randrange(16**8):08x}", **numbers)


def with_fault(steps: list[Step], kind: str, draw: random.Random) -> list[Step] | None:
    """The steps of a request with one fault of a kind. None: these can have none."""
    steps = list(steps)
    at = draw.randrange(len(steps))
    if kind == "message":
        level = draw.choice(("ERROR", "WARN", "INFO"))
        message = filled(draw.choice(UNSEEN), draw)
        steps.insert(at + 1, Step(draw.choice(COMPONENTS), level, message, kind))
    elif kind == "value":
        found = [
            (i, p, m)
            for i, s in enumerate(steps)
            for p, m in OUT_OF_RANGE
            if re.search(p, s.message)
        ]
        if not found:
            return None
        at, pattern, values = draw.choice(found)
        message = steps[at].message
        start, end = re.search(pattern, message).span(1)
        value = filled(draw.choice(values), draw)
        steps[at] = replace(steps[at], message=message[:start] + value + message[end:], fault=kind)
    elif kind == "source":
        name, values = draw.choice(
            (("component", COMPONENTS), ("level", ("DEBUG", "INFO", "WARN", "ERROR")))
        )
        others = [value for value in values if value != getattr(steps[at], name)]
        steps[at] = replace(steps[at], **{name: draw.choice(others)}, fault=kind)
    elif kind == "garbled":
        steps[at] = replace(steps[at], fault=kind)
    elif kind == "repeated":
        steps.insert(at + 1, replace(steps[at], fault=kind))
    elif len(steps) < 3:
        return None
    elif kind == "missing":
        at = draw.randrange(1, len(steps) - 1)
        del steps[at]
        steps[at] = replace(steps[at], fault=kind)
    else:
        at = draw.randrange(len(steps) - 1)
        first, second = (replace(step, fault=kind) for step in steps[at : at + 2])
        steps[at : at + 2] = second, first
    return steps


def garbled(line: bytes, draw: random.Random) -> bytes:
    """A line of the same length or less, with something in it that is no text of the log."""
    if draw.random() < 0.5:
        return line[: draw.randrange(5, len(line) - 1)]
    broken = bytearray(line)
    for _ in range(draw.randrange(2, 7)):
        byte = draw.randrange(255)
        broken[draw.randrange(len(broken))] = byte + (byte >= 10)  # no end of a line
    return bytes(broken)


def lines(seed: int, faults: float = 0, day: int = 0) -> Iterator[tuple[bytes, Step]]:
    """A day's log, without end: each line, without its newline, and the step that it is."""
    draw, start = random.Random(f"{seed} {day}"), START + timedelta(days=day)
    shop, clock, count, faulty = Shop(draw, day), 0.0, 0, 0
    waiting: list[tuple[float, int, Step]] = []
    while True:
        steps = shop.request()
        if draw.random() < faults:
            with_one = with_fault(steps, list(KINDS)[faulty % len(KINDS)], draw)
            while with_one is None:  # as many of each kind, whatever the request can have
                with_one = with_fault(shop.request(), list(KINDS)[faulty % len(KINDS)], draw)
            steps, faulty = with_one, faulty + 1
        at = clock
        for step in steps:
            heapq.heappush(waiting, (at, count, step))
            at, count = at + draw.expovariate(1 / STEP_MS), count + 1
        clock += draw.expovariate(1 / GAP_MS)
        while waiting and waiting[0][0] <= clock:
            when, _, step = heapq.heappop(waiting)
            time = (start + timedelta(milliseconds=when)).isoformat(" ", "milliseconds")
            line = f"{time} {step.level:5} {step.component}: {step.message}".encode()
            yield (garbled(line, draw) if step.fault == "garbled" else line), step


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=1, help="how many")
    parser.add_argument("--day", type=int, default=0, help="the first of them")
    parser.add_argument("--lines", type=int, default=10_000, help="of each day")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=float, default=0.0, help="part of the requests, 0 to 1")
    parser.add_argument("--labels", type=argparse.FileType("w"), help="file of a label a line")
    arguments = parser.parse_args()
    for day in range(arguments.day, arguments.day + arguments.days):
        written = lines(arguments.seed, arguments.faults, day)
        for line, step in islice(written, arguments.lines):
            sys.stdout.buffer.write(line + b"\n")
            if arguments.labels:
                label = {"fault": step.fault, "rare": step.rare}
                arguments.labels.write(json.dumps(label) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
