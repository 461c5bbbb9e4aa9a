"""The fields of a chat template, checked and cut at their special tokens: what tuner.data.chat.template
writes conversations with.
"""

import re
from typing import Any

from tuner.data.chat.field_checks import check_fields
from tuner.data.chat.layout import AssistantTurn, Layout, Placeholder, TextWithPlaceholders, TurnOpening
from tuner.data.chat.split_special import FixedText, SpecialTokens
from tuner.data.chat.template_texts import TemplateTexts, special_tokens_of
from tuner.data.tokenizer.load import Vocabulary, with_special_tokens
from tuner.errors import ConfigError, DataError

TOOL = ("tool", "function", "parameters", "name", "description", "raw")
CALL = ("name", "arguments", "id")
RESULT = ("text", "json", "name", "id")


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
