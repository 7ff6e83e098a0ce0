"""The screen: a text, and behind the cursor in gray how it may go on.

The suggestion is computed after each key, before the screen is drawn: so none is ever of another
text than the one that is seen, and nothing flickers.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prompt_toolkit.application import Application
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.layout import BufferControl, FormattedTextControl, HSplit, Layout, Window
from prompt_toolkit.layout.processors import (
    Processor,
    TabsProcessor,
    Transformation,
    TransformationInput,
)
from prompt_toolkit.styles import Style

from tsm.runtime.complete import Completer, Completion

AUTOSAVE_SECONDS = 5
ESCAPE_SECONDS = 0.05  # in which a terminal sends the rest of a key that begins with Esc
UNDO_CHARACTERS = 1_000_000  # in all copies of the text that are kept
CORRECTION = " → "  # before a word that is to take the place of the one typed
HELP = "Tab: a word  →: all  Esc: none  ^S: save  ^Q: save and leave"
STYLE = Style.from_dict({"ghost": "fg:ansibrightblack", "bar": "reverse"})


class _Text(Buffer):
    """Whose undo stack, a copy of the text for each entry, does not grow without end."""

    def save_to_undo_stack(self, clear_redo_stack: bool = True) -> None:
        super().save_to_undo_stack(clear_redo_stack)
        stack = self._undo_stack
        while len(stack) > 1 and len(stack) * len(self.text) > UNDO_CHARACTERS:
            del stack[0]


class Pad:
    """A text that is written; `save` takes it and the cursor's place, and where that fails `copy`
    takes it and returns where it has put it."""

    def __init__(
        self,
        text: str,
        cursor: int,
        completer: Completer,
        save: Callable[[str, int], None],
        copy: Callable[[str], Path],
        title: str,
        **terminal: Any,
    ) -> None:
        """terminal: input and output, of prompt_toolkit's, in place of the real one's."""
        self._completer, self._save, self._copy, self._title = completer, save, copy, title
        self.completion: Completion | None = None
        self.unsaved = ""  # why, where saving failed
        self._told = False  # that another key leaves without
        self.copied: Path | None = None
        self.buffer = _Text(document=Document(text, cursor), multiline=True)
        self._seen = self.buffer.document
        control = BufferControl(
            self.buffer, input_processors=[_Ghost(self), TabsProcessor(4, " ", " ")]
        )
        bar = Window(FormattedTextControl(self._bar), height=1, style="class:bar")
        self.app: Application[None] = Application(
            layout=Layout(HSplit([Window(control, wrap_lines=True), bar])),
            key_bindings=self._keys(),
            style=STYLE,
            full_screen=True,
            **terminal,
        )
        self.app.timeoutlen = self.app.ttimeoutlen = ESCAPE_SECONDS
        self.app.key_processor.after_key_press += lambda _: self._look()

    def run(self) -> None:
        """Until one leaves; the text is saved then, whatever ends it, or `unsaved` says why not and
        where a copy is."""
        try:
            self.app.run(pre_run=lambda: self.app.create_background_task(self._autosave()))
        finally:
            if not self.save() and (self.copied or self._keep_copy()):
                self.unsaved += f"; the text is in {self.copied}"

    def save(self) -> bool:
        """Returns whether it could be; where not, the bar tells why."""
        try:
            self._save(self.buffer.text, self.buffer.cursor_position)
            self.unsaved, self._told = "", False
        except OSError as error:
            self.unsaved = (error.strerror or str(error)).lower()
        return not self.unsaved

    def _keep_copy(self) -> bool:
        """Returns whether it could be."""
        try:
            self.copied = self._copy(self.buffer.text)
        except OSError as error:
            self.unsaved = f"no copy either: {(error.strerror or str(error)).lower()}"
        return self.copied is not None

    async def _autosave(self) -> None:
        saved = self.buffer.document
        while True:
            await asyncio.sleep(AUTOSAVE_SECONDS)
            if self.buffer.document != saved:
                saved = self.buffer.document
                self.save()

    def _look(self) -> None:
        """After a key: another suggestion where the text has changed, none where the cursor has."""
        now = self.buffer.document
        if now == self._seen:
            return
        changed, self._seen = now.text != self._seen.text, now
        self.completion = self._suggestion(now) if changed else None

    def _suggestion(self, document: Document) -> Completion | None:
        if document.current_line_after_cursor.strip():
            return None  # it would stand in the middle of a line
        self._completer.follow(document.text_before_cursor)
        found = self._completer.complete(to="line")
        return found[0] if found and found[0].text else None

    @property
    def ghost(self) -> str:
        """What is shown behind the cursor."""
        if not self.completion:
            return ""
        return (CORRECTION if self.completion.replaced else "") + self.completion.text

    def _accept(self, word: bool) -> None:
        """Takes the first word of the completion, or all of it."""
        assert self.completion
        text, replaced = self.completion.text, self.completion.replaced
        if word:
            first = re.match(r"\s*\S+", text)
            text = first[0] if first else text
        self.buffer.save_to_undo_stack()
        self.buffer.delete_before_cursor(replaced)
        self.buffer.insert_text(text)

    def _bar(self) -> str:
        words = len(self.buffer.text.split()) if len(self.buffer.text) < 100_000 else 0
        document = self.buffer.document
        row, column = document.cursor_position_row, document.cursor_position_col
        count = f"  {words:,} words" if words else ""
        said = f"NOT SAVED: {self.unsaved}" if self.unsaved else HELP
        said += "  ^Q again: leave, keeping a copy" if self._told else ""
        return f" {self._title}  {row + 1}:{column + 1}{count}  {said}"

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        shown = Condition(lambda: self.completion is not None)

        @keys.add("tab", filter=shown)
        def take_word(_: Any) -> None:
            self._accept(word=True)

        @keys.add("tab", filter=~shown)
        def tab(_: Any) -> None:
            self.buffer.insert_text("\t")

        @keys.add("right", filter=shown)
        def take_all(_: Any) -> None:
            self._accept(word=False)

        @keys.add("escape", eager=True)  # what comes right after it is a key of its own
        def take_none(_: Any) -> None:
            self.completion = None

        @keys.add("s-tab")  # what Esc and Tab are on a console, read at once
        def none_and_tab(_: Any) -> None:
            self.completion = None
            self.buffer.insert_text("\t")

        @keys.add("enter")
        def new_line(_: Any) -> None:
            self.buffer.newline(copy_margin=False)

        @keys.add("c-s")
        def save(_: Any) -> None:
            self.save()

        @keys.add("c-q")
        @keys.add("c-c")
        def leave(_: Any) -> None:
            if self.save():
                self.app.exit()
            elif not self._told:
                self._told = True
            elif self._keep_copy():
                self.app.exit()

        return keys


class _Ghost(Processor):
    """Puts the suggestion behind the cursor's line, at whose end the cursor is."""

    def __init__(self, pad: Pad) -> None:
        self._pad = pad

    def apply_transformation(self, transformation_input: TransformationInput) -> Transformation:
        fragments = transformation_input.fragments
        row = transformation_input.document.cursor_position_row
        if self._pad.completion and transformation_input.lineno == row:
            fragments = [*fragments, ("class:ghost", self._pad.ghost)]
        return Transformation(fragments)
