"""Completion as one types: tsm.runtime.complete and tsm-complete.

pytest tests/test_completion.py
"""

from __future__ import annotations

import json
import math
import random
import re
import sys
from array import array

import pytest
from commands import ROOT, TFLITE, output, refused, run

from tsm.runtime import Model, load
from tsm.runtime.complete import (
    CONTEXT_BYTES,
    DENSE_BYTES,
    LOOKAHEAD,
    PLACES,
    REPEATED,
    SPARSE_BYTES,
    STEPS,
    Completer,
    Completion,
)
from tsm.runtime.engines import Engine

sys.path.insert(0, str(ROOT / "benchmarks"))

import completion  # noqa: E402
from results import read  # noqa: E402

SCENE = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n"
    "MENENIUS:\nWhat say you, gentlemen, to this noble gentleman?\nI do beseech you, good my lord"
)


@pytest.fixture(scope="module")
def model() -> Model:
    return load(TFLITE)


class Reads:
    """Of an engine: how many bytes each call has read."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes: list[int] = []
        feed = engine.feed

        def counted(data: bytes) -> array[float]:
            self.bytes.append(len(data))
            return feed(data)

        monkeypatch.setattr(engine, "feed", counted)

    def since(self) -> int:
        count, self.bytes = sum(self.bytes), []
        return count


class Quoting(Engine):
    """Goes on as a text does after the longest end of what was read that occurs in it."""

    def __init__(self, text: str) -> None:
        self.artifact = load(TFLITE).engine.artifact
        self.block_tokens, self._quoted, self._read = 64, text.encode(), b""

    def close(self) -> None:
        self._read = b""

    def get_state(self) -> dict[str, bytes]:
        return {"read": self._read}

    def set_state(self, state: dict[str, bytes]) -> None:
        self._read = state.get("read", b"") if len(state) == 1 else b""

    _write_state = set_state

    def _run(self, tokens: bytes) -> array[float]:
        rows = array("f")
        for token in tokens:
            self._read += bytes([token])
            rows.extend(self._logits())
        return rows

    def _logits(self) -> array[float]:
        start = max(0, len(self._read) - 40)
        ends = (self._read[i:] for i in range(start, len(self._read) + 1))
        end = next(end for end in ends if end in self._quoted)
        counts = [1e-6] * 256
        for match in re.finditer(b"(?=" + re.escape(end) + b"(.))", self._quoted, re.DOTALL):
            counts[match[1][0]] += 1
        return array("f", [math.log(n) for n in counts])


def completions(model: Model, text: str, threshold: float = 0.1, **how) -> list[Completion]:
    with Completer(model, threshold) as completer:
        completer.follow(text)
        return completer.complete(**how)


# What is read


def test_a_text_that_was_edited_completes_as_one_that_is_new(model):
    rng, text = random.Random(0), SCENE
    with Completer(model, 0.1) as completer:
        for _ in range(40):
            at = rng.choice([len(text)] * 3 + [rng.randrange(len(text) + 1)])
            edit = rng.choice(["type", "type", "delete", "paste", "cut"])
            if edit == "type":
                text = text[:at] + rng.choice("abcdefg \n.éß€")
            elif edit == "delete":
                text = text[: max(0, len(text) - rng.randrange(1, 12))]
            elif edit == "paste":
                text = text[:at] + SCENE[: rng.randrange(80)] + text[at:]
            else:
                text = text[:at]
            text = text[-CONTEXT_BYTES // 2 :] if len(text) > CONTEXT_BYTES - 200 else text
            completer.follow(text)
            assert completer.complete(count=3) == completions(model, text, count=3), repr(text)


BACKSPACES = DENSE_BYTES - len("MENENIUS")  # that cost nothing, back in a word like it


def test_a_key_reads_a_byte_and_what_was_foreseen_none(model, monkeypatch):
    reads, text = Reads(model.engine, monkeypatch), SCENE + ".\n\nMENENIUS"
    with Completer(model, 0.3) as completer:
        completer.follow(text[:100])
        for i in range(101, len(text) - 2):
            reads.since()
            completer.follow(text[:i])
            assert reads.since() == 1
        (word,) = completer.complete()
        assert word.text == "IUS" and reads.since() > 0
        for i in range(len(text) - 2, len(text) + 1):
            completer.follow(text[:i])
            assert reads.since() == 0
            assert completer.complete() or i == len(text)
            reads.since()
        for i in range(1, BACKSPACES):
            completer.follow(text[:-i])
            assert reads.since() == 0
        completer.follow(text[: -BACKSPACES + 1] + "x")
        assert reads.since() == 1


def test_a_jump_reads_no_more_than_the_context_and_what_is_kept_is_bounded(model, monkeypatch):
    reads = Reads(model.engine, monkeypatch)
    long = SCENE * 20
    with Completer(model, 0.3) as completer:
        reads.since()
        completer.follow(long)
        assert CONTEXT_BYTES // 2 <= reads.since() <= CONTEXT_BYTES + 1
        completer.follow(long[:2000])
        assert reads.since() <= CONTEXT_BYTES + 1
        for i in range(2000, 2300):
            completer.follow(long[:i])
            completer.complete()
            assert len(completer._places) <= PLACES + 1
            assert completer._ahead <= LOOKAHEAD + 2 * STEPS
        for i in range(250):  # held down: never more than from one place that is kept to the next
            reads.since()
            completer.follow(long[: 2300 - i])
            assert reads.since() <= 2 * SPARSE_BYTES


def test_two_texts_of_one_model_and_a_stream_do_not_mix(model):
    one, other = Completer(model, 0.1), Completer(model, 0.1)
    stream = model.stream()
    for i in range(60, 80):
        one.follow(SCENE[:i])
        other.follow("ROMEO:\n" + SCENE[20:i])
        stream.feed("x")
        assert one.complete() == completions(model, SCENE[:i])
        assert other.complete() == completions(model, "ROMEO:\n" + SCENE[20:i])


# What is found


@pytest.mark.parametrize("text", [SCENE[:120], SCENE[:121], SCENE[:134], SCENE + ".\n\n", ""])
@pytest.mark.parametrize("to", ["word", "line"])
def test_a_probability_is_the_product_of_the_model_s(model, text, to):
    found = completions(model, text, 0.02, to=to, count=4)
    assert found
    for one in found:
        assert not one.replaced
        stream, read = model.stream(), text.encode()
        stream.feed(b"\n" + read)
        probability = 1.0
        for byte in one.text.encode():
            probability *= expected(stream.logits(), read)[byte]
            stream.feed(bytes([byte]))
            read += bytes([byte])
        after = expected(stream.logits(), read)
        in_word = re.search(r"\w\Z", one.text)
        ends = [b for b in range(128) if not re.match(r"\w", chr(b))] if in_word else b"\r\n"
        assert one.probability == pytest.approx(probability * sum(after[b] for b in ends))


def expected(logits, text: bytes) -> list[float]:
    """The model's probabilities, and the part of the byte after the longest end that repeats."""
    weights = [math.exp(x - max(logits)) for x in logits]
    probabilities = [w / sum(weights) for w in weights]
    for least, part in REPEATED:
        for length in range(32, least - 1, -1):
            at = text.rfind(text[-length:], 0, -1) if length < len(text) else -1
            if at >= 0:
                probabilities = [p * (1 - part) for p in probabilities]
                probabilities[text[at + length]] += part
                return probabilities
    return probabilities


@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nothing_is_shown_below_the_threshold_and_the_best_is_first(model, threshold):
    shown = 0
    with Completer(model, threshold) as completer, Completer(model, 0.2) as lower:
        for i in range(90, 140):
            completer.follow(SCENE[:i])
            lower.follow(SCENE[:i])
            found, more = completer.complete(count=3), lower.complete(count=3)
            saved = [one.probability * (one.replaced + len(one.text) - 1) for one in found]
            assert saved == sorted(saved, reverse=True)
            assert all(one.probability >= threshold for one in found)
            assert len({(one.text, one.replaced) for one in found}) == len(found) <= 3
            assert completer.complete() == found[:1]
            assert bool(found) == any(one.probability >= threshold for one in more)
            shown += bool(found)
    assert 5 < shown < 50


def test_a_word_and_a_line_end_where_they_should(model):
    several = 0
    with Completer(model, 0.2) as completer:
        for i in range(100, 170):
            completer.follow(SCENE[:i])
            for one in completer.complete(count=3):
                assert re.fullmatch(r"[^\w\n]*\w+|[^\w\n]*[^\w\s][^\w\n]*", one.text), one
            for word in completer.complete():  # with which a line begins
                (line,) = completer.complete(to="line")
                assert re.match(re.escape(word.text) + r"(?!\w)", line.text)
            for limit in (3, 8, 48):
                for one in completer.complete(to="line", max_bytes=limit):
                    assert 0 < len(one.text.encode()) <= limit and "\n" not in one.text
                    several += bool(re.search(r"\w \w", one.text))
    assert several


def test_characters_are_whole():
    text = "Où est le café de la naïveté ? 東京都 — 東京都 Größenwahn\nनमस्ते दुनिया\n" * 3
    model = Model(Quoting(text))
    with Completer(model, 0.2) as completer:
        seen = set()
        for i in range(80, 160):
            for limit in (1, 2, 3, 5, 48):
                completer.follow(text[:i])
                for one in completer.complete(max_bytes=limit, count=3):
                    assert len(one.text.encode()) <= limit
                    assert "\ufffd" not in one.text
                    if not one.replaced:
                        assert (text[:i] + one.text) in text
                        seen.add(one.text)
    assert {"ïveté", "ößenwahn", "京都", "मस्ते"} <= seen


def test_corrections_beyond_ascii():
    model = Model(Quoting("un café noir et un café crème\n" * 4))
    found = completions(model, "un café noir et un cfaé", 0.3)
    assert [(one.text, one.replaced) for one in found] == [("café", 4)]
    found = completions(model, "un café noir et un caf€é", 0.3)
    assert not any(one.replaced for one in found)  # no word


def test_a_typing_error_is_corrected(model):
    """Of words that the model knows, with an error of a fixed seed; those without stay."""
    rng = random.Random(1)
    right = wrong = 0
    words = list(re.finditer(r"\b[a-z]{5,}\b", SCENE))
    with Completer(model, 0.4) as completer:
        for word in words * 3:
            completer.follow(SCENE[: word.start()] + completion.mistyped(word[0], rng))
            for one in completer.complete():
                right += one.text == word[0] and one.replaced > 0
                wrong += one.text != word[0] and one.replaced > 0
        assert right > wrong and right >= len(words)
        for word in words:
            completer.follow(SCENE[: word.end()])
            assert not any(one.replaced for one in completer.complete())


# benchmarks/completion.py


def test_the_sweep_has_the_keys_of_typing(model):
    before, passage = SCENE[:88], SCENE[88:]
    texts = [(before, passage)]
    offers = completion.offered(texts, completion.completer(model, 0.1), "")
    rows = completion.sweep(texts, offers)
    row = next(row for row in rows if row["threshold"] == 0.5)
    text = [(before, completion.words(passage))]
    count, _ = completion.typed(text, completion.completer(model, 0.5), 0.5)
    assert {"threshold": 0.5, **completion.row(count)} == row
    # By hand: every key once, but for those that the completions taken save.
    assert 0 < count.right < count.shown < count.keys < count.characters == len(passage)


def test_errors_are_seeded_and_one_in_ten_words():
    pieces = completion.words("some words of a text, and others\n" * 300)
    wrong = completion.with_errors(pieces, random.Random(0))
    assert wrong == completion.with_errors(pieces, random.Random(0))
    assert [meant for meant, _ in wrong] == [meant for meant, _ in pieces]
    words = [(meant, typed) for meant, typed in wrong if re.match(r"\w", meant)]
    errors = [(meant, typed) for meant, typed in words if meant != typed]
    assert 0.08 < len(errors) / len(words) < 0.12
    assert all(len(meant) >= 3 for meant, _ in errors)


def test_keys_saved_at_a_precision_lie_between_two_thresholds():
    rows = [{"saved": 0.2, "precision": 0.4}, {"saved": 0.1, "precision": 0.8}]
    assert completion.saved_at(rows, 0.6) == pytest.approx(0.15)
    assert completion.saved_at(rows, 0.3) == 0.2  # more precise at any threshold
    assert completion.saved_at(rows, 0.9) is None


def test_the_page_shows_the_results():
    page = (ROOT / "docs/completion.md").read_text()
    assert completion.table(read(completion.RESULTS)) in page


# Arguments, and the command


def test_arguments_are_checked(model):
    for threshold in (0, -1, 1.1, math.nan):
        with pytest.raises(ValueError, match="threshold: found"):
            Completer(model, threshold)
    completer = Completer(model)
    for how in ({"to": "page"}, {"count": 0}, {"max_bytes": 0}):
        with pytest.raises(ValueError, match="found"):
            completer.complete(**how)
    completer.follow("\ud800 O, what")  # half a surrogate pair, which editors send
    completer.complete()
    completer.close()
    with pytest.raises(ValueError, match="closed"):
        completer.complete()


def test_the_command_prints_text_or_json():
    options = ["--count", 3, "--threshold", 0.05]
    prompt = "MENENIUS:\nWhat say you to this gentle"
    lines = output("complete", "--prompt", prompt, *options).decode().splitlines()
    found = json.loads(output("complete", *options, "--json", input=prompt.encode()))
    assert lines == [f"{c['probability']:.3f} {c['text']}" for c in found["completions"]]
    assert len(lines) >= 2
    assert output("complete", "--prompt", "xqz", "--threshold", 0.99) == b""


def test_the_loop_answers_each_line(model):
    texts = [SCENE[:i] for i in range(100, 120)] + ["", "ROMEO:\nO, sh"]
    lines = "".join(json.dumps(text) + "\n" for text in texts).encode()
    answers = output("complete", "--loop", "--threshold", 0.1, input=lines).splitlines()
    assert [
        [Completion(**one) for one in json.loads(answer)["completions"]] for answer in answers
    ] == [completions(model, text) for text in texts]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--threshold", "0"], "found '0', wanted a number above 0, up to 1"),
        (["--threshold", "nan"], "found 'nan'"),
        (["--count", "0"], "found '0', wanted a whole number, 1 or more"),
        (["--max-bytes", "x"], "found 'x'"),
        (["--to", "page"], "invalid choice: 'page'"),
        (["--prompt", "x", "--loop"], "not allowed with"),
        (["/no/such/model"], "/no/such/model: no such file"),
        (["--loop"], "standard input: found 'plain text"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, says):
    line = refused(run("complete", *arguments, input=b"plain text\n"))
    assert says in line and line.startswith("tsm-complete: ")
    assert "found '[[[[" in refused(run("complete", "--loop", input=b"[" * 100_000 + b"\n"))
