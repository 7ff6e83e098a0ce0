"""Grammars: every text that ends by one matches it, whatever the model would rather say.

pytest tests/test_grammar.py
"""

from __future__ import annotations

import json
import re
import sys
from random import Random

import pytest

from tsm.runtime import Grammar, Sampling, load, stream
from tsm.runtime.grammar import parse
from tsm.runtime.sampling import GrammarError
from tsm.runtime.state import StateError

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 20},
        "age": {"type": "integer", "minimum": 3, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "é", "日本"]}, "maxItems": 3},
        "alive": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "alive"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> stream.Model:
    return load()


def prompted(model: stream.Model, grammar: Grammar, **settings) -> stream.Stream:
    text = model.stream(Sampling(**settings), grammar=grammar, rewind=1000)
    text.feed("ROMEO:\n")
    return text


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("temperature", [0.0, 0.8, 3.0])
def test_every_text_of_a_schema_is_valid(model, seed, temperature):
    grammar = Grammar("json_schema", json.dumps(SCHEMA))
    text = prompted(model, grammar, seed=seed, temperature=temperature)
    found = json.loads("".join(text.generate(500)))
    assert text.finish_reason == "grammar"
    assert found.keys() == SCHEMA["properties"].keys()
    assert isinstance(found["name"], str) and 1 <= len(found["name"]) <= 20
    assert type(found["age"]) is int and 3 <= found["age"] <= 120
    assert set(found["tags"]) <= {"a", "é", "日本"} and len(found["tags"]) <= 3
    assert type(found["alive"]) is bool


@pytest.mark.parametrize(
    "regex",
    [
        r"[0-9]{3}-[0-9]{4}",
        "(yes|no|maybe)",
        "日本|é+",
        r"[A-Z][a-z]+( [a-z]+){2,4}\.",
        "a{2,5}b?",
        "x",
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_every_text_matches_its_expression(model, regex, seed):
    text = prompted(model, Grammar("regex", regex), seed=seed, temperature=1.5)
    found = "".join(text.generate(300))
    assert text.finish_reason == "grammar"
    assert re.fullmatch(regex, found)
    assert list(text.generate(10)) == []  # and nothing after it


def test_a_text_that_may_go_on_ends_where_the_model_would_leave_it(model):
    free = model.stream(Sampling(temperature=0))
    free.feed("ROMEO:\n")
    word = re.match("[A-Za-z]+", "".join(free.generate(50)))
    text = prompted(model, Grammar("regex", "[A-Za-z]+"), temperature=0)
    assert word and "".join(text.generate(50)) == word[0]
    lengths = set()
    for seed in range(20):
        one = prompted(model, Grammar("regex", "[a-z ]+"), seed=seed)
        lengths.add(len("".join(one.generate(400))))
        assert one.finish_reason == "grammar"
    assert len(lengths) > 5


def test_more_to_read_begins_the_grammar_anew(model):
    text = prompted(model, Grammar("regex", "(yes|no)"))
    first = "".join(text.generate(10))
    text.feed("\nJULIET:\n")
    assert {first, "".join(text.generate(10))} <= {"yes", "no"}
    assert text.finish_reason == "grammar"


def test_a_place_in_a_grammar_is_forked_rewound_and_saved(model, tmp_path):
    grammar = json.dumps(
        {"type": "array", "items": {"enum": [1, 22, 333]}, "minItems": 9, "maxItems": 12}
    )
    text = prompted(model, Grammar("json_schema", grammar), seed=2)
    first = bytes(text.generate_bytes(12))
    text.save(tmp_path / "state")
    fork, loaded = text.fork(), model.load_stream(tmp_path / "state")
    rest = [bytes(one.generate_bytes(300)) for one in (text, fork, loaded)]
    assert rest[0] == rest[1] == rest[2]
    assert len(json.loads(first + rest[0])) >= 9
    text.rewind(len(rest[0]) - 1)
    assert bytes(text.generate_bytes(300)) == rest[0][1:]
    text.save(tmp_path / "ended")
    assert list(model.load_stream(tmp_path / "ended").generate_bytes(5)) == []


def test_a_state_whose_text_is_not_of_its_grammar_is_refused(model, tmp_path):
    text = prompted(model, Grammar("regex", "[ab]{9}"))
    bytes(text.generate_bytes(3))
    text.grammar.consumed[0] = ord("c")
    text.save(tmp_path / "state")
    with pytest.raises(StateError, match="not one of its grammar"):
        model.load_stream(tmp_path / "state")


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        ("(", "unclosed group"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "backreferences"),
        ("[a&&b]", "cannot be used"),
        ("{", "cannot be used"),
        ('{"type": "foo"}', "Invalid type: foo"),
        ('{"not": {"type": "string"}}', "Unimplemented"),
        ("/no/such.json", "no such file or directory, wanted a JSON Schema"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_one_clear_line(grammar, says):
    with pytest.raises(GrammarError) as refused:
        parse(grammar)
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (
            {"type": "integer", "multipleOf": 99999989},
            "99999989, its point left out, wanted",
        ),
        ({"multipleOf": 9999.9}, "multipleOf 99999"),
        ({"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 97}]}, "multipleOf"),
        ({"anyOf": [{"type": "array"}] + [{"$ref": "#"}] * 999}, "too many schemas"),
    ],
)
def test_a_small_schema_that_would_take_much_memory_or_time_is_refused(schema, says):
    with pytest.raises(GrammarError, match=says):
        parse(json.dumps(schema))


def test_divisors_and_schemas_of_the_usual_size_are_held():
    for divisor, number in ((0.01, b"1.25"), (300, b"900"), (8191, b"16382")):
        grammar = parse(json.dumps({"type": "number", "multipleOf": divisor}))
        assert all(map(grammar.consume, number)) and grammar.accepting
    parse(json.dumps({"allOf": [{}] * 4000}))


def test_a_small_expression_whose_text_would_take_ever_more_memory_ends_in_an_error():
    """Of each text a state of its own: 8,000 bytes took 316 MB."""
    parts = (f"[a-z]*{chr(97 + i)}[a-z]{{{i + 3}}}" for i in range(26))
    grammar, random = parse(f"({'|'.join(parts)})*"), Random(1)
    with pytest.raises(GrammarError, match="too many states"):
        for _ in range(4000):
            grammar.consume(random.randrange(97, 123))


def test_without_its_library_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(GrammarError, match="not installed, wanted: pip install llguidance"):
        parse("a")


def test_a_bias_that_leaves_nothing_is_one_clear_error(model):
    text = prompted(model, Grammar("regex", "ab"), logit_bias={ord("b"): float("-inf")})
    with pytest.raises(GrammarError, match="logit_bias excludes every byte that may follow"):
        "".join(text.generate(5))


def test_a_schema_comes_from_a_file_too(tmp_path):
    (tmp_path / "schema.json").write_text('{"enum": ["é"]}')
    grammar = parse(str(tmp_path / "schema.json"))
    assert all(map(grammar.consume, '"é"'.encode())) and grammar.ended
    assert (grammar.kind, parse("{}").kind, parse("a{2}").kind) == (
        "json_schema",
        "json_schema",
        "regex",
    )
