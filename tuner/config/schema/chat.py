"""How a conversation is written for a model: `model.chat`."""

from dataclasses import dataclass
from typing import Any, Literal

from tuner.config.fields import UNSET, identity

TEXT_STAGES = ("tokenize", "convert", "baseline", "evaluate")


def of_text(*, default: Any, left_out: Any = UNSET) -> Any:
    """A field that decides how a conversation is written. Training sees it to prove that its masks are
    those of the template.
    """
    return identity(*TEXT_STAGES, default=default, left_out=left_out, seen_by=("train",))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """How a conversation is written for the model.

    `{text}` stands for what a turn says, `{bos}` for the token that the tokenizer begins a text with (nothing
    where there is none), and `{eos}` for the one that ends it; these two are special tokens without being
    listed. Braces around anything else are text.
    """

    special: tuple[str, ...] = of_text(default=())
    """the special tokens in the texts below; each must be one id of the tokenizer, and enters by that id"""
    ids: dict[str, int] = of_text(default=dict, left_out={})
    """the ids of special tokens that the tokenizer's vocabulary calls otherwise"""
    begin: str = of_text(default="")
    """written once, before the first turn"""
    system: str = of_text(default="{text}\n\n")
    """a system turn; where `system_in` names a user's turn, what stands in front of that turn's text"""
    system_in: Literal["turn", "first_user", "last_user", "refused"] = of_text(
        default="turn", left_out="turn"
    )
    """where a system prompt is written: as a turn of its own, or inside the first or the last user turn;
    `refused`: the model has no place for one
    """
    system_with_tools: str = of_text(default="", left_out="")
    """the system turn of a conversation with tools, where it is another than `system`"""
    user: str = of_text(default="{text}\n\n")
    """a user turn"""
    assistant: str = of_text(default="{text}\n\n")
    """an assistant turn, with `end` somewhere after `{text}`; all from `{text}` to `end` is trained"""
    prompt: str | None = of_text(default=None, left_out=None)
    """how the assistant is made to speak, where that isn't all before `{text}` in `assistant`: more, such as
    an open thought, or less. What comes after it is trained"""
    end: str = of_text(default="")
    """the special token that ends an assistant turn: it is trained, and generation stops at it"""
    end_in: Literal["turn", "next"] = of_text(default="turn", left_out="turn")
    """`next`: `assistant` has no end; the first token of the next turn, which is special, ends it and is
    trained; after the last turn it is `end`
    """
    stops: tuple[str, ...] = of_text(default=(), left_out=())
    """more special tokens at which generation stops"""
    finish: str = of_text(default="", left_out="")
    """written once, after the last turn"""
    default_system: str | None = of_text(default=None)
    """a system prompt for conversations that do not begin with one"""
    trim: tuple[str, ...] = of_text(default=(), left_out=())
    """whose texts lose the white space at both ends: system, user, assistant, tool. A system prompt inside a
    user's turn is trimmed with that turn's text, as one, unless `system` is named too"""
    tools: str = of_text(default="", left_out="")
    """how the tools of a conversation are written, with `{tools}`; empty where the model knows none"""
    tools_in: Literal["system", "after_system", "first", "first_user", "last_user"] = of_text(
        default="system", left_out="system"
    )
    """where: in the system turn after its text; as a turn of its own behind the system turn, or before all
    turns; inside the first user turn before its text; or in front of the last user turn"""
    tools_gap: str = of_text(default="\n\n", left_out="\n\n")
    """between a system prompt and the tools, for tools_in=system"""
    tool: str = of_text(default="{tool}", left_out="{tool}")
    """one tool: `{tool}` is JSON of all of it, `{function}` of its function alone, `{parameters}` of that
    one's parameters; `{name}` and `{description}` are texts; `{raw}` is `{function}` with its own texts
    unescaped, as Mistral's templates write it"""
    tool_indent: int | None = of_text(default=None, left_out=None)
    """JSON of tools goes over several lines, indented by so many spaces; on one line when null"""
    tool_join: str = of_text(default="\n", left_out="\n")
    """between two tools"""
    calls: str = of_text(default="", left_out="")
    """what the assistant calls, with `{calls}`; empty where the model knows none"""
    calls_in: Literal["turn", "apart", "refused"] = of_text(default="turn", left_out="turn")
    """calls that come with a text: in the same turn, after it; `apart`, in a turn of their own; or
    `refused`, where the model writes one or the other
    """
    calls_gap: str = of_text(default="", left_out="")
    """between the text and the calls"""
    calls_turn: str = of_text(default="", left_out="")
    """an assistant turn that calls, where it is another than `assistant`; its `{text}` stands for text and
    calls
    """
    calls_end: str = of_text(default="", left_out="")
    """the special token that ends an assistant turn that calls, where it is another than `end`"""
    call: str = of_text(default="", left_out="")
    """one call, with `{name}`, `{arguments}` as JSON, and `{id}`"""
    call_join: str = of_text(default="\n", left_out="\n")
    """between two calls"""
    id_length: int | None = of_text(default=None, left_out=None)
    """ids of calls must be so many letters and digits: others, and missing ones, are replaced"""
    results: str = of_text(default="", left_out="")
    """a turn of what tools answered one after the other, with `{results}`; empty where the model knows
    none
    """
    result: str = of_text(default="{text}", left_out="{text}")
    """one answer of a tool: `{text}`, or `{json}`, the same as a JSON string; with `{name}` and `{id}` of
    the call
    """
    result_join: str = of_text(default="\n", left_out="\n")
    """between two answers of tools"""
    reasoning: str = of_text(default="", left_out="")
    """what the assistant thought, before its text, with `{text}`; empty where the model does not think"""
    reasoning_in: Literal["every_turn", "last_turns"] = of_text(default="last_turns", left_out="last_turns")
    """which turns show it: all, or only those after the last user turn"""
    no_reasoning: str = of_text(default="", left_out="")
    """what is written instead where the assistant did not think, such as an empty thought; never trained"""
    no_reasoning_in: Literal["every_turn", "last_turns", "last_turn"] = of_text(
        default="last_turn", left_out="last_turn"
    )
    """which turns show that: all, those after the last user turn, or only the last turn of a conversation"""
    jinja: bool = of_text(default=False, left_out=False)
    """take the tokenizer's own Jinja template, and of all above only `default_system`"""
    auto: bool = of_text(default=False, left_out=False)
    """take what the tokenizer says (tuner.data.chat.choice), and of all above only `default_system`;
    stages see what that was found to be
    """
