"""What columns are called: the words of many data sets, and the sets that are known well enough to be read
without being asked.

A form is read by itself only where all that it is known to hold has a place: a column of these words beside
it that has none (a context, choices, a second answer) may be read in more ways than one, and then
`tuner.data.formats.hints` proposes what was tried.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.data.formats import turns

ASKED = tuple(
    (
        "question query prompt instruction input problem inputs user human task title "
        "source_text patient definition 问题 提问 指令 输入"
    ).split()
)
SAID = tuple(
    (
        "answer response output completion target solution outputs targets reply "
        "assistant bot gpt model_answer std_answer ideal expected_output gold doctor "
        "highlights generation summary translation sql code 回答 答案 输出 回复"
    ).split()
)
CONTEXT = tuple(
    (
        "context input passage document article paragraph background knowledge schema "
        "table evidence selftext 材料 上下文 背景"
    ).split()
)
SYSTEM = ("system_prompt", "system", "system_message", "sys_prompt", "persona", "系统提示")
THOUGHT = (
    "reasoning_content",
    "reasoning",
    "thinking",
    "thought",
    "thoughts",
    "chain_of_thought",
    "cot",
    "思考",
)
REASONS = ("rationale", "explanation")
"""which may come before the answer or behind it"""
TOOLS = ("tools", "functions", "available_tools", "tool_list", "function_list", "apis")
HISTORY = ("history", "chat_history", "dialog_history")
CHOICES = ("options", "choices", "hint", "hints")
TEXTS = tuple(
    (
        "content body document passage raw_content article markdown page_content code "
        "story abstract 正文 内容"
    ).split()
)
LISTS = tuple(
    (
        "messages conversations conversation dialog dialogue dialogs dialogues chat "
        "chats turns conversation_list message 对话"
    ).split()
)
"""the first of each that are there are tried first"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ColumnLayout:
    """A form of rows whose columns are called otherwise."""

    format: str
    needs: Mapping[str, str]
    """the format's column → what it is called here; all of them must be there, as texts"""
    may: Mapping[str, str] = field(default_factory=dict)
    """those that may be there too"""
    alone: bool = False
    """whether no other column may hold anything, but for what tells where a row is from: a question may
    have its choices in columns A to D
    """


LAYOUTS = (
    # Dolly
    ColumnLayout(
        format="alpaca", needs={"instruction": "instruction", "output": "response"}, may={"input": "context"}
    ),
    ColumnLayout(
        format="alpaca", needs={"instruction": "instruction", "output": "response"}, may={"input": "input"}
    ),
    # OpenOrca
    ColumnLayout(
        format="alpaca",
        needs={"instruction": "question", "output": "response"},
        may={"system": "system_prompt"},
    ),
    ColumnLayout(format="alpaca", needs={"instruction": "query", "output": "response"}),  # ms-swift
    ColumnLayout(
        format="alpaca",
        needs={"instruction": "prompt", "output": "response"},
        may={"system": "system_prompt"},
        alone=True,
    ),
    ColumnLayout(format="alpaca", needs={"instruction": "question", "output": "answer"}, alone=True),
    ColumnLayout(format="alpaca", needs={"instruction": "input", "output": "output"}, alone=True),
    # Firefly's first set
    ColumnLayout(format="alpaca", needs={"instruction": "input", "output": "target"}, alone=True),
    ColumnLayout(format="alpaca", needs={"instruction": "human", "output": "assistant"}, alone=True),
    ColumnLayout(format="alpaca", needs={"instruction": "human", "output": "bot"}, alone=True),
    ColumnLayout(format="alpaca", needs={"instruction": "user", "output": "assistant"}, alone=True),
)
ABOUT = frozenset(
    (
        "id idx index uid uuid qid source dataset category type kind lang language url split topic subject "
        "domain level license tags"
    ).split()
)
"""columns that tell of a row where it is from"""
SAYING = frozenset(
    (
        *ASKED,
        *SAID,
        *CONTEXT,
        *SYSTEM,
        *THOUGHT,
        *REASONS,
        *HISTORY,
        *CHOICES,
        *LISTS,
        "text",
        "chosen",
        "rejected",
    )
) - {
    "title",
    "task",
    "code",
}
"""columns that hold a part of what is read or said, as a rule"""
PAIR = (
    frozenset(("question", "query", "input", "inputs", "instruction", "prompt", "problem")),
    frozenset("answer response output outputs completion target targets solution std_answer".split()),
)
"""columns beside which `text` may be anything"""


def layout_of(row: Mapping[str, Any]) -> tuple[str, dict[str, str]] | None:
    """The format of a row of a known form, and what its columns are called there; None where no form has a
    place for all that the row says.
    """
    filled = {key for key, value in row.items() if isinstance(value, str | list | dict) and value}
    read = {"history", *turns.columns_beside(row)}
    for form in LAYOUTS:
        if all(isinstance(row.get(theirs), str) for theirs in form.needs.values()):
            columns = {**form.needs, **{ours: theirs for ours, theirs in form.may.items() if theirs in row}}
            others = filled.difference(columns.values(), read)
            if not (others - ABOUT if form.alone else others & SAYING):
                return form.format, columns
    return None


def is_pair(row: Mapping[str, Any]) -> bool:
    """Whether a row has a text to ask and another to say."""
    return all(any(isinstance(row.get(key), str) for key in keys) for keys in PAIR)
