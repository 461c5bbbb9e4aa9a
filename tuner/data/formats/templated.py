"""Texts that a chat template wrote: `{"text": "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n"}` → the conversation.

FORMS says of each template how a text of it begins, what a turn begins and ends with, and whether what stands before the first turn is the system
prompt. The marks are gone from the turns: the model's own template writes them anew, as special tokens. A turn that is ended is kept to the
letter; white space around one that only the next turn ends is the form's. What doesn't fit is a RowError: a turn without its end, text between
turns, a role that is not known, marks of a template inside of a turn (calls of tools among them).
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.fields import Words, needed, quoted, speaker, text
from tuner.data.formats.sharegpt import ROLES as SHAREGPT
from tuner.data.formats.turns import conversation

ROLES: Words = {
    **SHAREGPT,
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "chatbot": "assistant",
    "moss": "assistant",
    "falcon": "assistant",
    "prompter": "user",
    "ipython": "tool",
    "environment": "tool",
}
START = r"(?:\s|<s>|<\|begin_of_text\|>|<bos>|<BOS_TOKEN>|<\|startoftext\|>|<\|endoftext\|>|<｜begin▁of▁sentence｜>|\[gMASK\]|<sop>|\bsop(?=<))*"
"""what may stand before the first turn, and between turns that are ended"""
CLOSED = re.compile(rf"(?:{START}|</s>|<eos>|<\|end_of_text\|>|<\|eot_id\|>|<\|end\|>|<｜end▁of▁sentence｜>|<EOS_TOKEN>|\[EOS\])*")
"""all that may stand behind the end of a turn"""
FIRST = re.compile(r"<\|begin_of_text\|>|<bos>|<BOS_TOKEN>|<\|startoftext\|>|<｜begin▁of▁sentence｜>(?!<｜User｜>)|\[gMASK\]")
"""what a text has once, but for DeepSeek's, which some write before each question"""
FINAL = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<EOS_TOKEN>", "<｜end▁of▁sentence｜>")
"""what ends a text, and with it its last turn"""
MARK = re.compile(
    r"<[|｜](?!(?:begin|end)_of_(?:thought|solution)\|>)[^<>|｜\s]{1,40}[|｜]>|\[/?INST\]|\[(?:TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
)
"""what only a template writes"""
SYSTEM = re.compile(r"\s*<<SYS>>\s*(.*?)\s*<</SYS>>\s*", re.DOTALL)
"""in front of Llama 2's first question"""
LONG = 4000
"""characters of a system prompt that stands before the first turn"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How a template writes a conversation."""

    name: str
    head: re.Pattern[str]
    """begins a turn; its group `who` says whose"""
    signs: tuple[str, ...]
    """one of them is in each head"""
    ends: tuple[str, ...]
    """end a turn"""
    ended: bool = False
    """whether each turn but the last must be ended by one"""
    exact: bool = True
    """whether a turn that is ended is kept to the letter; else the template writes blanks around it"""
    leads: bool = False
    """whether text before the first turn is the system prompt"""
    words: bool = False
    """whether its heads are words that people write too: then a text of it has an answer"""
    who: Mapping[str, str] | None = None
    """what the head says → the role, where that is no word for it"""


def _form(name: str, head: str, sign: str, *ends: str, who: Mapping[str, str] | None = None, be: str = "exact") -> Form:
    said = be.split()
    return Form(
        name=name, head=re.compile(head, re.MULTILINE), signs=tuple(sign.split(" | ")), ends=(*ends, *FINAL), who=who,
        ended="ended" in said, exact="exact" in said, leads="leads" in said, words="words" in said,
    )  # fmt: skip


HEADED = {"instruction": "user", "question": "user", "prompt": "user", "user": "user", "input": "more", "context": "more", "system": "system"}
"""headings of what is asked; `more` belongs to the question before it"""
ANSWERS = ("response", "answer", "output", "assistant", "completion", "bot")
BAICHUAN = {"reserved_102": "user", "reserved_103": "assistant", "reserved_106": "user", "reserved_107": "assistant"}
FORMS = (
    _form("ChatML", r"<\|im_start\|>(?P<who>[^\n<]*?)(?:\n|<\|im_sep\|>|\Z)", "<|im_start|>", "<|im_end|>", be="ended exact"),
    _form("Llama 3", r"<\|start_header_id\|>(?P<who>[^<]*)<\|end_header_id\|>\n{0,2}", "<|start_header_id|>", "<|eot_id|>", "<|eom_id|>", be="ended exact"),
    _form("Llama 4", r"<\|header_start\|>(?P<who>[^<]*)<\|header_end\|>\n{0,2}", "<|header_start|>", "<|eot|>", "<|eom|>", be="ended exact"),
    _form("Granite", r"<\|start_of_role\|>(?P<who>[^<]*)<\|end_of_role\|>", "<|start_of_role|>", be="ended exact"),
    _form("Gemma", r"<start_of_turn>(?P<who>\w+)(?:\n|\Z)", "<start_of_turn>", "<end_of_turn>", be="ended exact"),
    _form("Gemma", r"<\|turn>(?P<who>\w+)(?:\n|\Z)", "<|turn>", "<turn|>", be="ended exact"),
    _form("Command R", r"<\|START_OF_TURN_TOKEN\|><\|(?P<who>\w+?)_TOKEN\|>", "_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", be="ended exact"),
    _form("Harmony", r"<\|start\|>(?P<who>\w+)(?:<\|channel\|>(?P<channel>\w+))?(?:<\|message\|>|\Z)", "<|start|>", "<|end|>", "<|return|>", be="ended exact"),
    _form("EXAONE", r"\[\|(?P<who>system|user|assistant|tool)\|\]", "[|", "[|endofturn|]"),
    _form("InternLM", r"<\|(?P<who>System|User|Bot)\|>: ?", "|>:", "<eoh>", "<eoa>"),
    _form("MOSS", r"<\|(?P<who>Human|MOSS)\|>: ?", "|>:", "<eoh>", "<eom>", be="exact leads"),
    _form("DeepSeek", r"<[｜|](?P<who>User|Assistant)[｜|]>", "User", be="exact leads"),
    _form("Zephyr, Phi or GLM", r"<\|(?P<who>(?i:system|user|assistant|observation|prompter|human|bot|model))\|>[ \t]*\n?", "<|", "<|end|>", "<|end_of_turn|>", "<|im_end|>"),
    _form("Llama 2 or Mistral", r"\[(?P<who>/?INST|SYSTEM_PROMPT)\]", "[INST] | [SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", who={"INST": "user", "/INST": "assistant", "SYSTEM_PROMPT": "system"}, be=""),
    _form("Baichuan", r"<(?P<who>reserved_10[2367])>", "<reserved_10", who=BAICHUAN, be="exact leads"),
    _form("MiniCPM", r"<(?P<who>用户|AI)>", "<AI>", who={"用户": "user", "AI": "assistant"}, be="exact leads"),
    _form("RedPajama", r"<(?P<who>human|bot)>:", "<human>:", be=""),
    _form("OpenChat", r"(?:GPT4(?: Correct)?|Code) (?P<who>User|Assistant):", "GPT4 | Code ", "<|end_of_turn|>", be="leads words"),
    _form("Vicuna", r"(?:^|(?<=\s)|(?<=</s>))(?P<who>USER|ASSISTANT|SYSTEM):", "USER:", be="leads words"),
    _form("Human and Assistant", r"(?:^|(?<=</s>))(?P<who>Human|User|System|Assistant|AI|Bot|Falcon):", "Human: | User:", be="leads words"),
    _form(
        "Alpaca",
        rf"(?:^|(?<=</s>))###[ ]?(?P<who>(?i:{'|'.join((*HEADED, *ANSWERS))}))(?:[ ]?:|[ \t]*$)",
        "###", "### End", "<|EOT|>",
        who=HEADED | dict.fromkeys(ANSWERS, "assistant"), be="leads words",
    ),
)  # fmt: skip
BEGIN = re.compile(START)
BEGINS = ("<s>", "<|begin_of_text|>", "<bos>", "<BOS_TOKEN>", "<|endoftext|>", "<｜begin▁of▁sentence｜>")


def form_of(value: Any) -> Form | None:
    """The template whose mark a text begins with, or that its system prompt is followed by; None for any other text."""
    if not isinstance(value, str):
        return None
    at = _begin(value)
    near = value[at : at + LONG]
    for form in FORMS:
        if not any(sign in near for sign in form.signs):
            continue
        first = form.head.match(value, at) or (form.head.search(value, at, at + LONG) if form.leads else None)
        if first and (first.start() == at or _fits(value[at : first.start()])) and (not form.words or _answered(value, form, first)):
            return form
    return None


def is_marked(value: Any) -> bool:
    """Whether a text begins as one of a chat template does, known or not."""
    return isinstance(value, str) and (MARK.match(value, _begin(value)) is not None or form_of(value) is not None)


def is_whole(value: str) -> bool:
    """Whether a text is a conversation with an answer."""
    try:
        return any(message.trains for message in templated({"text": value}).messages)
    except RowError:
        return False


def spelled(value: str) -> str:
    """The token that ends or begins a text, written out at its end or begin; empty where there is none."""
    end = value.rstrip()
    return next((token for token in FINAL if end.endswith(token)), "") or next((token for token in BEGINS if value.startswith(token)), "")


def holds(value: Any) -> bool:
    """Whether something is in a text that only a template writes."""
    return isinstance(value, str) and MARK.search(value) is not None


def _begin(value: str) -> int:
    found = BEGIN.match(value)
    return found.end() if found else 0


def _fits(before: str) -> bool:
    """Whether what stands before the first turn may be a system prompt."""
    return not MARK.search(before) and "\n#" not in f"\n{before}"


def _answered(value: str, form: Form, first: re.Match[str]) -> bool:
    """Whether a text asks and then answers, in words that people write too."""
    asked = _role(form, first, ROLES)
    return asked in ("user", "system") and any(_role(form, head, ROLES) == "assistant" for head in form.head.finditer(value, first.end()))


def _role(form: Form, head: re.Match[str], words: Words) -> str:
    word = head["who"].strip()
    if form.who is not None:
        return form.who.get(word) or form.who[word.lower()]
    return speaker(word if word in words else word.lower(), words)


def templated(row: Mapping[str, Any], words: Words = ROLES) -> Conversation:
    """The conversation of a row whose text a chat template wrote. Raises RowError."""
    found = text(needed(row, "text"), "text")
    form = form_of(found)
    if form is None:
        mark = MARK.match(found, _begin(found))
        begins = (
            f"begins with {mark[0]}, a mark of no template that is known" if mark else f"begins with no mark of a chat template ({quoted(found)})"
        )
        raise RowError(f"the text {begins}; data.format=text trains such texts letter by letter")
    return conversation(row, _sound(form, _joined(form, _turns(found, form, words))), says_calls=True)


PAIRS = {"prompt": ("prompt", "completion"), "alpaca": ("instruction", "output")}
"""formats of a question and its answer → the two columns"""


def pair_of(row: Mapping[str, Any], format: str) -> tuple[str, str] | None:
    """The question and the answer of a row, where a template wrote the question, with nothing beside it."""
    asked, said = (row.get(key) for key in PAIRS.get(format, ("", "")))
    alone = not (format == "alpaca" and (row.get("input") or row.get("history")))
    return (asked, said) if isinstance(asked, str) and isinstance(said, str) and alone and form_of(asked) else None


def continued(row: Mapping[str, Any], words: Words = ROLES) -> Conversation:
    """The conversation of a row whose question a template wrote, up to where the assistant goes on; only the answer is trained. Raises RowError."""
    asked, said = next(pair for format in PAIRS if (pair := pair_of(row, format)))
    asked, said = text(asked, "the question"), text(said, "the answer")
    form = form_of(asked)
    assert form is not None
    before = [replace(message, trained=False) for message in _sound(form, _joined(form, _turns(asked, form, words)))]
    if not before or before[-1].role == "assistant":
        raise RowError("the question ends with an answer, as a chat template writes it, and what follows it was expected to be one")
    if form.head.match(said, _begin(said)):
        after = _sound(form, _joined(form, _turns(said, form, words)))
    else:
        after = _sound(form, [Message(role="assistant", content=_ended(form, said)[0], trained=True)])
    return conversation(row, [*before, *after], says_calls=True)


def _sound(form: Form, messages: Iterable[Message]) -> list[Message]:
    """The messages, none of which holds a mark. Raises RowError."""
    found = list(messages)
    systems = [message.content for message in found if message.role == "system"]
    if len(set(systems)) < len(systems):
        raise RowError("the same system prompt stands twice, so these are several conversations in one text; each is to be a row of its own")
    for message in found:
        if mark := MARK.search(message.content):
            raise RowError(
                f"a turn of the {message.role} holds {mark[0]}, which {form.name} writes around turns or calls and which can't be read there; "
                "data.bad_rows=skip leaves such rows out, data.format=text trains all rows letter by letter"
            )
    return found


def _ended(form: Form, body: str) -> tuple[str, bool]:
    """What is said in a turn, and whether an end follows it. Raises RowError where something else follows."""
    end, sign = min(((place, sign) for sign in form.ends if (place := body.find(sign)) >= 0), default=(-1, ""))
    if end < 0:
        return body.strip(), False
    rest = body[end + len(sign) :]
    if (closed := CLOSED.match(rest)) is None or closed.end() < len(rest):
        raise RowError(f"{quoted(rest.strip())} stands between {sign} and the next turn, where nothing was expected")
    return body[:end] if form.exact else body[:end].strip(), True


def _turns(found: str, form: Form, words: Words) -> Iterator[tuple[str, str, str]]:
    """(role, channel, text) of each turn."""
    at = _begin(found)
    heads = _heads(found, form, at, words)
    if again := FIRST.search(found, heads[0].end()):
        raise RowError(f"{again[0]}, which begins a text, stands in the middle, so these are several conversations in one text; each is to be a row")
    if before := found[at : heads[0].start()].strip():
        if not form.leads:
            raise RowError(f"the text must begin with a turn, as {form.name} writes it, and {quoted(before)} stands before the first")
        yield "system", "", before
    for head, behind in zip(heads, [*(head.start() for head in heads[1:]), len(found)], strict=True):
        role, body, last = _role(form, head, words), found[head.end() : behind], behind == len(found)
        said, ended = _ended(form, body)
        if not ended and form.ended and not last:
            raise RowError(f"a turn of {quoted(head['who'])} is not ended by {form.ends[0]} before the next begins")
        if not ended and last and not said and role == "assistant":
            return  # where the model is to go on
        yield role, head.groupdict().get("channel") or "", said


def _heads(found: str, form: Form, at: int, words: Words) -> list[re.Match[str]]:
    """Where turns begin. Of headings, only those words that were there up to the first answer: an answer has headings of its own."""
    heads = list(form.head.finditer(found, at))
    if not form.words:
        return heads
    first = next((i for i, head in enumerate(heads) if _role(form, head, words) == "assistant"), len(heads))
    known = {head["who"].lower() for head in heads[: first + 1]}
    return [head for head in heads if head["who"].lower() in known]


def _joined(form: Form, turns: Iterator[tuple[str, str, str]]) -> Iterator[Message]:
    """Messages: what belongs to a question is put to it, a system prompt inside of one is taken out of it, a thought is put to its answer."""
    asked, thought = None, ""
    for role, channel, said in turns:
        if role == "more":
            asked = f"{asked}\n{said}" if asked and said else asked or said
            continue
        if asked is not None:
            yield Message(role="user", content=asked)
            asked = None
        if channel == "analysis" and role == "assistant":
            thought = f"{thought}\n{said}" if thought else said
        elif channel not in ("", "final"):
            raise RowError(f"a turn in the channel {quoted(channel)}, which can't be read from a text; only analysis and final can")
        elif role == "user":
            if form.name.startswith("Llama 2") and (system := SYSTEM.match(said)):
                yield Message(role="system", content=system[1])
                said = said[system.end() :]
            asked = said
        else:
            answers = role == "assistant"
            yield Message(role=role, content=said, trained=answers, reasoning=(thought or None) if answers else None)  # type: ignore[arg-type]
            thought = "" if answers else thought
    if asked is not None:
        yield Message(role="user", content=asked)
