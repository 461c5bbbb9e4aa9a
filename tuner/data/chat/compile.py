"""The fields of a chat template, checked and cut at their special tokens: what tuner.data.chat.template
writes conversations with.
"""

import re
from dataclasses import dataclass
from typing import Any

from tuner.data.chat.split_special import FixedText, SpecialTokens
from tuner.data.tokenizer.load import Vocabulary, with_special_tokens
from tuner.errors import ConfigError, DataError

SPEAKERS = ("system", "user", "assistant", "tool")
TOOL = ("tool", "function", "parameters", "name", "description", "raw")
CALL = ("name", "arguments", "id")
RESULT = ("text", "json", "name", "id")


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


def compile_layout(chat: Any, vocabulary: Vocabulary) -> Layout:
    """Fit the template `chat` (a tuner.config.schema.Chat, or a stage's view of one) to a tokenizer.

    Raises ConfigError when the template contradicts itself, and DataError when a special token of it is not
    one id of the tokenizer.
    """
    check_fields(chat)
    tokens = special_tokens_of(chat, vocabulary)
    vocabulary = with_special_tokens(vocabulary, tokens, chat.ids)
    special = SpecialTokens(vocabulary, {token: _id(token, vocabulary) for token in tokens})
    texts = TemplateTexts(chat, vocabulary)

    def fixed(name: str) -> FixedText:
        return special.fixed(texts.full(name))

    def around(name: str, place: str = "{text}", otherwise: str = "") -> tuple[FixedText, FixedText]:
        before, _, after = (texts.full(name) or texts.full(otherwise or name)).partition(place)
        return special.fixed(before), special.fixed(after)

    def slots(name: str, places: tuple[str, ...]) -> TextWithPlaceholders:
        parts = re.split(f"\\{{({'|'.join(places)})\\}}", texts.full(name))
        return tuple(
            Placeholder(part) if i % 2 else special.fixed(part) for i, part in enumerate(parts) if part
        )

    def opening(head: str, more: str = "", *, put_in: bool = False) -> TurnOpening:
        prompt, whole = texts.prompt(), head + more
        at = (
            len(prompt)
            if whole.startswith(prompt)
            else len(whole)
            if more and prompt.startswith(whole)
            else len(head)
        )
        _whole(special, whole, at)
        first, rest = special.fixed(whole[:at]), special.fixed(whole[at:])
        more_of_it = rest if whole[at:] else None
        return TurnOpening(first, more_of_it, None) if put_in else TurnOpening(first, None, more_of_it)

    def saying(name: str, end: str) -> AssistantTurn:
        head, _, rest = (texts.full(name) or texts.full("assistant")).partition("{text}")
        mid, _, after = rest.partition(texts.full("end")) if chat.end_in == "turn" else (rest, "", "")
        return AssistantTurn(
            plain=opening(head),
            thought=opening(head, texts.full("reasoning").partition("{text}")[0]),
            empty=opening(head, texts.full("no_reasoning"), put_in=True),
            mid=special.fixed(mid) if mid else None,
            end=token(end) if chat.end_in == "turn" else None,
            after=special.fixed(after),
        )

    def token(name: str) -> FixedText:
        return special.token(special.ids[texts.full(name)])

    calls_end = "calls_end" if chat.calls_end else "end"
    layout = Layout(
        vocabulary=vocabulary,
        begin=fixed("begin"),
        finish=fixed("finish"),
        prompt=special.fixed(texts.prompt()),
        system=around("system"),
        system_with_tools=around("system_with_tools", otherwise="system"),
        user=around("user"),
        say=saying("assistant", "end"),
        call=saying("calls_turn", calls_end),
        last_end=token("end") if chat.end_in == "next" else None,
        last_call_end=token(calls_end) if chat.end_in == "next" else None,
        tools=slots("tools", ("tools",)),
        tool=slots("tool", TOOL),
        tool_join=fixed("tool_join"),
        tools_gap=fixed("tools_gap"),
        calls=slots("calls", ("calls",)),
        calls_gap=fixed("calls_gap"),
        one_call=slots("call", CALL),
        call_join=fixed("call_join"),
        results=around("results", "{results}"),
        result=slots("result", RESULT),
        result_join=fixed("result_join"),
        result_turn=bool(chat.results),
        thought_after=special.fixed(texts.full("reasoning").partition("{text}")[2])
        if chat.reasoning
        else None,
        stops=frozenset(
            special.ids[token]
            for token in (texts.full("end"), texts.full(calls_end), *(texts.put(stop) for stop in chat.stops))
        ),
        end_id=special.ids[texts.full("end")],
    )
    _check_turns(chat, layout)
    return layout


class TemplateTexts:
    """The texts of a template, with the tokenizer's own tokens in their places."""

    def __init__(self, chat: Any, vocabulary: Vocabulary) -> None:
        self._chat, self._vocabulary = chat, vocabulary

    def full(self, name: str) -> str:
        """The text of a field."""
        return self.put(getattr(self._chat, name))

    def put(self, text: str) -> str:
        """Raises DataError for `{eos}` where the tokenizer has none."""
        if "{eos}" in text and self._vocabulary.eos is None:
            raise DataError(
                "the chat template ends a turn with the tokenizer's own end token ({eos}), and the"
                ' tokenizer names none. Give "eos_token" in its tokenizer_config.json, or choose the'
                " template the model was made for (model/chat=…)."
            )
        return text.replace("{bos}", self._vocabulary.bos or "").replace("{eos}", self._vocabulary.eos or "")

    def prompt(self) -> str:
        """How the assistant is made to speak."""
        return (
            self.full("assistant").partition("{text}")[0]
            if self._chat.prompt is None
            else self.full("prompt")
        )


def special_tokens_of(chat: Any, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The special tokens of the template for this tokenizer: those it lists, those that `{bos}` and `{eos}`
    stand for, and any other special token of the tokenizer that its texts spell, since whoever reads the
    template from Jinja finds that too.
    """
    texts = TemplateTexts(chat, vocabulary)
    used = "\0".join([*(getattr(chat, name) or "" for name in _TEXTS), *chat.stops])
    own = [
        token
        for place, token in (("{bos}", vocabulary.bos), ("{eos}", vocabulary.eos))
        if place in used and token
    ]
    added = [
        token.content for token in vocabulary.tokenizer.get_added_tokens_decoder().values() if token.special
    ]
    return tuple(
        dict.fromkeys([*map(texts.put, chat.special), *own, *(token for token in added if token in used)])
    )


_TEXTS = tuple(
    (
        "begin system system_with_tools user assistant prompt end finish tools tool tool_join tools_gap "
        "calls calls_gap calls_turn calls_end call call_join results result result_join reasoning "
        "no_reasoning"
    ).split()
)

_PLACES = {
    "system": "{text}",
    "user": "{text}",
    "assistant": "{text}",
    "system_with_tools": "{text}",
    "calls_turn": "{text}",
    "reasoning": "{text}",
    "tools": "{tools}",
    "calls": "{calls}",
    "results": "{results}",
}


def check_fields(chat: Any) -> None:
    """Raises ConfigError for fields that contradict each other, whatever the tokenizer."""
    for name, place in _PLACES.items():
        text = getattr(chat, name)
        if (text or name in ("system", "user", "assistant")) and text.count(place) != 1:
            raise ConfigError(
                f"model.chat.{name} is {text!r}; it must hold {place} exactly once, where "
                f"{_WHAT.get(place, 'they')} goes."
            )
    tokens = [*chat.special, "{eos}"]
    for name, token in (
        ("end", chat.end),
        ("calls_end", chat.calls_end or chat.end),
        *(("stops", stop) for stop in chat.stops),
    ):
        if token not in tokens:
            raise ConfigError(
                f"model.chat.{name} is {token!r}, and must be one of the special tokens "
                f"{list(chat.special)}: it ends an answer, in training and in generation. Choose a "
                "template, as in model/chat=chatml, or name its end token."
            )
    for name in ("assistant", "calls_turn"):
        text = getattr(chat, name)
        if text and (chat.end in text.partition("{text}")[2]) == (chat.end_in == "next"):
            raise ConfigError(
                f"model.chat.{name} is {text!r}; in it model.chat.end ({chat.end}) must follow {{text}}"
                + (
                    "."
                    if chat.end_in == "turn"
                    else " nowhere, since model.chat.end_in=next leaves the end to the next turn."
                )
            )
    head = chat.assistant.partition("{text}")[0]
    spoken = (head, head + chat.reasoning.partition("{text}")[0], head + chat.no_reasoning)
    if chat.prompt is not None and not any(text.startswith(chat.prompt) for text in spoken):
        raise ConfigError(
            f"model.chat.prompt is {chat.prompt!r}, and no turn of the assistant begins so; it must be a "
            "beginning of what stands before {text} in model.chat.assistant, or all of that with a "
            "beginning of model.chat.reasoning or model.chat.no_reasoning behind it."
        )
    if unknown := [role for role in chat.trim if role not in SPEAKERS]:
        raise ConfigError(f"model.chat.trim names {unknown[0]!r}; it can name {', '.join(SPEAKERS)}.")
    for name, needed in (("calls", "call"), ("tools", "tool"), ("results", "result")):
        if getattr(chat, name) and not getattr(chat, needed):
            raise ConfigError(
                f"model.chat.{name} is given, and model.chat.{needed} is empty; it says how one of them is "
                "written."
            )


_WHAT = {
    "{text}": "the turn's text",
    "{tools}": "the list of tools",
    "{calls}": "the list of calls",
    "{results}": "what the tools answered",
}


def _check_turns(chat: Any, layout: Layout) -> None:
    """Raises ConfigError for a text that has special tokens where it can't, or none where it must."""
    if chat.system_in.endswith("user") and any(part.ids for part in layout.system):
        raise ConfigError(
            "model.chat.system is written inside a user's turn here, and can have no special token of its "
            "own."
        )
    if chat.end_in == "turn":
        return
    heads = {"user": layout.user[0], "assistant": layout.say.plain.head, "calls_turn": layout.call.plain.head}
    if chat.system_in == "turn":
        heads["system"] = layout.system[0]
    if chat.results:
        heads["results"] = layout.results[0] if layout.results[0] != FixedText("") else _first(layout.result)
    if chat.tools and chat.tools_in in ("first", "after_system", "last_user"):
        heads["tools"] = _first(layout.tools)
    for name, head in heads.items():
        if head.lead or not head.ids:
            raise ConfigError(
                f"model.chat.{name} must begin with a special token: with model.chat.end_in=next it ends the "
                "turn before."
            )


def _first(slots: TextWithPlaceholders) -> FixedText:
    return slots[0] if isinstance(slots[0], FixedText) else FixedText("")


def _whole(special: SpecialTokens, text: str, at: int) -> None:
    if "".join(f"{atom}\0" for atom in special.atoms(text) if isinstance(atom, int)) != "".join(
        f"{atom}\0"
        for part in (text[:at], text[at:])
        for atom in special.atoms(part)
        if isinstance(atom, int)
    ):
        raise ConfigError(f"model.chat.prompt ends inside a special token of {text!r}.")


def _id(token: str, vocabulary: Vocabulary) -> int:
    tokenizer = vocabulary.tokenizer
    id_: int | None = tokenizer.token_to_id(token)
    if id_ is None:
        raise DataError(
            f"the chat template needs the special token {token}, and the model's tokenizer has none of that "
            "name. Choose the template the model was made for (model/chat=…), or a model whose tokenizer "
            "has it."
        )
    if id_ in tokenizer.encode(token, add_special_tokens=False).ids:
        raise DataError(
            f"the tokenizer reads {token} out of ordinary text, so a row could end a turn. "
            'In its tokenizer.json, under added_tokens, this token needs "special": true.'
        )
    return id_
