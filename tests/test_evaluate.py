"""Evaluation: the recall tasks can be solved by reading, and each figure is what it is called.

pytest tests/test_evaluate.py
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from tsm.training import evaluate, model, tasks
from tsm.training.checkpoint import save_model
from tsm.training.data import DataError
from tsm.training.spec import PRESETS
from tsm.training.tasks import TASKS

ROOT = Path(__file__).parent.parent
CORPUS_BYTES = 3000  # enough for a held-out part of one window of 256


# What a reader without a model answers, from the bytes of the text before the answers.


def solve_mqar(text: bytes) -> bytes:
    shown, asked = text.strip().split(b"?")
    pairs = shown.rstrip(b".")
    values = dict(zip(pairs[::2], pairs[1::2], strict=True))
    return bytes(values[key] for key in asked[::2])


def solve_copying(text: bytes) -> bytes:
    return text.partition(b"?")[0].replace(b".", b"")


def solve_passkey(text: bytes) -> bytes:
    found = re.search(rb"The pass key is (\d+)\.", text)
    assert found
    return found[1]


def solve_parity(text: bytes) -> bytes:
    return b"01"[text.partition(b"?")[0].count(b"1") % 2 :][:1]


def solve_permutation(text: bytes) -> bytes:
    a, b, c = b"abc"
    for swap in text.partition(b"?")[0]:
        a, b, c = {"0": (a, b, c), "1": (b, a, c), "2": (a, c, b)}[chr(swap)]
    return bytes([a, b, c])


SOLVERS = {
    **dict.fromkeys(("mqar", "mqar-4", "mqar-16", "mqar-64"), solve_mqar),
    "copying": solve_copying,
    "passkey": solve_passkey,
    "parity": solve_parity,
    "permutation": solve_permutation,
}


def answer(example: tasks.Example) -> bytes:
    return bytes(example.text[place] for place in example.answers)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("distance", [None, 64, 1024])
def test_reading_the_text_gives_every_answer(task, distance):
    distance = max(distance or 0, TASKS[task].shortest)
    for seed in range(50):
        example = TASKS[task].example(seed, distance)
        assert SOLVERS[task](example.text) == answer(example)
        assert len(example.answers) == TASKS[task].answer_bytes
        assert example.text.count(b"\n") == 1 and example.text.endswith(b"\n")
        assert example == TASKS[task].example(seed, distance)


@pytest.mark.parametrize("task", TASKS)
def test_the_question_comes_at_its_distance(task):
    for distance in (max(16, TASKS[task].shortest), 200, 1000):
        text = TASKS[task].example(3, distance).text
        start = text.index(tasks.STATEMENT) + len(tasks.STATEMENT) if task == "passkey" else 0
        question = tasks.QUESTION if task == "passkey" else tasks.ASK
        assert text.index(question) - start == distance


def test_a_query_of_mqar_is_in_the_mean_one_byte_beyond_the_distance():
    example = TASKS["mqar"].example(0, 100)
    asked = [place - 1 for place in example.answers]
    gaps = [place - example.text.index(example.text[place]) for place in asked]
    assert np.mean(gaps) == 101


@pytest.mark.parametrize("task", TASKS)
def test_a_corpus_is_whole_examples_of_other_seeds_than_the_evaluation(task):
    text = tasks.corpus(task, 20_000)
    lines = text.splitlines(keepends=True)
    assert len(text) - len(lines[-1]) < 20_000 <= len(text)
    if not task.startswith("mqar"):  # whose answers stand between the queries
        assert all(line.rstrip(b".\n").endswith(SOLVERS[task](line)) for line in lines)
    assert text == tasks.corpus(task, 20_000) != tasks.corpus(task, 20_000, seed=1)
    apart = range(max(24, TASKS[task].shortest), 193)  # few bits are soon all that there are
    drawn = {e.text for d in apart for e in tasks.evaluation_examples(task, d, 5)}
    assert not drawn & set(lines)


@pytest.mark.parametrize("task", TASKS)
def test_windows_are_whole_examples_whose_answers_alone_count(task):
    tokens, counts = tasks.windows([TASKS[task]], 7, 3, 4, 340)
    assert tokens.shape == (4, 341) and counts.shape == (4, 340)
    for row, counted in zip(tokens.astype(np.uint8), counts, strict=True):
        assert counted.sum() == pytest.approx(340)
        lines = bytes(row).splitlines(keepends=True)
        answers = b"".join(SOLVERS[task](line) for line in lines if line.strip(b"."))
        assert bytes(row[1:][counted > 0]) == answers
    again = tasks.windows([TASKS[task]], 7, 3, 4, 340)
    assert (again[0] == tokens).all() and (again[1] == counts).all()
    assert (tasks.windows([TASKS[task]], 7, 4, 4, 340)[0] != tokens).any()
    with pytest.raises(DataError, match="window of 14 bytes, wanted "):
        tasks.windows([TASKS["mqar"]], 0, 0, 1, 14)


def test_a_stretch_of_real_text_comes_again():
    text = np.frombuffer(b"".join(b"%d " % i for i in range(500)), np.uint8)
    for seed, distance in ((1, 16), (2, 300), (3, 5000)):
        example = tasks.repetition(text).example(seed, distance)
        shown, again = example.text[:distance], example.text[distance:-1]
        assert shown.startswith(again) and 16 <= len(again) <= 64
        assert answer(example) == again[tasks.KNOWN_AGAIN :]
        assert shown[:100] in bytes(text) * 2 or distance > 300


def test_no_seed_of_a_corpus_is_one_of_the_evaluation(monkeypatch):
    seeds = []
    made = tasks.Task(lambda seed, _: seeds.append(seed) or tasks.Example(b"12\n", (1,)), 1, 1, 2)
    monkeypatch.setitem(TASKS, "mqar", made)
    last = tasks.CORPUS_SEEDS - 1
    for seed in (0, 1, last):
        tasks.corpus("mqar", 10, seed)
    assert len(set(seeds)) == len(seeds)
    assert max(seeds) < (last + 1) * tasks.CORPUS_EXAMPLES == tasks.EVALUATION_SEED
    seeds.clear()
    tasks.evaluation_examples("mqar", 16, 3)
    assert min(seeds) == tasks.EVALUATION_SEED and len(set(seeds)) == 3
    for seed in (-1, last + 1):
        with pytest.raises(DataError):
            tasks.corpus("mqar", 10, seed)


# Scorers made by hand


def uniform(tokens: np.ndarray, state: object) -> tuple[np.ndarray, object]:
    return np.zeros((*tokens.shape, 256), np.float32), state


def look_up(texts: list[bytes]) -> evaluate.Scorer:
    """Knows `texts` by heart: the state is what was read."""

    def score(tokens: np.ndarray, state: bytes | None) -> tuple[np.ndarray, bytes]:
        logits, read = np.zeros((1, tokens.shape[1], 256), np.float32), state or b""
        (text,) = [t for t in texts if t.startswith(read + bytes(tokens[0].tolist()))]
        following = text[len(read) + 1 :][: tokens.shape[1]]
        logits[0, np.arange(len(following)), list(following)] = 100
        return logits, read + bytes(tokens[0].tolist())

    return score


@pytest.mark.parametrize("task", TASKS)
def test_a_uniform_model_pays_log_256_and_a_perfect_one_nothing(task):
    distances = [max(32, TASKS[task].shortest), 1500]  # the second over more than one block
    for row in evaluate.recall(uniform, task, distances, 3)["distances"]:
        assert row["nats_per_answer_byte"] == math.log(256)
        assert row["accuracy"] == row["byte_accuracy"] == 0
    texts = [e.text for d in distances for e in tasks.evaluation_examples(task, d, 3)]
    found = evaluate.recall(look_up(texts), task, distances, 3)
    assert [row["distance"] for row in found["distances"]] == distances
    for row in found["distances"]:
        assert row["accuracy"] == row["byte_accuracy"] == 1
        assert row["nats_per_answer_byte"] == pytest.approx(0, abs=1e-12)


def test_one_wrong_byte_makes_an_answer_wrong():
    (example,) = tasks.evaluation_examples("passkey", 16, 1)

    def score(tokens: np.ndarray, state: bytes | None) -> tuple[np.ndarray, bytes]:
        logits, state = look_up([example.text])(tokens, state)
        logits[0, example.answers[-1] - 1] = 0
        return logits, state

    (row,) = evaluate.recall(score, "passkey", [16], 1)["distances"]
    assert row["accuracy"] == 0 and row["byte_accuracy"] == 0.8
    assert row["nats_per_answer_byte"] == pytest.approx(math.log(256) / 5)


def test_chance_is_a_guess_among_the_bytes_of_an_answer():
    for name, task in TASKS.items():
        examples = [task.example(seed, 128) for seed in range(200)]
        assert len({byte for example in examples for byte in answer(example)}) == task.alphabet
        found = evaluate.recall(uniform, name, [128], 1)
        assert found["chance_nats_per_answer_byte"] == math.log(task.alphabet)
        whole = {answer(example) for example in examples}  # of permutation all six
        chance = 1 / len(whole) if task.states else task.alphabet**-task.answer_bytes
        assert found["chance_accuracy"] == pytest.approx(chance)


# Loss by position

STREAMED = np.random.default_rng(0).integers(0, 256, 27_000).astype(np.uint8)


def recording(read: list[int]) -> evaluate.Scorer:
    """Pays, for every byte, a loss that depends on the byte read before it alone."""

    def score(tokens: np.ndarray, state: int | None) -> tuple[np.ndarray, int]:
        read.extend(tokens[0].tolist())
        logits = np.zeros((*tokens.shape, 256), np.float32)
        logits[..., 0] = tokens % 7
        return logits, (state or 0) + tokens.shape[1]

    return score


def test_the_bins_cover_the_same_text():
    read: list[int] = []
    found = evaluate.stream(recording(read), STREAMED, 200_000)
    assert read == np.resize(STREAMED, 200_000)[:-1].tolist()
    ends = [row["bytes_read"] for row in found["stream"]]
    assert ends == [10_000, 10_000 + 3 * 27_000, 10_000 + 7 * 27_000]
    assert found["stream_finite"] and found["stream_bytes"] == 200_000
    piece = STREAMED[:10_000].astype(np.int64)
    logits, _ = recording([])(piece[None, :-1], None)
    alone = evaluate.losses(logits[0], piece[1:]).mean()
    assert [row["nats_per_byte"] for row in found["stream"]] == pytest.approx([alone] * 3)


def test_loss_by_position_shows_a_memory_that_spoils():
    """Right about the first meeting, and less so the more it has read."""

    def score(tokens: np.ndarray, state: int | None) -> tuple[np.ndarray, int]:
        start = state or 0
        following = STREAMED[(start + 1 + np.arange(tokens.shape[1])) % len(STREAMED)]
        logits = np.zeros((*tokens.shape, 256), np.float32)
        logits[0, np.arange(tokens.shape[1]), following] = 50 / (1 + start / 10_000)
        return logits, start + tokens.shape[1]

    found = evaluate.stream(score, STREAMED, 200_000)["stream"]
    nats = [row["nats_per_byte"] for row in found]
    assert nats == sorted(nats) and nats[0] < 0.1 < 1 < nats[-1]


@pytest.mark.parametrize(("broken_at", "meetings"), [(30_000, [10_000]), (0, [])])
def test_a_stream_ends_where_a_logit_is_not_finite(broken_at, meetings):
    def score(tokens: np.ndarray, state: int | None) -> tuple[np.ndarray, int]:
        read = (state or 0) + tokens.shape[1]
        return np.full((*tokens.shape, 256), math.nan if read > broken_at else 0.0), read

    found = evaluate.stream(score, STREAMED, 100_000)
    assert not found["stream_finite"]
    assert broken_at - evaluate.STREAM_BLOCK < found["stream_bytes"] <= broken_at + 1
    assert [row["bytes_read"] for row in found["stream"]] == meetings
    assert evaluate.shown(found)
    for row in found["stream"]:
        assert row["nats_per_byte"] == pytest.approx(math.log(256))


# One model against another


def test_a_drift_shows_by_carried_length_and_an_equal_model_has_none():
    def drifting(tokens: np.ndarray, state: int | None) -> tuple[np.ndarray, int]:
        """The log of a probability that falls from 1/256 the more has been read."""
        read = (state or 0) + np.arange(tokens.shape[1])
        logits = np.zeros((*tokens.shape, 256))
        logits[0, :, 0] = 0.001 * read
        return logits, (state or 0) + tokens.shape[1]

    data = STREAMED[:12_000]
    found = evaluate.against(uniform, uniform, data)["against"]
    assert [row["bytes_read"] for row in found] == [1_000, 10_000, 11_999]
    assert all(row["nats_per_byte_more"] == row["kl_nats"] == 0 for row in found)
    found = evaluate.against(drifting, uniform, data)["against"]
    assert 0 < found[0]["kl_nats"] < found[1]["kl_nats"] < found[2]["kl_nats"]
    logits, _ = drifting(data[None, :1000].astype(np.int64), None)
    alone = evaluate.losses(logits[0], data[1:1001].astype(np.int64)).mean() - math.log(256)
    assert found[0]["nats_per_byte_more"] == pytest.approx(alone)


def test_what_comes_again_is_found_by_its_distance(monkeypatch):
    monkeypatch.setattr(evaluate, "SEARCHED", 100)
    random = np.random.default_rng(0)
    near, far, known = (random.integers(0, 256, 40).astype(np.uint8) for _ in range(3))
    before, between = (random.integers(0, 256, n).astype(np.uint8) for n in (80, 260))
    learned = np.concatenate([before, known])
    data = np.concatenate([near, far, known, near, known, between, far])
    ngrams = 40 - evaluate.NGRAM + 1

    def knows_the_first(tokens: np.ndarray, state: object) -> tuple[np.ndarray, object]:
        """Right wherever the first forty bytes stand."""
        logits = np.zeros((*tokens.shape, 256))
        for start in (0, 120):
            for place in range(start, start + 39):
                logits[0, place, data[place + 1]] = 100
        return logits, state

    found = evaluate.repeats(knows_the_first, data, learned)["repeats"]
    assert [(row["distance"], row["count"]) for row in found] == [
        (0, 2 * ngrams),
        (256, ngrams),
        (1000, ngrams),
    ]
    assert [round(row["accuracy"], 1) for row in found] == [0.5, 1.0, 0.0]
    wanted = [math.log(256) / 2, 0, math.log(256)]
    assert np.allclose([row["nats_per_byte"] for row in found], wanted, atol=1e-3)
    short = evaluate.repeats(uniform, data[:5], learned)
    assert short == {"bytes": 5, "repeats": []}


def test_int8_against_its_weights(tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_bytes(tasks.corpus("passkey", 15_000)[:15_010])
    command = [str(ROOT / "models" / "shakespeare-int8.onnx"), "--data", str(text), "--json"]
    command += ["--against", str(ROOT / "models" / "shakespeare.safetensors")]
    assert evaluate.main(command) == 0
    rows = json.loads(capsys.readouterr().out)["against"]
    assert [row["bytes_read"] for row in rows] == [1_000, 1_500]
    assert all(0 < row["kl_nats"] < 0.05 for row in rows)


# The commands


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A tiny model in which no matrix is zero."""
    spec, random = PRESETS["tiny"], np.random.default_rng(1)
    noisy = {
        n: v + np.float32(0.05) * random.standard_normal(v.shape, np.float32)
        for n, v in model.initialise(spec, 0).items()
    }
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_model(path, spec, noisy)
    return path


def test_a_corpus_of_a_task_is_written_and_a_model_evaluated_on_all(tmp_path, weights, capsys):
    out = tmp_path / "mqar.txt"
    command = ["mqar", "--bytes", str(CORPUS_BYTES), "--out", str(out), "--json"]
    assert tasks.main(command) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["bytes"] == out.stat().st_size and out.read_bytes() == tasks.corpus("mqar", 3000)
    on_text = [str(weights), "--data", str(out), "--stream-bytes", "1500"]
    assert evaluate.main([*on_text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stream_finite"] and found["stream_bytes"] == 1500
    assert found["stream"][-1]["bytes_read"] == 1500 // found["bytes"] * found["bytes"]
    assert evaluate.main(on_text) == 0
    assert "nats_per_byte" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_a_model_is_evaluated_on_a_task(task, weights, capsys):
    distances = [max(16, TASKS[task].shortest), 140]
    command = [str(weights), "--task", task, "--examples", "2", "--distances", *map(str, distances)]
    assert evaluate.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["distance"] for row in found["distances"]] == distances
    assert all(row["nats_per_answer_byte"] > 0 for row in found["distances"])
    assert evaluate.main(command) == 0
    assert "chance_accuracy" in capsys.readouterr().out


def test_the_shipped_onnx_is_evaluated_on_a_task():
    score = evaluate.scorer(ROOT / "models" / "shakespeare-int8.onnx")
    (row,) = evaluate.recall(score, "copying", [16], 1)["distances"]
    assert 0 < row["nats_per_answer_byte"] < 100


@pytest.mark.parametrize(
    "options",
    [
        ("--task", "mqar", "--distances", "15"),
        ("--stream-bytes", "10"),
        ("--stream-bytes", str(evaluate.LONGEST_STREAM + 1)),
        ("--data", "missing.txt"),
    ],
)
def test_bad_input_is_one_line(options, tmp_path, weights, capsys):
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(tasks.corpus("copying", CORPUS_BYTES))
    assert evaluate.main([str(weights), "--data", str(corpus), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"tsm-evaluate: .+, wanted .+\n", printed.err)


@pytest.mark.parametrize("options", [("--longest", "15"), ("--seed", "-1"), ("--out", "missing/x")])
def test_a_bad_corpus_is_one_line_and_leaves_nothing(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tasks.main(["mqar", "--bytes", "100", "--out", "x", *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.fullmatch(r"tsm-tasks: .+\n", printed.err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("main", [evaluate.main, tasks.main])
@pytest.mark.parametrize(
    "options",
    [
        ("--examples", "0"),
        ("--bytes", "0"),
        ("--task", "chess"),
        ("--against", "x", "--task", "mqar"),
    ],
)
def test_a_bad_option_is_refused(main, options, capsys):
    with pytest.raises(SystemExit) as refused:
        main(["mqar", "--out", "x", *options] if main is tasks.main else [*options])
    printed = capsys.readouterr()
    assert refused.value.code == 2 and not printed.out
    assert re.fullmatch(r"tsm-(evaluate|tasks): .+\n", printed.err)
