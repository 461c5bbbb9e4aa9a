"""Which fields of a chat template go together, whatever the tokenizer."""

from typing import Any

from tuner.errors import ConfigError

SPEAKERS = ("system", "user", "assistant", "tool")

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
