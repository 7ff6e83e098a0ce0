"""Speculative decoding: several bytes in one pass where the text repeats itself.

Where the last CONTEXT bytes have stood in the text before, what followed them there is read ahead
of time, in one block, which costs less than its bytes one by one. Each guess that comes true finds
its logits computed; at the first that does not, the state from before the block is taken again.
An engine whose blocks give the same bits as its single bytes gives the same text with this as
without, whatever the sampler. Off unless asked for: on x86 a second byte of a block costs 0.63 of a
first, and no text that was measured repeats itself enough (docs/decisions.md).
"""

from __future__ import annotations

from array import array

from .engine import VOCABULARY, Engine, some_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .engine import Bytes

CONTEXT = 12  # bytes; with 8, guesses of sampled text are right too seldom (docs/decisions.md)
MOST_AHEAD = 7  # bytes guessed at once; the first time one, then twice as many, while all are right
REMEMBERED = 4096  # bytes of text that are looked through


class Lookahead(Engine):
    """Another engine, which must read pieces of any length to the same bits, and its guesses."""

    any_length = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine.artifact)
        self.engine, self.name, self.draw = engine, engine.name, engine.draw
        self._text = bytearray()
        self._ends: dict[bytes, int] = {}  # by context, where it ended last
        self._size = 1  # of the next guess
        # Of the block that was read ahead: its bytes, how many have come, the logits after each,
        # and the state before it.
        self._ahead, self._come = b"", 0
        self._rows = array("f")
        self._before: dict[str, bytes] = {}
        self.passes = 0  # of the engine, for who wants to know what it saves

    def close(self) -> None:
        self.engine.close()

    def feed(self, data: Bytes) -> array[float]:
        data = some_bytes(data)
        end = self._remember(data)
        if len(data) == 1 and self._ahead[self._come : self._come + 1] == data:
            self._come += 1
        else:
            self._settle()
            guess = self._text[end : end + self._size] if len(data) == 1 else b""
            self.passes += 1
            if not guess:
                return self.engine.feed(data)
            self._before = self.engine.get_state()
            self._ahead, self._come = data + guess, 1
            self._rows = self.engine.logits_of(self._ahead)
        row = self._rows[(self._come - 1) * VOCABULARY : self._come * VOCABULARY]
        if self._come == len(self._ahead):  # the engine has read no more than has come
            self._ahead, self._size = b"", min(2 * self._size, MOST_AHEAD)
        return row

    def get_state(self) -> dict[str, bytes]:
        self._settle()
        return self.engine.get_state()

    def _write_state(self, state: dict[str, bytes]) -> None:
        self._ahead = b""
        self.engine.set_state(state)

    def _run(self, tokens: bytes) -> array[float]:
        self._settle()
        return self.engine.logits_of(tokens)

    def _settle(self) -> None:
        """Leaves the engine where the bytes that have come have brought it."""
        if self._ahead:
            self.engine.set_state(self._before)
            self.engine.feed(self._ahead[: self._come])
            self._ahead, self._size = b"", 1

    def _remember(self, data: bytes) -> int:
        """Adds to the text, and returns where its last CONTEXT bytes ended the time before; its own
        end, after which nothing stands, where they are new."""
        if len(self._text) >= 2 * REMEMBERED:
            newest = bytes(self._text[-REMEMBERED:])
            self._text.clear()
            self._ends.clear()
            self._remember(newest)
        end_before = 0
        for byte in data[-REMEMBERED:]:
            self._text.append(byte)
            end = len(self._text)
            context = bytes(self._text[-CONTEXT:])
            end_before = self._ends.get(context, end)
            self._ends[context] = end
        return end_before
