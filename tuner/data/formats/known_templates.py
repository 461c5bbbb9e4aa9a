"""How chat templates write a conversation: what a text of each begins with, what a turn begins and ends
with, and where the system prompt is.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuner.data.formats import sharegpt
from tuner.data.formats.checks import RoleWords, speaker_of

ROLES: RoleWords = {
    **sharegpt.ROLES,
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
START = (
    r"(?:\s|<s>|<\|begin_of_text\|>|<bos>|<BOS_TOKEN>|<\|startoftext\|>|<\|endoftext\|>"
    r"|<｜begin▁of▁sentence｜>|\[gMASK\]|<sop>|\bsop(?=<))*"
)
"""what may stand before the first turn, and between turns that are ended"""
CLOSED = re.compile(
    rf"(?:{START}|</s>|<eos>|<\|end_of_text\|>|<\|eot_id\|>|<\|end\|>|<｜end▁of▁sentence｜>|<EOS_TOKEN>|\[EOS\])*"
)
"""all that may stand behind the end of a turn"""
FIRST = re.compile(
    r"<\|begin_of_text\|>|<bos>|<BOS_TOKEN>|<\|startoftext\|>|<｜begin▁of▁sentence｜>(?!<｜User｜>)|\[gMASK\]"
)
"""what a text has once, but for DeepSeek's, which some write before each question"""
FINAL = ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", "<EOS_TOKEN>", "<｜end▁of▁sentence｜>")
"""what ends a text, and with it its last turn"""
MARK = re.compile(
    r"<[|｜](?!(?:begin|end)_of_(?:thought|solution)\|>)[^<>|｜\s]{1,40}[|｜]>|\[/?INST\]|\[(?:TOOL_CALLS|AVAILABLE_TOOLS|TOOL_RESULTS)\]"
)
"""what only a template writes"""
LONG = 4000
"""characters of a system prompt that stands before the first turn"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownTemplate:
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


def _form(
    name: str, head: str, sign: str, *ends: str, who: Mapping[str, str] | None = None, be: str = "exact"
) -> KnownTemplate:
    said = be.split()
    return KnownTemplate(
        name=name,
        head=re.compile(head, re.MULTILINE),
        signs=tuple(sign.split(" | ")),
        ends=(*ends, *FINAL),
        who=who,
        ended="ended" in said,
        exact="exact" in said,
        leads="leads" in said,
        words="words" in said,
    )


HEADED = {
    "instruction": "user",
    "question": "user",
    "prompt": "user",
    "user": "user",
    "input": "more",
    "context": "more",
    "system": "system",
}
"""headings of what is asked; `more` belongs to the question before it"""
ANSWERS = ("response", "answer", "output", "assistant", "completion", "bot")
BAICHUAN = {
    "reserved_102": "user",
    "reserved_103": "assistant",
    "reserved_106": "user",
    "reserved_107": "assistant",
}
TEMPLATES = (
    _form(
        "ChatML",
        r"<\|im_start\|>(?P<who>[^\n<]*?)(?:\n|<\|im_sep\|>|\Z)",
        "<|im_start|>",
        "<|im_end|>",
        be="ended exact",
    ),
    _form(
        "Llama 3",
        r"<\|start_header_id\|>(?P<who>[^<]*)<\|end_header_id\|>\n{0,2}",
        "<|start_header_id|>",
        "<|eot_id|>",
        "<|eom_id|>",
        be="ended exact",
    ),
    _form(
        "Llama 4",
        r"<\|header_start\|>(?P<who>[^<]*)<\|header_end\|>\n{0,2}",
        "<|header_start|>",
        "<|eot|>",
        "<|eom|>",
        be="ended exact",
    ),
    _form(
        "Granite",
        r"<\|start_of_role\|>(?P<who>[^<]*)<\|end_of_role\|>",
        "<|start_of_role|>",
        be="ended exact",
    ),
    _form(
        "Gemma", r"<start_of_turn>(?P<who>\w+)(?:\n|\Z)", "<start_of_turn>", "<end_of_turn>", be="ended exact"
    ),
    _form("Gemma", r"<\|turn>(?P<who>\w+)(?:\n|\Z)", "<|turn>", "<turn|>", be="ended exact"),
    _form(
        "Command R",
        r"<\|START_OF_TURN_TOKEN\|><\|(?P<who>\w+?)_TOKEN\|>",
        "_OF_TURN_TOKEN|>",
        "<|END_OF_TURN_TOKEN|>",
        be="ended exact",
    ),
    _form(
        "Harmony",
        r"<\|start\|>(?P<who>\w+)(?:<\|channel\|>(?P<channel>\w+))?(?:<\|message\|>|\Z)",
        "<|start|>",
        "<|end|>",
        "<|return|>",
        be="ended exact",
    ),
    _form("EXAONE", r"\[\|(?P<who>system|user|assistant|tool)\|\]", "[|", "[|endofturn|]"),
    _form("InternLM", r"<\|(?P<who>System|User|Bot)\|>: ?", "|>:", "<eoh>", "<eoa>"),
    _form("MOSS", r"<\|(?P<who>Human|MOSS)\|>: ?", "|>:", "<eoh>", "<eom>", be="exact leads"),
    _form("DeepSeek", r"<[｜|](?P<who>User|Assistant)[｜|]>", "User", be="exact leads"),
    _form(
        "Zephyr, Phi or GLM",
        r"<\|(?P<who>(?i:system|user|assistant|observation|prompter|human|bot|model))\|>[ \t]*\n?",
        "<|",
        "<|end|>",
        "<|end_of_turn|>",
        "<|im_end|>",
    ),
    _form(
        "Llama 2 or Mistral",
        r"\[(?P<who>/?INST|SYSTEM_PROMPT)\]",
        "[INST] | [SYSTEM_PROMPT]",
        "[/SYSTEM_PROMPT]",
        who={"INST": "user", "/INST": "assistant", "SYSTEM_PROMPT": "system"},
        be="",
    ),
    _form("Baichuan", r"<(?P<who>reserved_10[2367])>", "<reserved_10", who=BAICHUAN, be="exact leads"),
    _form(
        "MiniCPM", r"<(?P<who>用户|AI)>", "<AI>", who={"用户": "user", "AI": "assistant"}, be="exact leads"
    ),
    _form("RedPajama", r"<(?P<who>human|bot)>:", "<human>:", be=""),
    _form(
        "OpenChat",
        r"(?:GPT4(?: Correct)?|Code) (?P<who>User|Assistant):",
        "GPT4 | Code ",
        "<|end_of_turn|>",
        be="leads words",
    ),
    _form("Vicuna", r"(?:^|(?<=\s)|(?<=</s>))(?P<who>USER|ASSISTANT|SYSTEM):", "USER:", be="leads words"),
    _form(
        "Human and Assistant",
        r"(?:^|(?<=</s>))(?P<who>Human|User|System|Assistant|AI|Bot|Falcon):",
        "Human: | User:",
        be="leads words",
    ),
    _form(
        "Alpaca",
        rf"(?:^|(?<=</s>))###[ ]?(?P<who>(?i:{'|'.join((*HEADED, *ANSWERS))}))(?:[ ]?:|[ \t]*$)",
        "###",
        "### End",
        "<|EOT|>",
        who=HEADED | dict.fromkeys(ANSWERS, "assistant"),
        be="leads words",
    ),
)
SIGNS = tuple(dict.fromkeys(sign for form in TEMPLATES for sign in form.signs))
BEGIN = re.compile(START)
BEGINS = ("<s>", "<|begin_of_text|>", "<bos>", "<BOS_TOKEN>", "<|endoftext|>", "<｜begin▁of▁sentence｜>")


def template_of(value: Any) -> KnownTemplate | None:
    """The template whose mark a text begins with, or that its system prompt is followed by; None for any
    other text.
    """
    if not isinstance(value, str):
        return None
    at = first_turn_at(value)
    near = value[at : at + LONG]
    if not any([sign in near for sign in SIGNS]):  # nearly all
        return None
    for form in TEMPLATES:
        if not any(sign in near for sign in form.signs):
            continue
        first = form.head.match(value, at) or (form.head.search(value, at, at + LONG) if form.leads else None)
        if (
            first
            and (first.start() == at or _fits(value[at : first.start()]))
            and (not form.words or _answered(value, form, first))
        ):
            return form
    return None


def begins_as_template(value: Any) -> bool:
    """Whether a text begins as one of a chat template does, known or not."""
    return isinstance(value, str) and (
        MARK.match(value, first_turn_at(value)) is not None or template_of(value) is not None
    )


def written_token(value: str) -> str:
    """The token that ends or begins a text, written out at its end or begin; empty where there is none."""
    end = value.rstrip()
    return next((token for token in FINAL if end.endswith(token)), "") or next(
        (token for token in BEGINS if value.startswith(token)), ""
    )


def holds_mark(value: Any) -> bool:
    """Whether something is in a text that only a template writes."""
    return isinstance(value, str) and MARK.search(value) is not None


def first_turn_at(value: str) -> int:
    found = BEGIN.match(value)
    return found.end() if found else 0


def _fits(before: str) -> bool:
    """Whether what stands before the first turn may be a system prompt."""
    return not MARK.search(before) and "\n#" not in f"\n{before}"


def _answered(value: str, form: KnownTemplate, first: re.Match[str]) -> bool:
    """Whether a text asks and then answers, in words that people write too."""
    asked = role_of(form, first, ROLES)
    return asked in ("user", "system") and any(
        role_of(form, head, ROLES) == "assistant" for head in form.head.finditer(value, first.end())
    )


def role_of(form: KnownTemplate, head: re.Match[str], words: RoleWords) -> str:
    word = head["who"].strip()
    if form.who is not None:
        return form.who.get(word) or form.who[word.lower()]
    return speaker_of(word if word in words else word.lower(), words)
