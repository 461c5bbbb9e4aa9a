"""Nulls in calls and tools of which no schema says anything, as all rows of a source show them: an observer
of `tuner.data.survey.scan`.
"""

import re
from dataclasses import replace
from typing import Any

from tuner.data.conversation import Conversation, Label, LeftOut, RowError
from tuner.data.files.chunk import key_pattern
from tuner.data.formats import nulls
from tuner.data.formats.rows import read_row
from tuner.data.formats.shape import RowShape, SourceFacts
from tuner.data.formats.tool_schema import tool_schemas
from tuner.data.formats.tools import ALSO, OFFERED
from tuner.data.survey.observer import Observer

CALLING = ("auto", "messages", "sharegpt", "xtuner", "prompt", "chosen")
"""formats in whose rows there may be calls"""
OFFERS = (*OFFERED, *ALSO)
CALLED = re.compile(b"tool_call|function_call|tool_use|" + key_pattern(OFFERS).pattern)
"""what is written beside each call, and the columns of tools"""
PLAIN = re.compile(rb'"(?:content|tool_calls|function_call|tool_call_id|refusal|reasoning_content)" ?: ?null')
"""nulls of turns, as they are in nearly all files of calls"""


class NullArguments(Observer):
    """Arguments that are null in a call and of which its tool's schema says nothing: of which tools they
    have a value tells a second pass.
    """

    def __init__(self, shape: RowShape, empty: frozenset[tuple[str, str]] | None = None) -> None:
        # the rows come with their columns in place
        self._shape, self._empty = replace(shape, columns={}), empty
        self._paths = {path for _, path in empty or ()}
        self._found: set[tuple[str, str]] = set()

    def keys(self) -> frozenset[str]:
        """The columns of calls and tools."""
        return frozenset(("tool_calls", "tool_call", "function_call", "tool_use_id", *OFFERS))

    def wants(self, content: bytes) -> bool:
        """Where calls are; in the first pass, only with another null than that of an answer without text."""
        if self._empty is None and content.count(b"null") == len(PLAIN.findall(content)):
            return False
        return CALLED.search(content) is not None

    def see(self, row: Any) -> None:
        """A row."""
        try:
            samples = read_row(row, self._shape)
        except (RowError, LeftOut):
            return
        for sample in samples:
            sample = sample.conversation if isinstance(sample, Label) else sample
            if not isinstance(sample, Conversation):
                continue
            # no schema reaches into a text
            if not (isinstance(row, dict) and any(isinstance(row.get(key), str) for key in OFFERS)):
                parts = nulls.parts_of(sample.tools, null=self._empty is None)
                self._found.update(part for part in parts if self._empty is None or part[1] in self._paths)
            schemas = tool_schemas(sample.tools)
            for call in (call for message in sample.messages for call in message.calls):
                if self._empty is None:
                    self._found.update(
                        (call.name, path) for path in nulls.nulls_of(call.arguments, schemas.get(call.name))
                    )
                else:
                    self._found.update(
                        (call.name, path) for path in nulls.values_of(call.arguments) if path in self._paths
                    )

    def tell(self, facts: SourceFacts) -> SourceFacts:
        """Which are filler: those that never have a value in calls of this tool, and have one in calls of
        others.
        """
        if not self._empty:
            return facts
        tools: dict[str, set[str]] = {}
        for tool, path in self._found:
            tools.setdefault(path, set()).add(tool)
        return replace(
            facts,
            filler=frozenset(
                (tool, path)
                for tool, path in self._empty
                if tool not in (having := tools.get(path, set())) and having
            ),
        )

    def then(self) -> "NullArguments | None":
        """The values, where there are such nulls."""
        return (
            NullArguments(self._shape, frozenset(self._found))
            if self._empty is None and self._found
            else None
        )
