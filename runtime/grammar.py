"""Grammars: text held to a regular expression or a JSON Schema, byte by byte, with llguidance.

    grammar = Grammar("regex", r"[0-9]{3}-[0-9]{4}")  # or "json_schema", or parse(text)

Where the text may not end yet, bytes that the grammar forbids are not drawn. Where it may end and
may go on, the model draws from all bytes: one that the grammar forbids is the end, and is dropped.
So a number is as long as the model would have it, without an end token that a model of
bytes does not have. Where the text can only end, it ends.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

from .sampling import GrammarError

KINDS = ("regex", "json_schema")
COMPILING = 200_000  # steps of the lexer: of a million, `(a{1000}){1000}` took 4 s and 170 MB
MOST_STATES = 50_000  # of the lexer, as a text goes on: some 30 MB
_NEVER = float("-inf")


def parse(text: str) -> Grammar:
    """A schema, where the text begins with { or names a .json file; else an expression."""
    if text.lower().endswith(".json"):
        try:
            with open(text, encoding="utf-8-sig") as file:  # as Windows writes it, too
                return Grammar("json_schema", file.read())
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise GrammarError(f"{text}: {reason.lower()}, wanted a JSON Schema") from None
    schema = text.lstrip("\ufeff \t\r\n")
    return Grammar("json_schema", schema) if schema.startswith("{") else Grammar("regex", text)


class Grammar:
    """An expression or a schema, and how far a text has come in it. Raises GrammarError where it
    cannot be held."""

    def __init__(self, kind: str, source: str, consumed: bytes = b"") -> None:
        if kind not in KINDS:
            raise GrammarError(f"grammar: kind {kind!r}, wanted {' or '.join(KINDS)}")
        self.kind, self.source = kind, source
        self.consumed = bytearray()
        self.ended = False  # nothing more can be drawn
        try:
            if not source:
                raise ValueError("it is empty")
            if kind == "json_schema":
                from . import schema

                schema.check(source, _accepts)
            self._matcher = _matcher(kind, source)
        except GrammarError:  # a ValueError, too
            raise
        except ValueError as error:
            raise self._refused(str(error)) from None
        self._look()
        if not (self.accepting or any(map(self.allows, range(256)))):
            raise self._refused("nothing matches it")
        for byte in consumed:
            self.consume(byte)

    def allows(self, byte: int) -> bool:
        return self._allowed[byte >> 3] >> (byte & 7) & 1 == 1

    def mask(self, adjust: array[float] | None) -> array[float] | None:
        """`adjust` (256) with the bytes excluded that cannot follow; as it is, where the text may
        end. Raises GrammarError where no byte is left."""
        if self.accepting:
            return adjust
        values = adjust or array("f", bytes(4 * 256))
        masked = (v if self.allows(byte) else _NEVER for byte, v in enumerate(values))
        values = array("f", masked)
        if max(values) == _NEVER:
            raise GrammarError("grammar: logit_bias excludes every byte that may follow")
        return values

    def consume(self, byte: int) -> bool:
        """Goes on by a byte that was drawn. False: it is none of the text, which has ended."""
        if self.ended or not self.allows(byte):
            self.ended = True
            return False
        self._matcher.consume_token(byte)
        self.consumed.append(byte)
        self._look()
        return True

    def rewind(self, count: int) -> None:
        """Forgets the last `count` bytes, or all where there are fewer."""
        count = min(count, len(self.consumed))
        self._matcher.rollback(count)
        del self.consumed[len(self.consumed) - count :]
        self.ended = False
        self._look()

    def copy(self) -> Grammar:
        other = Grammar.__new__(Grammar)
        other.__dict__.update(self.__dict__)
        other.consumed, other._matcher = bytearray(self.consumed), self._matcher.deep_copy()
        return other

    def _look(self) -> None:
        """Reads off what may follow."""
        self.accepting = self._matcher.is_accepting()
        if self._matcher.is_stopped():
            self._allowed, self.ended = bytes(33), True
        else:
            self._allowed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise self._refused(self._matcher.get_error())

    def _refused(self, reason: str) -> GrammarError:
        words = " ".join(reason.split())
        return GrammarError(f"grammar: {self.source[:60]!r} cannot be used ({words[:160]})")


def _matcher(kind: str, source: str) -> Any:
    """llguidance's matcher. Raises ValueError, or GrammarError where it is not installed."""
    try:
        from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    except ImportError:
        raise GrammarError(
            "grammar: llguidance is not installed, wanted: pip install llguidance"
        ) from None
    if kind == "regex":
        compiled = LLMatcher.grammar_from_regex(source)
    else:  # without white space, which a small model might never leave
        compact: Any = {"whitespace_flexible": False}
        compiled = LLMatcher.grammar_from_json_schema(source, overrides=compact)
    limits = LLParserLimits(
        initial_lexer_fuel=COMPILING, max_lexer_states=MOST_STATES, verbose_errors=False
    )
    # Its vocabulary is the 256 bytes, and tokens of its own above them.
    matcher = LLMatcher(LLTokenizer("byte"), compiled, log_level=0, limits=limits)
    if matcher.is_error():
        raise ValueError(matcher.get_error())
    return matcher


def _accepts(schema: str, text: str) -> bool:
    """Whether a text is a whole one of the schema."""
    matcher = _matcher("json_schema", schema)
    return matcher.try_consume_tokens(list(text.encode())) == len(text) and matcher.is_accepting()
