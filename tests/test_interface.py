"""tsm.h, called as any language would: what it gives is Python's, to the byte.

pytest tests/test_interface.py
"""

from __future__ import annotations

import ctypes
import json
import math
import random
from collections.abc import Iterator
from ctypes import POINTER, byref, c_char_p, c_double, c_size_t, c_uint32, c_uint64, c_void_p
from pathlib import Path
from zlib import crc32

import pytest
import vectors
from fuzz.tiny import tiny_artifact

from tsm.runtime import Model, Sampling, load
from tsm.runtime.engines.native import native_library

ARTIFACT, STATE, ARGUMENT, UNSUPPORTED = -6, -8, -3, -7  # of tsm.h
VECTORS = json.loads(vectors.PATH.read_text("utf-8"))
SHIPPED = Path(vectors.SHIPPED_MODEL)
FLOATS = ["temperature", "typical_p", "top_p", "min_p"]
FLOATS += ["repetition_penalty", "presence_penalty", "frequency_penalty"]


class Settings(ctypes.Structure):
    _fields_ = [
        *((name, c_double) for name in FLOATS),
        ("logit_bias", c_double * 256),
        ("seed", c_uint64),
        ("top_k", c_uint32),
        ("penalty_window", c_uint32),
    ]


def settings_of(sampling: Sampling) -> Settings:
    values = sampling.settings()
    bias = [values["logit_bias"].get(byte, 0.0) for byte in range(256)]
    return Settings(**{**values, "logit_bias": (c_double * 256)(*bias)})


LIBRARY = ctypes.CDLL(native_library())
for name in ("position", "draws"):
    getattr(LIBRARY, f"tsm_{name}").restype = c_uint64
LIBRARY.tsm_save.restype = c_size_t


class CError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def call(name: str, *arguments: object) -> None:
    message = ctypes.create_string_buffer(b"unset", 160)
    status = getattr(LIBRARY, f"tsm_{name}")(*arguments, message)
    line = message.value.decode()
    assert (line == "") == (status == 0) or line == "unset", (name, status, line)
    if status:
        assert "\n" not in line and line
        raise CError(status, line)


def opened(data: bytes | ctypes.Array, trusted: int = 0) -> c_void_p:
    model = c_void_p()
    call("open", data, c_size_t(len(data)), trusted, 3, 1, byref(model))
    return model


class Text:
    """A tsm_stream."""

    def __init__(self, pointer: c_void_p) -> None:
        self.pointer = pointer

    @classmethod
    def new(cls, model: c_void_p, sampling: Sampling, rewind: int = 0) -> Text:
        pointer = c_void_p()
        call("stream_new", model, byref(settings_of(sampling)), rewind, byref(pointer))
        return cls(pointer)

    @classmethod
    def restored(cls, model: c_void_p, state: bytes, rewind: int = 0) -> Text:
        pointer = c_void_p()
        call("restore", model, state, c_size_t(len(state)), rewind, byref(pointer))
        return cls(pointer)

    def fork(self) -> Text:
        pointer = c_void_p()
        call("fork", self.pointer, byref(pointer))
        return Text(pointer)

    def feed(self, text: bytes) -> None:
        call("feed", self.pointer, text, c_size_t(len(text)))

    def generate(self, count: int, stops: list[str]) -> Iterator[str]:
        strings = (c_char_p * len(stops))(*(stop.encode() for stop in stops))
        call("generate", self.pointer, c_uint64(count), strings, c_size_t(len(stops)))
        while True:
            piece, size = c_void_p(), c_size_t()
            call("next", self.pointer, byref(piece), byref(size))
            if not size.value:
                return
            yield ctypes.string_at(piece, size.value).decode()

    def finish_reason(self) -> str:
        return ["running", "length", "stop"][LIBRARY.tsm_finish_reason(self.pointer)]

    def draw(self, count: int) -> bytes:
        byte = ctypes.create_string_buffer(1)
        drawn = b""
        for _ in range(count):
            call("next_byte", self.pointer, byte)
            drawn += byte.raw
        return drawn

    def logits(self) -> bytes:
        logits = POINTER(ctypes.c_float)()
        call("logits", self.pointer, byref(logits))
        return ctypes.string_at(logits, 1024)

    def score(self, text: bytes) -> list[float]:
        nats = (ctypes.c_float * len(text))()
        call("score", self.pointer, text, c_size_t(len(text)), nats)
        return list(nats)

    def rewind(self, count: int) -> None:
        call("rewind", self.pointer, c_uint64(count))

    def save(self) -> bytes:
        size = LIBRARY.tsm_save(self.pointer, None, c_size_t(0))
        room = ctypes.create_string_buffer(size)
        assert LIBRARY.tsm_save(self.pointer, room, c_size_t(size)) == size
        return room.raw

    def position(self) -> int:
        return LIBRARY.tsm_position(self.pointer)

    def __del__(self) -> None:
        LIBRARY.tsm_stream_free(self.pointer)


@pytest.fixture(scope="module")
def python() -> Iterator[Model]:
    with load(engine="native") as model:
        yield model


@pytest.fixture(scope="module")
def model() -> Iterator[c_void_p]:
    pointer = c_void_p()
    call("open_file", str(SHIPPED).encode(), 3, 1, byref(pointer))
    yield pointer
    LIBRARY.tsm_free(pointer)


def test_the_vectors_are_what_the_runtime_gives(python):
    assert python.engine.artifact.sha256 == VECTORS["sha256"]
    assert vectors.vectors(python) == VECTORS["vectors"]


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda v: str(v["settings"])[:60])
def test_c_gives_the_vectors(model, vector):
    settings = dict(vector["settings"])
    bias = {int(byte): float(v) for byte, v in settings.pop("logit_bias", {}).items()}
    sampling = Sampling(**{**settings, "seed": int(settings["seed"]), "logit_bias": bias})
    text = Text.new(model, sampling)
    text.feed(vector["prompt"].encode())
    pieces = list(text.generate(vector["bytes"], vector["stops"]))
    assert "".join(pieces) == vector["text"]
    assert text.finish_reason() == vector["finish_reason"]
    assert text.position() == vector["position"]
    state = text.save()
    assert [len(state), f"{crc32(state):08x}"] == [vector["state_bytes"], vector["state_crc32"]]
    again = Text.restored(model, state)
    assert again.save() == state
    assert f"{crc32(text.logits()):08x}" == vector["logits_crc32"]
    assert again.draw(20) == text.draw(20)


def test_pieces_are_whole_characters_and_never_part_of_a_stop_string(model, python):
    sampling = Sampling(temperature=6, seed=3)
    for stops in ([], ["\n"], ["qq", "the"], ["\ufffdA", "zq", "é"]):
        text, other = Text.new(model, sampling), python.stream(sampling)
        pieces = list(text.generate(400, stops))
        assert "".join(pieces) == "".join(other.generate(400, stops=stops))
        assert not any(stop in "".join(pieces) for stop in stops)
        assert text.save() == other.to_bytes()


def test_forks_go_their_own_ways(model, python):
    text = Text.new(model, Sampling(seed=5), rewind=600)
    text.feed(b"JULIET:\n" * 50)
    text.draw(300)
    fork, state = text.fork(), text.save()
    fork.rewind(500)
    fork.feed(b"ROMEO:\n")
    fork.draw(50)
    assert text.save() == state != fork.save()
    assert text.draw(10) == Text.restored(model, state).draw(10)


@pytest.mark.parametrize("fed", [1, 255, 700, 5000])
def test_rewound_bytes_have_never_been(model, python, fed):
    choices = random.Random(fed)
    sampling = Sampling(seed=5, repetition_penalty=1.2, penalty_window=4096)
    text, other = Text.new(model, sampling, 3000), python.stream(sampling, rewind=3000)
    for either in (text, other):
        either.feed((b"To be, or not to be: " * 300)[:fed])
    furthest = 0
    for _ in range(6):
        drawn = text.draw(count := choices.randrange(300))
        assert drawn == bytes(other.generate_bytes(count))
        furthest = max(furthest, text.position())
        back = choices.randrange(text.position() - max(0, furthest - 3000) + 1)
        text.rewind(back)
        other.rewind(back)
        assert text.save() == other.to_bytes()
    with pytest.raises(CError, match="wanted a larger rewind_bytes") as refused:
        text.rewind(text.position() + 1)
    assert refused.value.status == ARGUMENT and text.save() == other.to_bytes()


def test_a_restored_text_can_take_its_last_drawn_byte_back(model, python):
    text = Text.new(model, Sampling(seed=2))
    text.feed(b"ROMEO:\n")
    text.draw(5)
    again = Text.restored(model, text.save(), rewind=10)
    again.logits()
    again.rewind(1)
    fresh = Text.new(model, Sampling(seed=2))
    fresh.feed(b"ROMEO:\n")
    fresh.draw(4)
    fresh.logits()
    assert again.save() == fresh.save()


def test_the_memory_of_an_addressed_splitter_goes_from_python_to_c_and_back(tmp_path):
    data, sampling = tiny_artifact(), Sampling(seed=3)
    (tmp_path / "tiny.tflite").write_bytes(data)
    model = opened(data)
    with load(str(tmp_path / "tiny.tflite"), engine="native") as python:
        stream = python.stream(sampling)
        stream.feed(b"aXbY?")
        text = Text.restored(model, stream.to_bytes())
        assert text.draw(20) == bytes(stream.generate_bytes(20))
        assert text.save() == stream.to_bytes()
    del text
    LIBRARY.tsm_free(model)


def test_scores_are_those_of_tsm_score(model, python):
    wanted = b"ROMEO:\nIt is the east, and Juliet is the sun. \xff\x00" * 8
    text = Text.new(model, Sampling(seed=0), rewind=512)
    assert text.score(wanted) == pytest.approx(scores(python, wanted), abs=1e-5)
    assert text.position() == len(wanted) + 1  # after a line's start, as with tsm-score
    again = text.score(wanted[:300])
    text.rewind(300)
    assert text.score(wanted[:300]) == again


def scores(python: Model, text: bytes) -> list[float]:
    stream, nats = python.stream(), []
    for byte in text:
        logits = stream.logits()
        best = max(logits)
        nats.append(best + math.log(sum(math.exp(x - best) for x in logits)) - logits[byte])
        stream.feed(bytes([byte]))
    return nats


def _any_double(choices: random.Random, low: float, high: float) -> float:
    kind = choices.randrange(4)
    if kind == 0:
        return choices.uniform(low, high)
    if kind == 1:
        return round(choices.uniform(low, high), choices.randrange(8))
    value = 10 ** choices.uniform(-300, 3) * choices.choice([1, -1])
    return min(max(value, low), high)


def test_numbers_are_written_and_read_as_python_does(model, python):
    choices = random.Random(1)
    for turn in range(400):
        bias = {
            byte: choices.choice([-math.inf, _any_double(choices, -1000, 1000)])
            for byte in choices.sample(range(256), choices.choice([0, 1, 30, 255]))
        }
        sampling = Sampling(
            temperature=10 ** choices.uniform(-308, 308) if turn % 2 else 2.0 ** -(turn * 2),
            min_p=choices.choice([0.0, 1.0, 5e-324, choices.random()]),
            top_p=choices.choice([1.0, 2.2250738585072014e-308, choices.random() or 1.0]),
            presence_penalty=choices.choice([-0.0, _any_double(choices, -100, 100)]),
            frequency_penalty=_any_double(choices, -100, 100),
            seed=choices.randrange(1 << 64),
            top_k=choices.randrange(1 << 32),
            penalty_window=choices.randrange(4097),
            logit_bias=bias,
        )
        wanted = python.stream(sampling).to_bytes()
        assert Text.new(model, sampling).save() == wanted
        assert Text.restored(model, wanted).save() == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", math.nan),
        ("temperature", -1),
        ("temperature", math.inf),
        ("top_p", 0),
        ("typical_p", 1.5),
        ("min_p", -0.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 101),
        ("penalty_window", 4097),
        ("logit_bias", (c_double * 256)(math.nan)),
        ("logit_bias", (c_double * 256)(*[-math.inf] * 256)),
    ],
)
def test_a_setting_out_of_its_range_is_told(model, name, value):
    settings, pointer = settings_of(Sampling(seed=0)), c_void_p()
    setattr(settings, name, value)
    with pytest.raises(CError, match=f"^{name}: ") as refused:
        call("stream_new", model, byref(settings), 0, byref(pointer))
    assert refused.value.status == ARGUMENT and not pointer


def test_other_arguments_out_of_their_range_are_told(model):
    text, pointer = Text.new(model, Sampling(seed=0)), c_void_p()
    with pytest.raises(CError, match="stops: "):
        list(text.generate(10, [""]))
    assert list(text.generate(0, [])) == []
    with pytest.raises(CError, match="rewind_bytes: "):
        call("stream_new", model, None, (1 << 24) + 1, byref(pointer))
    with pytest.raises(CError, match="cannot be opened") as refused:
        call("open_file", b"/no/such/model", 3, 1, byref(pointer))
    assert refused.value.status == -5
    data = ctypes.create_string_buffer(64)
    with pytest.raises(CError, match="multiple of 4 bytes"):
        call("open", ctypes.addressof(data) + 1, c_size_t(60), 0, 3, 1, byref(pointer))


def test_damaged_artifacts_are_told():
    whole, choices = tiny_artifact(), random.Random(2)
    LIBRARY.tsm_free(opened(whole))
    for turn in range(1000):
        data = bytearray(whole)
        if turn % 20 == 0:
            data = data[: choices.randrange(len(data))]
        elif turn % 20 == 1:
            data += b"\0" * choices.randrange(1, 9)
        else:
            data[choices.randrange(len(data))] ^= 1 << choices.randrange(8)
        buffer = (ctypes.c_char * len(data)).from_buffer(data)
        with pytest.raises(CError) as refused:
            opened(buffer)
        assert refused.value.status == ARTIFACT


def test_what_a_header_says_is_checked_where_its_crc_is_trusted():
    """Whatever a hand has written there: an error code, or a model that can be read."""
    whole, choices = tiny_artifact(), random.Random(3)
    start = whole.index(b'{"tsm_artifact')
    end, statuses = whole.index(b"\0", start), set()
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(choices.randrange(1, 4)):
            data[choices.randrange(start + 150, end)] = choices.choice(b'0123456789{}[]",:ae.\xff ')
        buffer = (ctypes.c_char * len(data)).from_buffer(data)
        try:
            model = opened(buffer, trusted=1)
        except CError as error:
            statuses.add(error.status)
        else:
            text = Text.new(model, Sampling(seed=0))
            try:
                text.feed(b"ROMEO")
            except CError as error:
                statuses.add(error.status)
            del text
            LIBRARY.tsm_free(model)
    assert {ARTIFACT, UNSUPPORTED} <= statuses


def test_damaged_states_are_told(model):
    text = Text.new(model, Sampling(seed=1, logit_bias={10: -math.inf, 3: 0.1}))
    text.feed(b"ROMEO:\n")
    text.draw(30)
    whole, choices = text.save(), random.Random(4)
    for turn in range(1000):
        data = bytearray(whole)
        if turn % 5 == 0:
            data = data[: choices.randrange(len(data))]
        else:
            data[choices.randrange(len(data))] ^= 1 << choices.randrange(8)
        with pytest.raises(CError) as refused:
            Text.restored(model, bytes(data))
        assert refused.value.status == STATE


def test_what_a_state_says_is_checked_where_its_crc_is_right(model):
    text = Text.new(model, Sampling(seed=1, logit_bias={10: -math.inf, 3: 0.1}))
    text.feed(b"ROMEO:\n")
    text.draw(30)
    whole, choices, refused, taken = text.save(), random.Random(5), 0, 0
    end = 20 + int.from_bytes(whole[16:20], "little")
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(choices.randrange(1, 3)):
            data[choices.randrange(16, end)] = choices.choice(b'0123456789{}[]",:ae.\xff ')
        data[12:16] = crc32(data[16:]).to_bytes(4, "little")
        try:
            Text.restored(model, bytes(data)).draw(3)
            taken += 1
        except CError as error:
            assert error.status in (STATE, UNSUPPORTED)
            refused += 1
    assert refused > taken > 50


def test_a_state_of_python_with_a_grammar_is_refused_in_words(model, python):
    pytest.importorskip("llguidance")
    from tsm.runtime import Grammar

    stream = python.stream(Sampling(seed=0), grammar=Grammar("regex", "[a-z]+"))
    with pytest.raises(CError, match="grammar") as refused:
        Text.restored(model, stream.to_bytes())
    assert refused.value.status == UNSUPPORTED


# Completion


class Found(ctypes.Structure):
    """A tsm_completion."""

    _fields_ = [
        ("text", c_char_p),
        ("bytes", c_size_t),
        ("probability", c_double),
        ("replaced", c_uint32),
    ]


class Completing:
    """A tsm_completer."""

    def __init__(self, model: c_void_p) -> None:
        self.pointer = c_void_p()
        call("completer_new", model, byref(self.pointer))

    def follow(self, text: bytes, most: int = 1 << 30) -> int:
        left = c_size_t()
        call("follow", self.pointer, text, c_size_t(len(text)), c_size_t(most), byref(left))
        return left.value

    def complete(
        self, to: str = "word", count: int = 1, max_bytes: int = 48, threshold: float = 0.55
    ) -> list[tuple[str, int, float]]:
        """Text, bytes that it replaces, probability."""
        found, shown = POINTER(Found)(), c_size_t()
        line, room, out = int(to == "line"), c_size_t(max_bytes), (byref(found), byref(shown))
        call("complete", self.pointer, line, count, room, c_double(threshold), *out)
        each = [found[i] for i in range(shown.value)]
        assert all(len(one.text) == one.bytes for one in each)
        return [(one.text.decode(), one.replaced, one.probability) for one in each]

    def __del__(self) -> None:
        LIBRARY.tsm_completer_free(self.pointer)


@pytest.fixture
def completing(model) -> Completing:
    return Completing(model)


@pytest.mark.parametrize("most", [1 << 30, 100], ids=["at once", "by pieces"])
def test_completions_are_python_s(python, completing, most):
    passage = json.loads(vectors.COMPLETIONS.read_text("utf-8"))["passage"]
    offered = replacing = 0
    for step in vectors.completions(python, passage, 120, seed=most):
        before = (passage[step["begin"] : step["end"]] + step["typed"]).encode()
        left = completing.follow(before, most)
        if most > len(before):
            assert not left
        how = [step[name] for name in ("to", "count", "max_bytes", "threshold")]
        found = completing.complete(*how)
        wanted = [
            (one["text"], len(before.decode()[len(before.decode()) - one["replaced"] :].encode()))
            for one in step["completions"]
        ]
        assert [(text, replaced) for text, replaced, _ in found] == wanted, step
        probabilities = [one["probability"] for one in step["completions"]]
        assert [p for _, _, p in found] == pytest.approx(probabilities, abs=1e-6)
        offered += bool(found)
        replacing += any(replaced for _, replaced, _ in found)
    assert offered > 40 and replacing > 5


def test_completions_of_the_file_are_python_s(python):
    content = json.loads(vectors.COMPLETIONS.read_text("utf-8"))
    steps = content["steps"]
    assert list(vectors.completions(python, content["passage"], len(steps), seed=0)) == steps


def test_a_completer_s_arguments_and_text_are_checked(completing):
    for how in ({"count": 0}, {"count": 17}, {"max_bytes": 0}, {"threshold": 0.0}):
        with pytest.raises(CError, match=f"{next(iter(how))}: wanted") as error:
            completing.complete(**how)
        assert error.value.status == ARGUMENT
    with pytest.raises(CError, match="threshold: wanted"):
        completing.complete(threshold=math.nan)
    nothing = completing.complete(threshold=0.1)
    for text in (b"\xff\xc3", b"\x80" * 70, b"a\xed\xa0\x80b", b"\xf0\x9f", b"\0" * 3000):
        completing.follow(text)
        completing.complete("line", 16, 200, 1e-9)
    completing.follow(b"")
    assert completing.complete(threshold=0.1) == nothing


def test_texts_of_one_model_do_not_mix(model, completing):
    other = Completing(model)
    stream = Text.new(model, Sampling(seed=1))
    for end in range(1, 40):
        completing.follow(b"MENENIUS:\nWhat say you to this gentle"[:end])
        one = completing.complete(threshold=0.1)
        other.follow(b"x" * end)
        other.complete(threshold=0.1)
        stream.feed(b"y")
        assert completing.complete(threshold=0.1) == one
