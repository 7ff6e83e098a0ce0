"""Text as it comes: whole characters, and nothing of what it stops at.

pytest tests/test_text.py
"""

from __future__ import annotations

import random
import re

import pytest

from tsm.runtime.text import REGEX_WINDOW, decode_text


@pytest.mark.parametrize(
    "text", ["plain", "naïve café", "Ὀδύσσεια", "日本語", "😀🏽‍🚀", "a\u0000b"]
)
def test_text_comes_in_whole_characters_at_once(text):
    fed, come = bytearray(), ""
    source = (fed.append(byte) or byte for byte in text.encode())
    for piece in decode_text(source):
        come += piece
        assert come == fed.decode(errors="ignore")  # whole, and not late
    assert come == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("日".encode()[:2], "\ufffd"),
        (b"ab\xe6\x97", "ab\ufffd"),
        (b"\xffa", "\ufffda"),
        (b"\xe6a\x97", "\ufffda\ufffd"),
        (b"", ""),
    ],
)
def test_bytes_that_are_not_utf8_are_replaced(data, text):
    assert "".join(decode_text(data)) == text


def test_no_part_of_a_stop_string_is_ever_printed():
    draw = random.Random(0)
    stopped = 0
    for _ in range(3000):
        text = "".join(draw.choices("abé", k=draw.randrange(12)))
        stops = [
            "".join(draw.choices("abé", k=draw.randint(1, 4))) for _ in range(draw.randrange(4))
        ]
        wanted = text
        for end in range(len(text) + 1):  # the first stop to be complete ends the text
            found = [text[:end].find(stop) for stop in stops if stop in text[:end]]
            if found:
                wanted, stopped = text[: min(found)], stopped + 1
                break
        assert "".join(decode_text(text.encode(), stops)) == wanted, (text, stops)
    assert stopped > 500


def test_stop_strings_hold_back_no_more_than_they_must():
    assert list(decode_text(b"abcxabd", ["abd"])) == ["abc", "x"]


def text_of(data: str, *regexes: str, stops: tuple[str, ...] = ()) -> str:
    return "".join(decode_text(data.encode(), stops, [re.compile(r) for r in regexes]))


def first_end(text: str, regexes: list[str]) -> int:
    """Where the first prefix that has a match has its first one."""
    for end in range(len(text) + 1):
        found = [m.start() for m in (re.search(r, text[:end]) for r in regexes) if m]
        if found:
            return min(found)
    return len(text)


def test_no_part_of_a_match_is_ever_printed():
    draw = random.Random(0)
    pool = ["ab+c", "a|bb", "(?<=b)a{2}", "é[ab]*é", "^b", "b{3,}", "(?m:^)ba", r"\bab\b"]
    stopped = 0
    for _ in range(3000):
        text = "".join(draw.choices("abcé\n", k=draw.randrange(14)))
        regexes = draw.sample(pool, draw.randint(1, 2))
        end = first_end(text, regexes)
        stopped += end < len(text)
        assert text_of(text, *regexes) == text[:end], (text, regexes)
    assert stopped > 500


@pytest.mark.parametrize("before", [0, 1, 255, 256, 300, 2000])
def test_a_match_as_long_as_the_window_is_found_anywhere(before):
    match = "<" + "x" * (REGEX_WINDOW - 2) + ">"
    assert text_of("." * before + match + "after", "<x*>") == "." * before
    assert text_of("." * before + "a<after", "(?<=a)<", stops=("never",)) == "." * before + "a"


def test_text_is_held_back_by_the_window_only():
    pieces = list(decode_text(b"." * 1000, (), [re.compile("a")]))
    assert "".join(pieces) == "." * 1000 and pieces[-1] == "." * (REGEX_WINDOW - 1)


def test_it_says_whether_it_was_stopped():
    def returned(*arguments) -> bool:
        def outer():
            outer.value = yield from decode_text(*arguments)

        list(outer())
        return outer.value

    assert returned(b"abc", ["c"]) and returned(b"abc", [], [re.compile("c")])
    assert not returned(b"abc", ["d"], [re.compile("d")])
