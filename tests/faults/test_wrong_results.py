"""Inputs that once gave another result than what was asked for, without a word.

pytest tests/faults/test_wrong_results.py
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tsm.runtime import Grammar, GrammarError, Sampling, load, stream
from tsm.runtime.grammar import parse


@pytest.fixture(scope="module")
def model() -> stream.Model:
    return load()


def accepts(grammar: Grammar, text: str) -> bool:
    walked = grammar.copy()
    return all(map(walked.consume, text.encode())) and walked.accepting


def refusal(schema: object) -> str:
    text = schema if isinstance(schema, str) else json.dumps(schema)
    with pytest.raises(GrammarError) as refused:
        Grammar("json_schema", text)
    assert "\n" not in str(refused.value) and "<non-verbose" not in str(refused.value)
    return str(refused.value)


# Numbers of a JSON Schema


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5},
        {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.75},
        {"exclusiveMinimum": 0, "maximum": 0.5},
        {"type": "number", "minimum": -0.25, "exclusiveMaximum": 0},
        {"type": "number", "exclusiveMinimum": 1, "maximum": 1.379},
        {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}},
        {"allOf": [{"type": "number", "exclusiveMinimum": 0}, {"maximum": 0.5}]},
        {
            "$defs": {"positive": {"type": "number", "exclusiveMinimum": 0}},
            "properties": {"a": {"$ref": "#/$defs/positive", "maximum": 0.5}},
        },
    ],
    ids=json.dumps,
)
def test_a_bound_that_would_not_be_excluded_is_refused(schema):
    assert "cannot be held beside" in refusal(schema)


@pytest.mark.parametrize(
    ("schema", "within", "outside"),
    [
        ({"exclusiveMinimum": 0}, ["0.1", "3"], ["0", "-0", "-1"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.5"], ["0", "1", "1.0"]),
        ({"exclusiveMinimum": 0.25, "maximum": 0.5}, ["0.3", "0.5"], ["0.25", "0", "0.250"]),
        ({"minimum": 0, "exclusiveMaximum": 0.5}, ["0", "0.49"], ["0.5"]),
        ({"exclusiveMinimum": -2, "maximum": 3.5}, ["-1.5", "3.5"], ["-2", "3.6"]),
    ],
    ids=json.dumps,
)
def test_bounds_that_are_held_exclude_what_they_say(schema, within, outside):
    grammar = Grammar("json_schema", json.dumps({"type": "number", **schema}))
    assert [text for text in within + outside if accepts(grammar, text)] == within


@pytest.mark.parametrize("seed", range(5))
def test_a_number_drawn_lies_within_its_bounds(model, seed):
    schema = {"type": "number", "exclusiveMinimum": 0.0625, "maximum": 0.5}
    grammar = Grammar("json_schema", json.dumps(schema))
    text = model.stream(Sampling(seed=seed), grammar=grammar)
    assert 0.0625 < float("".join(text.generate(200))) <= 0.5


def test_a_bound_of_draft_4_is_refused():
    assert "wanted a number" in refusal({"type": "number", "minimum": 0, "exclusiveMinimum": True})


@pytest.mark.parametrize(
    "schema",
    [
        '{"enum":[1234567890123456789]}',
        '{"const":9007199254740993}',
        '{"enum":["a",{"b":[-9007199254740993]}]}',
        '{"const":0.12345678901234567890}',
        '{"const":1e400}',
        '{"const":NaN}',
        '{"type":"integer","minimum":9007199254740993,"maximum":9007199254740995}',
        '{"type":"integer","minimum":-9223372036854775808,"maximum":-9223372036854775806}',
        '{"type":"integer","maximum":9223372036854775807}',
        '{"type":"integer","minimum":-1e30,"maximum":-9.3e18}',
        '{"anyOf":[{"type":"string"},{"type":"integer","exclusiveMaximum":18446744073709551616}]}',
    ],
)
def test_a_number_beyond_what_a_double_holds_is_refused(schema):
    assert "number" in refusal(schema)


@pytest.mark.parametrize("value", [9007199254740992, -9007199254740991, 0.1, 1e-7, 123.456, 0])
def test_a_number_that_a_double_holds_is_that_number(value):
    grammar, text = Grammar("json_schema", json.dumps({"const": value})), ""
    while not grammar.ended:
        byte = next(filter(grammar.allows, range(256)), None)
        if byte is None:
            break
        grammar.consume(byte)
        text += chr(byte)
    assert json.loads(text) == value


BOUNDS = [-(2**53), 1 - 2**53, -1e15, -256, -1, 0, 0.5, 1, 255, 2**31, 2**53 - 1, 2**53]

CRASHES = """
import itertools, json, sys
from tsm.runtime import Grammar, GrammarError
bounds, made = json.loads(sys.argv[1]), 0
for low, high in itertools.product(bounds, bounds):
    for kind in ("integer", "number"):
        for names in (("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")):
            schema = {"type": kind, names[0]: low, names[1]: high}
            try:
                made += bool(Grammar("json_schema", json.dumps(schema)))
            except GrammarError:
                pass
print(made)
"""


def test_no_bounds_end_the_process():
    command = [sys.executable, "-c", CRASHES, json.dumps(BOUNDS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and int(done.stdout) > 100


# Grammars that cannot be held


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"allOf": [{"$ref": "#"}]},
        {"anyOf": [{"$ref": "#"}]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "$ref": "#/$defs/a",
        },
    ],
    ids=json.dumps,
)
def test_a_schema_whose_text_could_never_end_is_refused(schema):
    assert "refers to itself without an end" in refusal(schema)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "null"),
        ({"type": "array", "items": {"$ref": "#"}}, "[[],[]]"),
        ({"type": "object", "properties": {"$ref": {"type": "integer"}}}, '{"$ref":3}'),
        (
            {
                "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}},
                "type": "object",
                "properties": {"a/b": {"$ref": "#/$defs/tree"}, "c": {"$ref": "#/properties/a~1b"}},
                "required": ["c"],
            },
            '{"c":[[]]}',
        ),
    ],
    ids=json.dumps,
)
def test_a_schema_that_refers_to_itself_and_can_end_is_held(schema, text):
    assert accepts(Grammar("json_schema", json.dumps(schema)), text)


@pytest.mark.parametrize("source", ["true", "[]", "3", "[" * 100_000, '{"not":{}', '{"a":' * 400])
def test_what_is_no_schema_is_refused(source):
    refusal(source)


@pytest.mark.parametrize("kind", ["regex", "json_schema"])
def test_an_empty_grammar_is_refused(kind):
    with pytest.raises(GrammarError, match="grammar: '' cannot be used .it is empty."):
        Grammar(kind, "")
    with pytest.raises(GrammarError, match="it is empty"):
        parse("")


@pytest.mark.parametrize("seed", range(5))
def test_pattern_properties_hold_beside_properties(model, seed):
    schema = {
        "type": "object",
        "properties": {"b": {"type": "boolean"}},
        "patternProperties": {"^a": {"type": "null"}},
        "additionalProperties": False,
        "required": ["b"],
    }
    grammar = Grammar("json_schema", json.dumps(schema))
    for text, right in (
        ('{"b":true,"ab":null}', True),
        ('{"b":true,"ab":3}', False),
        ('{"ab":null}', False),
        ('{"b":true,"c":null}', False),
    ):
        assert accepts(grammar, text) == right
    stream = model.stream(Sampling(seed=seed, temperature=1.5), grammar=grammar)
    drawn = "".join(stream.generate(60))
    assert drawn.startswith('{"b":') and stream.finish_reason in ("grammar", "length")


@pytest.mark.parametrize("name", ["S.JSON", "s.json", "s.Json"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_schema_file_of_any_spelling_and_with_a_byte_order_mark_is_read(tmp_path, name, encoding):
    (tmp_path / name).write_text(' {"enum": ["é"]}', encoding=encoding)
    assert accepts(parse(str(tmp_path / name)), '"é"')


@pytest.mark.parametrize("before", ["\ufeff", " ", "\n\t"])
def test_a_schema_may_begin_with_white_space(before):
    grammar = parse(before + '{"enum": ["é"]}')
    assert grammar.kind == "json_schema" and accepts(grammar, '"é"')
