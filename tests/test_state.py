"""Streams: state as a value, forked, rewound, saved and cached to the bit; cancelled, awaited.

pytest tests/test_state.py
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import zlib
from pathlib import Path

import pytest

from tsm import runtime
from tsm.runtime import Sampling, engines, load, prompt_cache, state, stream
from tsm.runtime.state import StateError

ROOT = Path(__file__).parent.parent
RUNTIME = ROOT / "runtime"
TFLITE, ONNX = RUNTIME / "shakespeare-int8.tflite", ROOT / "models/shakespeare-int8.onnx"
PROMPT = (
    b"First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n" * 3
)
SETTINGS = Sampling(
    temperature=0.9, top_k=40, repetition_penalty=1.1, frequency_penalty=0.02, seed=5
)


@pytest.fixture(scope="module", params=engines.ENGINES)
def model(request) -> stream.Model:
    return load(ONNX if request.param == "onnx" else TFLITE, request.param)


@pytest.fixture(scope="module")
def native() -> stream.Model:
    return load(TFLITE)


def prompted(model: stream.Model, prompt: bytes = PROMPT, **settings) -> stream.Stream:
    text = model.stream(SETTINGS, **settings)
    text.feed(prompt)
    return text


def drawn(text: stream.Stream, count: int) -> bytes:
    return bytes(text.generate_bytes(count))


def bits(text: stream.Stream) -> tuple:
    """All that goes on from here."""
    logits = text.logits().tobytes()
    return logits, text._get_state(), text.position, text.draws, text.recent


# Saved and loaded


def test_a_saved_stream_goes_on_to_the_bit(model, tmp_path):
    text = prompted(model)
    wanted = drawn(prompted(model), 60)
    first = drawn(text, 25)
    text.save(tmp_path / "state")
    loaded = model.load_stream(tmp_path / "state")
    assert loaded.sampling.settings() == SETTINGS.settings()
    assert first + drawn(loaded, 35) == wanted
    assert drawn(text, 35) == wanted[25:]
    assert bits(loaded) == bits(text)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("prepare", [lambda t: None, lambda t: t.feed(b"x"), lambda t: t.draw()])
def test_any_stream_can_be_saved(native, tmp_path, prepare):
    text = native.stream(SETTINGS)
    prepare(text)
    text.save(tmp_path / "state")
    assert drawn(native.load_stream(tmp_path / "state"), 20) == drawn(text, 20)


def test_a_long_text_keeps_the_window_of_its_penalties(native, tmp_path):
    settings = Sampling(penalty_window=4096, frequency_penalty=0.01)
    text = native.stream(settings, rewind=10)
    text.feed(PROMPT * 80)
    text.draw()
    text.save(tmp_path / "state")
    loaded = native.load_stream(tmp_path / "state", rewind=10)
    assert len(loaded.recent) == 4096 and loaded.recent == text.recent
    wanted = drawn(text, 30)
    assert drawn(loaded, 30) == wanted
    loaded.rewind(31)  # the byte that was drawn before it was saved, too
    loaded.save(tmp_path / "again")
    again = native.load_stream(tmp_path / "again")
    assert again.position == len(PROMPT) * 80 and again.draws == 0
    assert drawn(again, 31)[1:] == wanted


def test_a_stream_goes_to_bytes_and_back(native, tmp_path):
    text = prompted(native)
    text.draw()
    data = text.to_bytes()
    text.save(tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == data
    wanted = drawn(text, 20)
    for source in (data, bytearray(data), memoryview(data)):
        assert drawn(native.load_stream(source), 20) == wanted
    with pytest.raises(StateError, match=r"^state: CRC-32"):
        native.load_stream(data[:-1])


def test_a_stream_without_a_seed_draws_one_that_repeats_it(native, tmp_path):
    one, two = native.stream(), native.stream()
    assert one.sampling.seed != two.sampling.seed
    again = native.stream(Sampling(seed=one.sampling.seed))
    loaded = native.load_stream(one.to_bytes())
    assert drawn(one, 50) == drawn(again, 50) == drawn(loaded, 50) != drawn(two, 50)
    cached = [prompt_cache.read_prompt(native, PROMPT, tmp_path) for _ in range(2)]
    assert cached[0].sampling.seed != cached[1].sampling.seed


def test_a_state_of_another_model_is_refused(native, tmp_path):
    other = load(ONNX)
    prompted(other).save(tmp_path / "state")
    with pytest.raises(StateError, match=f"{other.engine.artifact.sha256}', wanted"):
        native.load_stream(tmp_path / "state")


def refused(model: stream.Model, path: Path) -> str:
    with pytest.raises(StateError) as error:
        model.load_stream(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def test_a_thousand_damaged_files_are_one_clear_error_each(native, tmp_path):
    text, path = prompted(native), tmp_path / "state"
    text.draw()
    text.save(path)
    whole, noise = path.read_bytes(), random.Random(0)
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(noise.choice([1, 1, 4])):
            data[noise.randrange(noise.choice([40, 700, len(data)]))] ^= 1 << noise.randrange(8)
        kind = noise.randrange(4)
        if kind == 0:
            data = data[: noise.randrange(len(data))]
        elif kind == 1:
            data += noise.randbytes(noise.randrange(1, 100))
        elif kind == 2:
            data = data[: noise.randrange(40)] + data[noise.randrange(40) :]
        if bytes(data) == whole:
            continue
        path.write_bytes(data)
        assert refused(native, path).startswith(f"{path}: ")


def values(draw: random.Random):
    return draw.choice(
        [None, True, -1, 0, 1, 2**70, 1e400, "", "a", [], {}, [1, 2, 3], {"a": 1}, ["regex"] * 3]
    )


def test_a_file_whose_checksum_holds_is_not_believed_for_that(native, tmp_path):
    """What a checksum does not tell: counts, lengths and settings that contradict each other."""
    text, path = prompted(native), tmp_path / "state"
    text.draw()
    header, parts = state.unpack(text.to_bytes())
    header.pop("parts", None)
    noise, loaded = random.Random(0), 0
    for _ in range(1000):
        changed, cut = json.loads(json.dumps(header)), list(parts)
        if noise.randrange(2):
            place = noise.choice([changed, changed["sampling"]])
            place[noise.choice([*place, "more"])] = values(noise)
        else:
            at = noise.randrange(len(cut))
            cut[at : at + 1] = noise.choice(
                [[], [b""], [cut[at][1:]], [cut[at] + b"x"], [b"", b""]]
            )
        path.write_bytes(state.pack(changed, cut))
        try:
            found = native.load_stream(path)
        except (StateError, engines.EngineError, ValueError) as error:
            assert "\n" not in str(error)
            assert type(error).__name__ in ("StateError", "GrammarError"), error
        else:  # another setting, within its range
            loaded += 1
            drawn(found, 1)
    assert loaded < 300


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "no TSM state"),
        (b"TSMSTATE", "no TSM state"),
        (b"TSMSTATE" + b"\2\0\0\0" + bytes(8), "state format 2, wanted 1"),
        (b"TSMSTATE" + b"\1\0\0\0" + bytes(8), "damaged"),
        (b"[" * 100_000, "no TSM state"),
        (bytes(2**23), "which no state of this model has"),
    ],
)
def test_a_file_that_is_no_state_is_refused(native, tmp_path, data, says):
    (tmp_path / "state").write_bytes(data)
    assert says in refused(native, tmp_path / "state")


@pytest.mark.parametrize(
    ("header", "rest"),
    [
        (b"[" * 1_000_000, b""),
        (b"[]", b""),
        (b"{}", b""),
        (b'{"parts": 3}', b"abc"),
        (b'{"parts": [2]}', b"abc"),
        (b'{"parts": [4]}', b"abc"),
        (b'{"parts": [5, -2]}', b"abc"),
        (b'{"parts": [true, 2]}', b"abc"),
        (b'{"parts": ["abc"]}', b"abc"),
        (b"\xff", b""),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_header_that_does_not_describe_its_file_is_refused(header, rest):
    sealed = len(header).to_bytes(4, "little") + header + rest
    data = state._HEAD.pack(state.MAGIC, state.VERSION, zlib.crc32(sealed), len(header))
    with pytest.raises(StateError, match="does not describe the file"):
        state.unpack(data + header + rest)


def test_a_file_that_cannot_be_read_or_written_is_one_clear_error(native, tmp_path):
    assert "no such file" in refused(native, tmp_path / "none")
    assert "is a directory" in refused(native, tmp_path)
    for path in (tmp_path, tmp_path / "none" / "state"):
        with pytest.raises(StateError, match="wanted a file that can be written"):
            native.stream().save(path)
    assert list(tmp_path.iterdir()) == []


# Forked and rewound


def test_forks_go_on_alike_and_apart(model):
    text = prompted(model)
    drawn(text, 10)
    one, two = text.fork(), text.fork()
    two.sampling = two.sampling.replace(seed=6)
    woven = [(one.draw(), two.draw(), text.draw()) for _ in range(20)]
    first, second, third = map(bytes, zip(*woven, strict=True))
    assert first == third != second
    assert bits(one) == bits(text)
    alone = prompted(model)
    assert drawn(alone, 30)[10:] == first


@pytest.mark.parametrize("count", [1, 30, 90, 199, 200, 210, 300, 440])
def test_a_rewound_stream_is_one_that_never_went_on(model, count):
    text = prompted(model, rewind=500)
    made = drawn(text, 200)
    assert text.position == len(PROMPT) + 200
    text.rewind(count)
    kept = max(0, 200 - count)
    fresh = prompted(model, PROMPT[: len(PROMPT) + 200 - max(count, 200)])
    assert drawn(fresh, kept) == made[:kept]
    assert bits(text) == bits(fresh)
    assert drawn(text, 10) == drawn(fresh, 10)


def test_a_long_stream_rewinds_as_far_as_it_was_told_and_says_how_far(native):
    text = prompted(native, rewind=700)
    whole = drawn(text, 3000)
    assert len(text._snapshots) < 700 / 256 + 3
    text.rewind(700)
    assert drawn(text, 700) == whole[-700:]
    with pytest.raises(StateError, match=r"rewind: 2000 bytes asked, \d+ kept, wanted a larger"):
        text.rewind(2000)
    assert len(text._text) < 20_000
    with pytest.raises(StateError, match="rewind: 1 bytes asked, 0 kept"):
        plain = prompted(native)
        plain.rewind(1)
    with pytest.raises(StateError, match="found -1"):
        text.rewind(-1)


def test_a_stream_can_be_rewound_to_nothing(native):
    text = prompted(native, rewind=1000)
    drawn(text, 5)
    text.rewind(text.position)
    assert (text.position, text.draws, text.recent) == (0, 0, b"")
    assert drawn(text, 20) == drawn(native.stream(SETTINGS), 20)


# Cached prompts


def test_a_cached_prompt_changes_nothing_but_what_is_read(model, tmp_path, monkeypatch):
    longer = PROMPT + b"Second Citizen:\nOne word, good citizens.\n"
    wanted = {prompt: drawn(prompted(model, prompt), 30) for prompt in (PROMPT, longer)}
    fed: list[int] = []
    feed = type(model.engine).feed
    monkeypatch.setattr(
        type(model.engine), "feed", lambda self, data: fed.append(len(data)) or feed(self, data)
    )

    def read(prompt: bytes) -> int:
        fed.clear()
        text = prompt_cache.read_prompt(model, prompt, tmp_path / "cache")
        count = sum(fed)
        text.sampling = SETTINGS
        assert drawn(text, 30) == wanted[prompt]
        return count

    block = model.engine.block_tokens
    assert read(PROMPT) == len(PROMPT)
    assert read(PROMPT) == len(PROMPT) % block
    assert read(longer) == len(longer) - len(PROMPT) // block * block
    assert read(longer) == len(longer) % block
    (first, *rest) = sorted((tmp_path / "cache").iterdir())
    assert len(rest) == 1 and first.suffix == ".tsmstate"
    for path in (first, *rest):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert read(longer) == len(longer)
    assert read(longer) == len(longer) % block


def test_a_renamed_entry_is_not_believed(native, tmp_path):
    prompt_cache.read_prompt(native, PROMPT, tmp_path)
    (entry,) = tmp_path.iterdir()
    other = PROMPT.swapcase()
    ((_, name),) = prompt_cache._names(native, other)[-1:]
    entry.rename(tmp_path / name)
    text = prompt_cache.read_prompt(native, other, tmp_path)
    text.sampling = SETTINGS
    assert drawn(text, 20) == drawn(prompted(native, other), 20)


def test_the_cache_keeps_to_its_number_of_files(native, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_cache, "FILES", 3)
    for number in range(6):
        prompt_cache.read_prompt(native, bytes([65 + number]) * 64, tmp_path)
        prompt_cache.read_prompt(native, b"A" * 64, tmp_path)  # used again and again
    names = {path.name for path in tmp_path.iterdir()}
    assert len(names) == 3
    assert prompt_cache._names(native, b"A" * 64)[0][1] in names
    prompt_cache.read_prompt(native, b"short", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


# Cancelled, awaited


def test_a_cancelled_generation_ends_and_can_go_on(native):
    text = prompted(native)
    source = text.generate_bytes()
    made = bytes(next(source) for _ in range(10))
    text.cancel()
    assert list(source) == [] and text.finish_reason == "cancelled"
    assert made + drawn(text, 10) == drawn(prompted(native), 20)
    assert text.finish_reason == "length"


def test_another_thread_can_cancel(native):
    text = prompted(native)
    thread = threading.Timer(0.05, text.cancel)
    thread.start()
    assert list(text.generate()) and text.finish_reason == "cancelled"
    thread.join()


def test_streams_of_one_model_are_generated_together_by_asyncio(native):
    async def whole(text: stream.Stream) -> str:
        return "".join([piece async for piece in text.generate_async(60)])

    async def both() -> list[str]:
        one, two = prompted(native), prompted(native, b"JULIET:\n")
        return await asyncio.gather(whole(one), whole(two))

    wanted = ["".join(prompted(native, p).generate(60)) for p in (PROMPT, b"JULIET:\n")]
    assert asyncio.run(both()) == wanted


def test_a_cancelled_task_leaves_a_stream_that_goes_on(native):
    counts = []

    async def started_and_cancelled() -> stream.Stream:
        text, begun = prompted(native), asyncio.Event()

        async def reads() -> None:
            async for _ in text.generate_async():
                begun.set()

        task = asyncio.create_task(reads())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        counts.append(text.draws)
        return text

    text = asyncio.run(started_and_cancelled())
    (count,) = counts
    assert text.draws == count  # nothing of it ran on
    assert drawn(text, 10) == drawn(prompted(native), count + 10)[count:]


def test_stops_end_the_text(native):
    whole = "".join(prompted(native).generate(200))
    text = prompted(native)
    assert "".join(text.generate(200, stops=[whole[50:54]])) == whole[: whole.index(whole[50:54])]
    assert text.finish_reason == "stop"
    text = prompted(native)
    assert "".join(text.generate(200, regexes=[r"\n+"])) == whole[: whole.index("\n")]
    assert text.finish_reason == "stop"


def test_an_empty_stream_begins_a_line(native):
    assert drawn(native.stream(SETTINGS), 20) == drawn(prompted(native, b"\n"), 20)


def test_the_logits_of_a_text_are_those_of_its_bytes(native):
    text, other = prompted(native, rewind=1000), prompted(native, rewind=1000)
    assert (text.draw(), text.draw()) == (other.draw(), other.draw())
    rows = text.logits_of(PROMPT)
    assert len(rows) == 256 * len(PROMPT)
    for place, byte in enumerate(PROMPT):
        other.feed(bytes([byte]))
        assert other.logits() == rows[256 * place : 256 * place + 256]
    assert bits(text) == bits(other)
    text.rewind(len(PROMPT) + 1)
    other.rewind(len(PROMPT) + 1)
    assert bits(text) == bits(other)
    assert len(text.logits_of(b"")) == 0


def test_what_a_byte_was_drawn_from_is_known_until_the_next(native):
    text = prompted(native)
    logits = text.logits()
    text.draw()
    assert text.drawn_from() == logits
    text.feed(b"x")
    with pytest.raises(StateError, match="wanted one that was"):
        text.drawn_from()


def test_wrong_arguments_of_the_api_are_refused_by_its_own_errors(native):
    with pytest.raises(runtime.StateError, match="rewind: found -1, wanted 0 or more"):
        native.stream(rewind=-1)
    with pytest.raises(runtime.GrammarError, match="found a value of type str, wanted a Grammar"):
        native.stream(grammar="[0-9]")


def test_what_the_package_names_is_there():
    for name in runtime.__all__:
        assert hasattr(runtime, name)
