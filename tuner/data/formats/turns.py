"""What holds of turns in every format: what else the row says of them, and in which order they may come.

Two turns of one role in a row, an answer first, a system turn in the middle and empty turns are kept as they are: the chat
template decides whether it can write them. An empty answer is shown and not trained. Calls that nobody answered are trained like others.
A tool's answer needs a call before it, and one that names a call needs that one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tuner.data.conversation import Conversation, Message, RowError
from tuner.data.formats.fields import named, quoted, text
from tuner.data.formats.tools import tools

MEDIA = ("image", "images", "video", "videos", "audio", "audios")
BESIDE = frozenset(("system", "tools", "functions", *MEDIA))
"""columns that say something about the turns"""


def conversation(row: Mapping[str, Any], messages: Sequence[Message], *, says_calls: bool = False) -> Conversation:
    """The turns of a row with what else it says of them: `system`, `tools` or `functions`. Pictures and sound are refused.

    says_calls   a call may stand in an answer's text, as it does in many ShareGPT sets, so any answer may have been one
    """
    offered: tuple[Any, ...] = ()
    if not BESIDE.isdisjoint(row):
        for key in MEDIA:
            if row.get(key):
                raise RowError(f"the row has {key}, and only text can be trained")
        offered = tools(row)
        if row.get("system") not in (None, ""):
            messages = _with_system(text(row["system"], "system"), messages)
    if any([message.role == "tool" for message in messages]):
        answered(messages, says_calls=says_calls)
    return Conversation(messages=tuple(messages), tools=offered)


def _with_system(system: str, messages: Sequence[Message]) -> Sequence[Message]:
    first = messages[0]
    if first.role != "system":
        return (Message(role="system", content=system), *messages)
    if first.content != system:
        raise RowError("the row has a column `system` and a system turn that says something else, and one of them is expected")
    return messages


def answered(messages: Sequence[Message], *, says_calls: bool) -> None:
    """Refuse a tool's answer to no call."""
    ids: set[str] = set()
    asked: Message | None = None
    for message in messages:
        if message.role != "tool":
            asked = message
            ids.update(call.id for call in message.calls if call.id is not None)
        elif message.call_id in ids:
            continue
        elif asked is None or asked.role != "assistant" or not (asked.calls or says_calls):
            raise RowError("a tool answers, and no call stands before it; expected is a turn of the assistant that calls it")
        elif message.call_id is not None and ids:
            raise RowError(f"a tool answers the call {quoted(message.call_id)}, and there is none of that id (there are {named(sorted(ids))})")
