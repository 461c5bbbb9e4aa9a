"""What a chat template writes elsewhere than it stands in the row: the system prompt and the tools."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tuner.data.chat.layout import Layout
from tuner.data.chat.tool_calls import check_place
from tuner.data.conversation import Message, RowError

TOOLS_ONLY = Message(role="system")
"""stands for the system turn of a conversation that has none, and tools to be written there"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """What is written elsewhere than it stands in the row. Indices are of turns, -1 is nowhere."""

    last_user: int = -1
    system_at: int = -1
    """the user's turn whose text has `system` in front of it"""
    system: str = ""
    tools: Sequence[Any] = ()
    tools_before: int = -1
    """the turn in front of which they are written; as many as there are turns for behind all"""
    tools_inside: int = -1
    """the user's turn inside which they are written, before its text; or the system turn, behind it"""


NOWHERE = Placement()


def place(
    layout: Layout, messages: Sequence[Message], tools: Sequence[Any], *, system_in: str, tools_in: str
) -> tuple[Sequence[Message], Placement]:
    """The turns that are written as turns, and where the rest goes."""
    check_place(tools, layout.tools, "tools", "tools")
    opening = bool(messages) and messages[0].role == "system"
    system, where = "", tools_in if tools else ""
    if opening and system_in.endswith("user"):
        before, after = layout.system
        system, messages = before.lead + messages[0].content + after.lead, messages[1:]
    elif not opening and where == "system":
        messages = (TOOLS_ONLY, *messages)
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    if not users and (where.endswith("user") or (opening and system_in.endswith("user"))):
        raise RowError(
            "the chat template writes the system prompt or the tools into a user's turn, and the row has none"
        )
    # without a question, no turn comes after it
    first, last = (users[0], users[-1]) if users else (-1, len(messages) - 1)
    before_turn = {"first": 0, "after_system": int(opening), "last_user": last}
    inside_turn = {"system": 0, "first_user": first}
    return messages, Placement(
        last_user=last,
        system_at=(first if system_in == "first_user" else last)
        if opening and system_in.endswith("user")
        else -1,
        system=system,
        tools=tools,
        tools_before=before_turn.get(where, -1),
        tools_inside=inside_turn.get(where, -1),
    )
