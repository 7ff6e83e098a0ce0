"""What a JSON Schema must be for a grammar to hold it, checked before llguidance sees it: of some
schemas that are not like this it makes another grammar, of some none that a text could end by."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from functools import lru_cache
from urllib.parse import unquote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

MOST_EXACT = 2**53  # the greatest number up to which a double holds all whole numbers
# What a text is a multiple of: its automaton has as many states. 99,991 took 36 MB, 999,983 225 MB.
MOST_DIVISOR = 10_000
MOST_STEPS = 20_000  # from a schema to those of the same value, in all: half a second
# By a bound that excludes itself, those on the other side of the numbers that are left.
OPPOSITE = {
    "exclusiveMinimum": ("maximum", "exclusiveMaximum"),
    "exclusiveMaximum": ("minimum", "exclusiveMinimum"),
}


def check(text: str, accepts: Callable[[str, str], bool]) -> None:
    """Raises ValueError unless it is a schema that llguidance holds text to. `accepts`: whether the
    grammar of the schema that is its first argument has the second as a text."""
    try:
        root = json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_no_number)
        if not isinstance(root, dict):
            raise ValueError("found no object, wanted a JSON Schema in braces")
        schemas = list(_objects(root))
        _check_that_references_end(root, schemas)
        accepts, steps = lru_cache(maxsize=None)(accepts), 0
        for schema in schemas:
            together = _of_the_same_value(schema, root, {})
            steps += len(together)
            if steps > MOST_STEPS:
                raise ValueError("too many schemas refer to one another")
            _check_divisors(together)
            _check_exclusive_bounds(together, accepts)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _number(text: str) -> float:
    value = float(text)
    if not abs(value) <= MOST_EXACT:
        raise ValueError(f"number {text[:30]}, wanted -2^53 to 2^53")
    try:
        exact = Decimal(text) == Decimal(repr(value))
    except ArithmeticError:  # an exponent beyond Decimal's own
        exact = False
    if not exact:
        raise ValueError(f"number {text[:30]}, wanted no more digits than a double holds")
    return value


def _no_number(text: str) -> float:
    raise ValueError(f"found {text}, wanted a number")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects within a JSON value: its schemas are among them."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for part in value:
            yield from _objects(part)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _reference(schema: dict[str, Any]) -> str:
    """Its reference within the document, as #/$defs/name, or nothing."""
    reference = schema.get("$ref")
    return reference if isinstance(reference, str) and reference.startswith("#") else ""


def _target(root: dict[str, Any], reference: str) -> Any:
    """What the reference names; None: nothing that is here."""
    if not reference:
        return None
    target: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and key.isdecimal():
            target = dict(enumerate(target)).get(int(key))
        else:
            target = target.get(key) if isinstance(target, dict) else None
    return target


def _check_that_references_end(root: dict[str, Any], schemas: list[dict[str, Any]]) -> None:
    """Raises ValueError where a reference leads to itself whatever the text chooses."""
    references = set(map(_reference, schemas))
    open_references = {name for name in references if _target(root, name) is not None}

    def ends(schema: Any) -> bool:
        """Whether a text of it can end, with what is known of references so far."""
        if not isinstance(schema, dict):
            return True
        parts = [*_listed(schema.get("allOf"))]
        if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
            required = [name for name in _listed(schema.get("required")) if type(name) is str]
            parts += [schema["properties"].get(name) for name in required]
        if schema.get("type") == "array":
            count = schema.get("minItems")
            count = int(count) if isinstance(count, float) else 0
            items = _listed(schema.get("prefixItems"))
            parts += items[:count] + [schema.get("items")] * (count > len(items))
        choices = [_listed(schema.get(name)) for name in ("anyOf", "oneOf") if schema.get(name)]
        return (
            _reference(schema) not in open_references
            and all(map(ends, parts))
            and all(any(map(ends, some)) for some in choices)
        )

    ended = True
    while ended:
        ended = {name for name in open_references if ends(_target(root, name))}
        open_references -= ended
    if open_references:
        raise ValueError(f"$ref {min(open_references)!r} refers to itself without an end")


def _of_the_same_value(
    schema: Any, root: dict[str, Any], found: dict[int, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Adds the schema, and those that it lets the same value match besides."""
    if isinstance(schema, dict) and id(schema) not in found:
        found[id(schema)] = schema
        for name in ("allOf", "anyOf", "oneOf"):
            for part in _listed(schema.get(name)):
                _of_the_same_value(part, root, found)
        _of_the_same_value(_target(root, _reference(schema)), root, found)
    return list(found.values())


def _check_divisors(together: list[dict[str, Any]]) -> None:
    given = [part["multipleOf"] for part in together if type(part.get("multipleOf")) is float]
    digits = [Decimal(repr(divisor)).normalize() for divisor in given]
    wholes = [abs(int(d.scaleb(max(0, -int(d.as_tuple().exponent))))) for d in digits]
    divisor = math.lcm(*wholes)
    if divisor > MOST_DIVISOR:
        raise ValueError(f"multipleOf {divisor}, its point left out, wanted at most {MOST_DIVISOR}")


def _check_exclusive_bounds(
    together: list[dict[str, Any]], accepts: Callable[[str, str], bool]
) -> None:
    """llguidance 1.9 takes a whole number that is excluded where the other bound is near."""
    if any(part.get("type") == "integer" for part in together):
        return  # there the bounds are moved by one
    for name, others in OPPOSITE.items():
        if any(isinstance(part.get(name), bool) for part in together):
            raise ValueError(f"{name}: found a boolean, as in draft 4, wanted a number")
        bounds = {part[name] for part in together if type(part.get(name)) is float}
        for bound in filter(float.is_integer, bounds):
            for other, end in ((o, part.get(o)) for part in together for o in others):
                if type(end) is not float or abs(end - bound) > 1:
                    continue
                number = {"type": "number", name: int(bound), other: end}
                if any(accepts(json.dumps(number), f"{sign}{int(bound)}") for sign in ("", "-")):
                    raise ValueError(
                        f"{name} {int(bound)} cannot be held beside {other} {end:g}, "
                        f"wanted {name.replace('exclusiveM', 'm')} of a number next to it"
                    )
