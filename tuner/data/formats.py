"""A row of a data set → a Conversation. One pure function a format; `sniff` tells which from a row's keys.

To add one: write `name(row) -> tuple[Message, ...]`, raising RowError for what it can't take, put it into READERS with version 1,
teach `sniff` its keys, and add the word to `data.format` in the schema.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tuner.data import sources
from tuner.data.conversation import Conversation, Message, Speaker
from tuner.errors import DataError

VERSIONS = {"messages": 1, "alpaca": 1, "sharegpt": 1}
"""each bumped when its function would read the same row differently"""

ROLES: Mapping[str, Speaker] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
SPEAKERS: Mapping[str, Speaker] = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


class RowError(Exception):
    """A row that a format can't take; the message says why, and who reads the file adds where."""


def messages(row: Any) -> tuple[Message, ...]:
    """OpenAI's chat format: `{"messages": [{"role": "user", "content": "…"}, …]}`, or the bare list of turns.

    A content may be a list of text parts. An assistant turn with `"weight": 0` is shown and not trained, as in OpenAI's fine-tuning.
    """
    turns = row if isinstance(row, list) else row.get("messages")
    if not isinstance(row, list):
        _refuse_tools(row)
    result = []
    for turn in _list(turns, "messages"):
        role = _role(turn.get("role"), ROLES)
        if turn.get("tool_calls") or turn.get("function_call"):
            raise RowError("the assistant calls a tool; tool turns can't be trained yet")
        if turn.get("reasoning_content") or turn.get("reasoning"):
            raise RowError("a turn has reasoning beside its content, which can't be trained yet")
        trained = role == "assistant" and turn.get("weight") != 0
        result.append(Message(role=role, content=_content(turn.get("content")), trained=trained))
    return tuple(result)


def alpaca(row: Any) -> tuple[Message, ...]:
    """Stanford Alpaca: `{"instruction", "input", "output"}`; the input, where there is one, follows the instruction on a line of its own.

    `system` and `history` (a list of [question, answer]) are optional.
    """
    result = [Message(role="system", content=_text(row["system"], "system"))] if row.get("system") else []
    for exchange in row.get("history") or []:
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise RowError("history must be a list of [question, answer]")
        result.append(Message(role="user", content=_text(exchange[0], "history")))
        result.append(Message(role="assistant", content=_text(exchange[1], "history"), trained=True))
    question = _text(row.get("instruction"), "instruction")
    if row.get("input"):
        question = f"{question}\n{_text(row['input'], 'input')}" if question else _text(row["input"], "input")
    result.append(Message(role="user", content=question))
    result.append(Message(role="assistant", content=_text(row.get("output"), "output"), trained=True))
    return tuple(result)


def sharegpt(row: Any) -> tuple[Message, ...]:
    """ShareGPT: `{"conversations": [{"from": "human", "value": "…"}, {"from": "gpt", "value": "…"}, …]}`; `system` is optional."""
    _refuse_tools(row)
    result = [Message(role="system", content=_text(row["system"], "system"))] if row.get("system") else []
    for turn in _list(row.get("conversations"), "conversations"):
        role = _role(turn.get("from"), SPEAKERS)
        result.append(Message(role=role, content=_text(turn.get("value"), "value"), trained=role == "assistant"))
    return tuple(result)


READERS: Mapping[str, Callable[[Any], tuple[Message, ...]]] = {"messages": messages, "alpaca": alpaca, "sharegpt": sharegpt}


def sniff(row: Any) -> str:
    """The format of a row, from its keys. Raises RowError when it is none of them."""
    if isinstance(row, list):
        return "messages"
    if "messages" in row:
        return "messages"
    if "conversations" in row:
        return "sharegpt"
    if "instruction" in row and "output" in row:
        return "alpaca"
    keys = ", ".join(sorted(map(str, row))[:8]) or "none"
    raise RowError(f"no known format has these keys ({keys}); known are messages, conversations (sharegpt), or instruction and output (alpaca)")


def versions(name: str) -> dict[str, int]:
    """The versions that reading as the format `name` depends on; `auto` may meet them all."""
    return {f"format.{known}": version for known, version in VERSIONS.items() if name in (known, "auto")}


def read(files: Mapping[str, Path], name: str) -> Iterator[Conversation]:
    """All conversations of `files`, in order, read as the format `name` or as `auto`.

    Raises DataError with file, line and reason for the first ten rows that can't be taken.
    """
    bad: list[str] = []
    for index, file in enumerate(files.values()):
        for line, row in sources.read(file):
            try:
                if not isinstance(row, dict | list):
                    raise RowError(f"a row must be an object or a list of turns, and this is {row!r:.40}")
                if isinstance(row, dict) and ("rejected" in row or ("label" in row and isinstance(row["label"], bool))):
                    raise RowError("a preference (chosen and rejected, or a label) can't be trained by this objective")
                if isinstance(row, list) and name not in ("auto", "messages"):
                    raise RowError(f"a bare list of turns is of the format messages, and data.format is {name}")
                yield Conversation(messages=READERS[sniff(row) if name == "auto" else name](row), file=index, line=line)
            except RowError as error:
                bad.append(f"{file}:{line}: {error}")
                if len(bad) == sources.NAMED:
                    sources.refuse(bad)
    sources.refuse(bad)


def empty(files: Mapping[str, Path], rows: int) -> DataError:
    """The error for a data set in which nothing is trained."""
    names = ", ".join(str(file) for file in files.values())
    found = "no rows" if not rows else f"{rows} rows, and no assistant turn with text in any of them"
    return DataError(f"{names}: found {found}. At least one conversation with an answer is needed to train on.")


def _list(turns: Any, key: str) -> Sequence[Any]:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise RowError(f"{key} must be a list of turns with at least one in it")
    return turns


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{key} must be a text, and this is {value!r:.40}")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RowError(f"{key} holds half of a surrogate pair, which is no character")
    return value


def _content(value: Any) -> str:
    if not isinstance(value, list):
        return _text(value, "content")
    parts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise RowError(f"a content part of the type {kind!r} can't be trained; only text can")
        parts.append(_text(part.get("text", part.get("value")), "content"))
    return "".join(parts)


def _refuse_tools(row: Mapping[str, Any]) -> None:
    if row.get("tools") not in (None, "", "[]", []) or row.get("functions"):
        raise RowError("the row has tools, which can't be trained yet")


def _role(word: Any, known: Mapping[str, Speaker]) -> Speaker:
    if isinstance(word, str) and word in known:
        return known[word]
    if word in ("tool", "function", "function_call", "observation"):
        raise RowError(f"a turn of {word!r}: tool turns can't be trained yet")
    raise RowError(f"a turn of {word!r}; known are {', '.join(known)}")
