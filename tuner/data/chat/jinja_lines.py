"""Lines of a Jinja template, and the fields of model.chat as its terms. All white space between the lines is
taken away by their dashes.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from tuner.data.chat.template_texts import TemplateTexts
from tuner.data.tokenizer.load import Vocabulary


def literal(text: str) -> str:
    """A Jinja string, on one line."""
    return json.dumps(text, ensure_ascii=False)


def do(statement: str) -> str:
    """A line that writes nothing."""
    return f"{{%- {statement} -%}}"


def say(*terms: str) -> list[str]:
    """A line that writes the terms; those that are empty strings are left out, and nothing is written of
    nothing.
    """
    kept = [term for term in terms if term != '""']
    return [f"{{{{- {' + '.join(kept)} -}}}}"] if kept else []


def refuse(reason: str) -> str:
    """A line that refuses the row."""
    return f"{{{{- raise_exception({literal(reason)}) -}}}}"


class JinjaFields:
    """The fields of a template as terms of Jinja."""

    def __init__(self, chat: Any, vocabulary: Vocabulary) -> None:
        self.chat = chat
        self.texts = TemplateTexts(chat, vocabulary)

    def cut(self, name: str, place: str = "{text}") -> tuple[str, str]:
        before, _, after = self.texts.full(name).partition(place)
        return literal(before), literal(after)

    def slots(self, name: str, terms: Mapping[str, str]) -> list[str]:
        parts = re.split(f"\\{{({'|'.join(terms)})\\}}", self.texts.full(name))
        return [terms[part] if i % 2 else literal(part) for i, part in enumerate(parts)]

    def field(self, name: str) -> str:
        return literal(self.texts.full(name))

    def trimmed(self, term: str, role: str) -> str:
        return f"({term}) | trim" if role in self.chat.trim else term
