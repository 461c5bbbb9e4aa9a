"""Texts and questions of a source that a chat template wrote (formats/known_templates): how many there are,
and what is to be said of that.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tuner.data.conversation import RowError
from tuner.data.files import row_files
from tuner.data.files.chunk import key_pattern
from tuner.data.formats import known_templates, templated
from tuner.data.formats.detect import recognise
from tuner.data.formats.shape import RowShape, SourceFacts
from tuner.data.survey.observer import Observer

ASKED = ("question", "query", "input")
"""columns of questions, beside those of the formats, as sets call them"""
MARK = re.compile(
    "<\\||###|\\\\u003c|User: |Human: "
    "|USER:|\\[INST\\]|\\[SYSTEM_PROMPT\\]|\\[\\||GPT4|<｜|\\\\uff5c|</s>|<eos>|<s>|<start_of_turn>|<reserved_10|<AI>|<human>".encode()
)
"""what is in the marks of chat templates (formats/templated), also as JSON may spell it"""


def describe_templates(shape: RowShape) -> list[str]:
    """What is to be said of what was found; mostly nothing."""
    facts, lines = shape.facts, list[str]()
    for what, (marked, many), read, otherwise in (
        ("texts", facts.templated, facts.chats, "data.format=text trains"),
        ("questions", facts.opened, facts.continues, "data.format=prompt or alpaca trains"),
    ):
        found = f"{marked:,} of {many:,} {what} begin as a chat template writes a conversation"
        if marked and read:
            lines.append(f"{found}, and are read as one; {otherwise} them as plain text")
        elif marked:
            more = ". data.format=templated reads all as conversations" if what == "texts" else ""
            lines.append(f"{found}; as most don't, they are trained as plain text{more}")
    if facts.spelled[0]:
        many, token = facts.spelled
        lines.append(
            f"{many:,} of {facts.templated[1]:,} texts begin or end with a special token written out, such "
            f"as {token}, which is trained as plain text; the tokenizer adds the tokens that begin and end "
            "a text, so remove it"
        )
    return lines


class TemplatedTexts(Observer):
    """Plain texts, and questions with their answers; and how many of each begin as a chat template does."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._texts, self._pairs, self._spelled = (0, 0), (0, 0), (0, "")
        read = {"text", *(asked for asked, _ in templated.PAIRS.values()), *ASKED}
        self._heads = {
            *read,
            *(
                place.partition(".")[0]
                for ours, place in columns.items()
                if ours in read and "{" not in place
            ),
        }
        self._keyed = key_pattern(self._heads)

    def counts_all(self) -> bool:
        """Where any text or question begins so: most of them decide."""
        return bool(self._texts[0] or self._pairs[0])

    def keys(self) -> frozenset[str]:
        """The columns of texts and questions."""
        return frozenset(self._heads)

    def wants(self, content: bytes) -> bool:
        """Where such a column and a part of a mark are."""
        return self._keyed.search(content) is not None and MARK.search(content) is not None

    def passed(self, chunk: row_files.Chunk) -> None:
        """Its rows count as texts and questions that begin with no mark."""
        for row in chunk.values or ():
            self.see(row)
        if chunk.lines is not None and self._keyed.search(chunk.lines):
            many = row_files.count_rows(chunk)
            self._texts, self._pairs = (
                (self._texts[0], self._texts[1] + many),
                (self._pairs[0], self._pairs[1] + many),
            )

    def see(self, row: Any) -> None:
        """A row."""
        if not isinstance(row, dict) or "messages" in row or "conversations" in row:
            return
        try:
            format, placed = recognise(row)
        except RowError:
            return
        if format == "text" and isinstance(found := placed["text"], str) and found.strip():
            marked = known_templates.begins_as_template(found)
            self._texts = (self._texts[0] + marked, self._texts[1] + 1)
            if not marked and (token := known_templates.written_token(found)):
                self._spelled = (self._spelled[0] + 1, self._spelled[1] or token)
        elif format in templated.PAIRS:
            self._pairs = (
                self._pairs[0] + (templated.templated_pair(placed, format) is not None),
                self._pairs[1] + 1,
            )

    def tell(self, facts: SourceFacts) -> SourceFacts:
        """The counts."""
        return replace(facts, templated=self._texts, opened=self._pairs, spelled=self._spelled)
