"""Ways to read rows that the names in them suggest: places of columns, words for roles, a format. Whether
one works, `tuner.data.formats.hints` tries.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from tuner.data.conversation import Speaker
from tuner.data.formats import column_names, messages, sharegpt
from tuner.data.formats.checks import RoleWords, nearest_role
from tuner.data.formats.columns import value_at
from tuner.data.formats.detect import TURN_COLUMNS, turns_format
from tuner.data.formats.shape import RowShape
from tuner.data.formats.turns import CALLERS, standard_turn

DEEP = 3
"""steps of the way to a value"""
MANY = 60
"""places of a row that are looked at"""
ABOUT = frozenset(
    "id type lang language source name url date hash length score count level category start end".split()
)
AVOIDED = frozenset(
    (
        "rejected reject non not negative bad worse worst wrong incorrect loser distractor distractors "
        "corrupted unpreferred dispreferred"
    ).split()
)
"""words of which one in a name says that nobody wants to train on it"""
SPOKEN = {
    "user": tuple(
        (
            "user human prompter customer client guest visitor patient student seeker "
            "caller asker questioner buyer person usr 用户 客户 访客 患者 病人 学生 人类 问 提问者 顾客 买家 "
            "咨询者 来访者"
        ).split()
    ),
    "assistant": tuple(
        (
            "assistant bot gpt chatgpt ai model agent chatbot llm doctor teacher "
            "expert counselor therapist helper support operator advisor seller claude "
            "gemini bard llama 客服 助手 助理 医生 老师 机器人 模型 答 回答者 专家 律师 咨询师 卖家 智能助手"
        ).split()
    ),
    "system": ("system", "sys", "developer", "系统", "设定", "系统提示"),
    "tool": tuple(
        (
            "tool function observation tool_response tool_result function_response "
            "function_result function_output environment ipython api 工具"
        ).split()
    ),
}
"""role → words for it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What could be said of rows."""

    format: str | None = None
    """data.format, where it is to be another"""
    columns: Mapping[str, str] = field(default_factory=dict)
    """data.columns, in addition to those that were said"""
    roles: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """data.roles, each with the words that were said for it"""

    def of(self, shape: RowShape) -> RowShape:
        """The shape with this said, as later words on the command line go before earlier ones."""
        return replace(
            shape,
            format=self.format or shape.format,
            columns={**shape.columns, **self.columns},
            roles={**shape.roles, **self.roles},
        )


def all_guesses(sample: Sequence[Any], shape: RowShape) -> Iterator[Guess]:
    """All that may be worth trying, the likeliest first."""
    for columns, format in _columns(sample):
        if set(columns.items()) <= set(shape.columns.items()) and columns:
            columns = {}
        lean = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
        formats = [None] if shape.format in ("auto", "chosen", format) else [format, "auto"]
        for named, said in itertools.product(formats, (lean, columns)):
            way = Guess(format=named, columns=said)
            yield way
            for base in ({**sharegpt.ROLES, **messages.ROLES}, messages.ROLES):
                if roles := _roles(sample, way.of(shape), base):
                    yield replace(way, roles=roles)
    if shape.format != "chosen":
        yield Guess(format="chosen")


def _columns(sample: Sequence[Any]) -> Iterator[tuple[dict[str, str], str]]:
    """Places of columns, and the format that they are of."""
    yield {}, "auto"
    if not all(isinstance(row, dict) for row in sample):
        return
    places = _places(sample)
    texts = [
        place
        for place, values in places.items()
        if all(isinstance(value, str | None) for value in values) and any(values)
    ]
    numbers = [
        place
        for place, values in places.items()
        if all(isinstance(value, int | float | str) and not isinstance(value, bool) for value in values)
    ]
    lists = [
        place
        for place, values in places.items()
        if all(isinstance(value, list) for value in values) and any(values)
    ]
    turns = [(place, found) for place, values in places.items() if (found := _turns(values))]
    system, tools = _named(texts, column_names.SYSTEM), _named([*texts, *lists], column_names.TOOLS)
    beside = [dict(pairs) for pairs in _some([("system", system), ("tools", tools)])]
    for (place, format), others in itertools.product(turns, beside):
        yield {TURN_COLUMNS[format]: place, **others}, format
    for others in beside:
        yield others, "auto"
    said, context = (
        _named(list(dict.fromkeys([*texts, *numbers])), column_names.SAID),
        _named(texts, column_names.CONTEXT),
    )
    asked = _named(texts, column_names.ASKED) or context
    thoughts, history = _named(texts, column_names.THOUGHT), _named(lists, column_names.HISTORY)
    for (ask, say), others in itertools.product(itertools.product(asked, said), beside):
        if ask == say:
            continue
        spoken = f"{{{say}}}" if say not in texts else say
        around = [place for place in context if place not in (ask, say)]
        both = ["\n".join(f"{{{place}}}" for place in around[:2])] if len(around) > 1 else []
        for more in _some([("input", [*both, *around]), ("history", history)]):
            columns = {"instruction": ask, **dict(more), "output": spoken, **others}
            for thought in thoughts:
                if thought not in columns.values():
                    yield {**columns, "output": f"<think>{{{thought}}}</think>{{{say}}}"}, "alpaca"
            yield columns, "alpaca"
    for ask, say in itertools.product(
        [*(place for place, _ in turns), *asked], [*said, *(place for place, _ in turns)]
    ):
        if ask != say and {ask, say} & {place for place, _ in turns}:
            for others in beside:
                yield {"prompt": ask, "completion": say, **others}, "prompt"
    for place in _named(texts, column_names.TEXTS) if not said else ():
        yield {"text": place}, "text"


def _some(choices: Sequence[tuple[str, Sequence[str]]]) -> list[list[tuple[str, str]]]:
    """Each way to choose a place for each of these columns, or none for it; those with more of them first."""
    every = itertools.product(*[[*((name, place) for place in places[:2]), None] for name, places in choices])
    return sorted(([one for one in chosen if one] for chosen in every), key=len, reverse=True)


def _places(sample: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The places that all rows have, each with its values; lists of texts count by their first."""
    found: dict[str, list[Any]] = {}
    for row in sample:
        for place, value in itertools.islice(_inside(row, ""), MANY):
            found.setdefault(place, []).append(value)
    return {
        place: values
        for place, values in found.items()
        if len(values) == len(sample) and AVOIDED.isdisjoint(re.split(r"[ ._-]", place.lower()))
    }


def _inside(value: Any, way: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Outer places before inner ones."""
    parts = (
        list(value.items())
        if isinstance(value, dict)
        else [("0", value[0])]
        if isinstance(value, list) and value
        else []
    )
    steps = [(f"{way}.{key}" if way else str(key), part) for key, part in parts if isinstance(key, str)]
    yield from steps
    for place, part in steps:
        is_turns = isinstance(part, list) and turns_format(part) is not None
        if isinstance(part, dict | list) and depth + 1 < DEEP and not is_turns:
            yield from _inside(part, place, depth + 1)


def _turns(values: Sequence[Any]) -> str | None:
    """The format of a column of turns."""
    found = {turns_format(value) for value in values}
    return found.pop() if len(found) == 1 else None


def _named(places: Sequence[str], words: Sequence[str]) -> list[str]:
    """Places that are called by one of the words: first those that are called just so, in the order of the
    words, then those of which it is a part.

    Of several of which it is a part, such as answer_a and answer_b, none can be told to be meant.
    """
    exact: dict[str, list[str]] = {}
    partly: dict[str, list[str]] = {}
    for place in places:
        name = _name(place)
        if word := next((form for form in (name, name.removesuffix("s")) if form in words), None):
            exact.setdefault(word, []).append(place)
        elif not ABOUT.intersection(parts := name.split("_")) and (
            word := next((word for word in words if word in parts), None)
        ):
            partly.setdefault(word, []).append(place)
    alone = [found[0] for found in partly.values() if len(found) == 1]
    return [place for word in words for place in exact.get(word, ())] + alone


def _name(place: str) -> str:
    """What a place is called: its last step, or the one before where that only says that it is a text."""
    steps = [step.lower() for step in place.split(".") if not step.isdecimal()]
    last = (
        steps[-2]
        if len(steps) > 1 and steps[-1] in ("text", "value", "content")
        else steps[-1]
        if steps
        else ""
    )
    return last.replace("-", "_").replace(" ", "_")


def _roles(sample: Sequence[Any], shape: RowShape, base: RoleWords) -> dict[str, tuple[str, ...]]:
    """What unknown words for roles may mean, beside those that `shape` knows; nothing where one of them
    may mean several things.
    """
    base = {**base, **{word: cast("Speaker", role) for role, words in shape.roles.items() for word in words}}
    spoken = list(dict.fromkeys(word for row in sample for word in _speakers(row, shape)))
    meant = {word: _meant_by(word) for word in spoken if word not in base}
    lost = [word for word, role in meant.items() if role is None]
    sides = {base.get(word) or meant[word] for word in spoken if word not in lost}
    missing = [role for role in ("user", "assistant") if role not in sides]
    if len(lost) == 1 and len(missing) == 1:
        meant[lost[0]] = missing[0]  # of two who speak, the other one is known
    if not meant or None in meant.values():
        return {}
    return {
        role: (*shape.roles.get(role, ()), *(word for word, said in meant.items() if said == role))
        for role in SPOKEN
        if role in meant.values()
    }


def _meant_by(word: str) -> str | None:
    """The role that a word stands for, or is a slip of a word for."""
    known = {said: role for role, words in SPOKEN.items() for said in words}
    return known.get(word.lower()) or known.get(nearest_role(word, known) or "")


def _speakers(row: Any, shape: RowShape) -> Iterator[str]:
    """The words for who speaks, in all turns of a row."""
    for place in (
        shape.columns.get(column, column)
        for column in (
            "messages",
            "conversations",
            "conversation",
            "prompt",
            "completion",
            *column_names.LISTS,
        )
    ):
        turns = row if isinstance(row, list) else value_at(row, place)
        for turn in turns if isinstance(turns, list) else ():
            said = standard_turn(turn)
            word = said.get("role", said.get("from")) if isinstance(said, dict) else None
            if isinstance(word, str) and word not in CALLERS:
                yield word
        if isinstance(row, list):
            return
