"""A chat template for one vocabulary: its fields, cut at their special tokens."""

from dataclasses import dataclass

from tuner.data.chat.split_special import FixedText
from tuner.data.tokenizer.load import Vocabulary


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A place in a text, where something of a row goes."""

    name: str


TextWithPlaceholders = tuple[FixedText | Placeholder, ...]
"""a text of the template with places in it"""


@dataclass(frozen=True, slots=True)
class TurnOpening:
    """How an assistant's turn begins."""

    head: FixedText
    """up to where the assistant starts to write"""
    block: FixedText | None
    """what is put in behind that, untrained: an empty thought"""
    rest: FixedText | None
    """what of the turn's own text the assistant writes; None for nothing"""


@dataclass(frozen=True, slots=True)
class AssistantTurn:
    """An assistant's turn."""

    plain: TurnOpening
    thought: TurnOpening
    empty: TurnOpening
    mid: FixedText | None
    """between what is said and the end; trained. None for nothing"""
    end: FixedText | None
    """the token that ends it; None where the next turn's first token does"""
    after: FixedText


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """A template for one vocabulary."""

    vocabulary: Vocabulary
    begin: FixedText
    system: tuple[FixedText, FixedText]
    system_with_tools: tuple[FixedText, FixedText]
    user: tuple[FixedText, FixedText]
    say: AssistantTurn
    call: AssistantTurn
    """a turn with calls"""
    prompt: FixedText
    last_end: FixedText | None
    """written behind the last turn, where turns are ended by the next one"""
    last_call_end: FixedText | None
    finish: FixedText
    tools: TextWithPlaceholders
    tool: TextWithPlaceholders
    tool_join: FixedText
    tools_gap: FixedText
    calls: TextWithPlaceholders
    calls_gap: FixedText
    one_call: TextWithPlaceholders
    call_join: FixedText
    results: tuple[FixedText, FixedText]
    result: TextWithPlaceholders
    result_join: FixedText
    result_turn: bool
    """whether there is a place for answers of tools"""
    thought_after: FixedText | None
    """behind a thought; None where there is no place for one"""
    stops: frozenset[int]
    end_id: int
