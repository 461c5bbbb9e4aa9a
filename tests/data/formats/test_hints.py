"""Hints are made by reading: what is proposed works when it is pasted, reads what it promises and says
what it leaves.
"""

import shlex
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.formats.test_formats import A, U, brief, said
from tuner.config.compose import compose
from tuner.config.view import View
from tuner.data.conversation import Conversation, RowError, Text
from tuner.data.formats import column_names, hints, rows
from tuner.data.formats.guesses import SPOKEN
from tuner.data.formats.shape import RowShape
from tuner.data.sources import shape_of


def pasted(line: str, *before: str) -> RowShape:
    """How rows are read where these words are typed behind others."""
    config = compose(["data=local", "data.path=rows.jsonl", *before, *shlex.split(line)])
    return shape_of(View(config, "fetch_data").data)


def ten(**texts: Any) -> list[dict[str, Any]]:
    """Rows in which `#` is a number."""

    def put(value: Any, number: int) -> Any:
        if isinstance(value, str):
            return value.replace("#", str(number))
        if isinstance(value, list):
            return [put(part, number) for part in value]
        return {key: put(part, number) for key, part in value.items()} if isinstance(value, dict) else value

    return [put(texts, number) for number in range(10)]


def shown(sample: list[Any], shape: RowShape) -> list[str]:
    """The first row, as it is read."""
    (one,) = rows.read_row(sample[0], shape)
    return (
        brief(one.messages) if isinstance(one, Conversation) else [one.text] if isinstance(one, Text) else []
    )


PAIR: Any = {"role": "user", "content": "u #"}, {"role": "assistant", "content": "a #"}
WORKS: list[tuple[str, list[Any], list[str], set[str]]] = [
    ("context", ten(question="u #?", context="c #", answer="a #"), ["u u 0?\nc 0", "a* a 0"], set()),
    (
        "two contexts",
        ten(instruction="u #", context="c #", passage="d #", response="a #"),
        ["u u 0\nc 0\nd 0", "a* a 0"],
        set(),
    ),
    (
        "three contexts",
        ten(question="u #", context="c #", passage="d #", table="e #", answer="a #"),
        ["u u 0\nc 0\nd 0", "a* a 0"],
        {"table"},
    ),
    (
        "nested",
        ten(id="x", context="c #", question="u #", answers={"text": ["a #"], "answer_start": [3]}),
        ["u u 0\nc 0", "a* a 0"],
        {"id"},
    ),
    (
        "longest",
        ten(problem="u #", solution="a way to a #", answer="a #"),
        ["u u 0", "a* a way to a 0"],
        {"answer"},
    ),
    ("number", ten(problem="u #", answer=3), ["u u 0", "a* 3"], set()),
    (
        "thought",
        ten(question="u #", chain_of_thought="t t #", answer="a #"),
        ["u u 0", "a* <think>t t 0</think>a 0"],
        set(),
    ),
    (
        "system",
        ten(sys_prompt="s s #", user_query="u #", bot_reply="a #"),
        ["s s s 0", "u u 0", "a* a 0"],
        set(),
    ),
    ("chinese", ten(问题="u #", 答案="a #"), ["u u 0", "a* a 0"], set()),
    ("spaces", ten(**{"The question": "u #", "Model answer": "a #"}), ["u u 0", "a* a 0"], set()),
    ("turns", ten(talk=list(PAIR)), ["u u 0", "a* a 0"], set()),
    (
        "inner turns",
        ten(data={"messages": list(PAIR)}, sys_prompt="s #"),
        ["s s 0", "u u 0", "a* a 0"],
        set(),
    ),
    ("exchanges", ten(talk=[{"input": "u #", "output": "a #"}]), ["u u 0", "a* a 0"], set()),
    (
        "sharegpt",
        ten(talk=[{"from": "human", "value": "u #"}, {"from": "gpt", "value": "a #"}]),
        ["u u 0", "a* a 0"],
        set(),
    ),
    (
        "roles",
        ten(messages=[{"role": "客户", "content": "u #"}, {"role": "客服", "content": "a #"}]),
        ["u u 0", "a* a 0"],
        set(),
    ),
    (
        "roles and turns",
        ten(talk=[{"role": "patient", "content": "u #"}, {"role": "doctor", "content": "a #"}]),
        ["u u 0", "a* a 0"],
        set(),
    ),
    (
        "the other one",
        ten(messages=[{"role": "user", "content": "u #"}, {"role": "king", "content": "a #"}]),
        ["u u 0", "a* a 0"],
        set(),
    ),
    (
        "roles of sharegpt",
        ten(conversations=[{"from": "client", "value": "u #"}, {"from": "gpt", "value": "a #"}]),
        ["u u 0", "a* a 0"],
        set(),
    ),
    (
        "turns and answer",
        ten(messages=[{"role": "user", "content": "u #"}], response="a #"),
        ["u u 0", "a* a 0"],
        set(),
    ),
    (
        "document",
        ten(content="A text of number #, as long as it takes.", title="A title"),
        ["A text of number 0, as long as it takes."],
        {"title"},
    ),
    ("summary", ten(article="A text of #.", summary="a #"), ["u A text of 0.", "a* a 0"], set()),
    (
        "preferred",
        ten(
            input={"messages": [PAIR[0]]},
            preferred_output=[PAIR[1]],
            non_preferred_output=[{**PAIR[1], "content": "a bad answer of #"}],
        ),
        ["u u 0", "a* a 0"],
        {"non_preferred_output"},
    ),
    (
        "right",
        ten(question="u #", best_answer="a #", wrong_answer="quite another answer #"),
        ["u u 0", "a* a 0"],
        {"wrong_answer"},
    ),
    ("post", ten(title="u #", selftext="c #", answers={"text": ["a #"]}), ["u u 0\nc 0", "a* a 0"], set()),
    (
        "speakers",
        ten(dialogue=[{"speaker": "用户", "text": "u #"}, {"speaker": "助手", "text": "a #"}]),
        ["u u 0", "a* a 0"],
        set(),
    ),
    (
        "medical",
        ten(Question="u #", Complex_CoT="t #", Response="a #"),
        ["u u 0", "a* <think>t 0</think>a 0"],
        set(),
    ),
    ("better", ten(prompt="u #", chosen="a #", rejected="b #"), ["u u 0", "a* a 0"], set()),
]


@pytest.mark.parametrize(
    ("sample", "expected", "left"), [case[1:] for case in WORKS], ids=[case[0] for case in WORKS]
)
def test_a_hint_that_is_pasted_reads_what_it_says(
    sample: list[Any], expected: list[str], left: set[str]
) -> None:
    found = hints.best_hint(sample, RowShape())
    assert found is not None
    shape = pasted(found.line)
    assert shown(sample, shape) == expected
    assert {name for row in sample for name in rows.unread_places(row, shape)} == left == set(found.unread)
    sentence = hints.how_to_read(sample, RowShape())
    assert sentence is not None
    assert all(f"{name} in 10 of 10 rows" in sentence for name in left)


def test_the_bare_list_has_roles_too() -> None:
    sample = [[{"role": "human", "content": "u"}, {"role": "bot", "content": "a"}]] * 3
    found = hints.best_hint(sample, RowShape())
    assert found is not None
    assert shown(sample, pasted(found.line)) == ["u u", "a* a"]


@pytest.mark.parametrize(
    "sample",
    [
        [{"a": "x", "b": "y"}],
        ten(messages=[{"role": "foo", "content": "u"}, {"role": "bar", "content": "a"}]),
        ten(
            messages=[
                {"role": "user", "content": "u"},
                {"role": "foo", "content": "a"},
                {"role": "bar", "content": "a"},
            ]
        ),
        ten(dialogue=["hi", "hello"]),
        ten(prompt="u", response_0="a", response_1="b b b", better_response_id=0),
        ten(question="u", answer_a="a", answer_b="b"),
        ten(translation={"en": "a", "zh": "b"}),
        ten(sentence1="a", sentence2="b", label=1),
        ten(question="u", prompt="v v", answer="a"),  # which of the two is asked?
        ten(content="a text", notes="quite another text, and a long one"),
        [*ten(question="u", answer="a", context="c"), {"x": "y"}],
        # the answer repeats the question
        ten(question="Say it", choices=["x"], answer="Say it again and again"),
        ten(**{"it's a question": "u", "x,y answer": "a"}),  # names that a line would not keep
        [],
        [3, None, "x"],
    ],
)
def test_where_nothing_works_nothing_is_proposed(sample: list[Any]) -> None:
    assert hints.best_hint(sample, RowShape()) is None
    assert hints.how_to_read(sample, RowShape()) is None


def test_rows_that_are_read_need_no_hint() -> None:
    assert hints.best_hint([said(U, A)], RowShape()) is None
    assert hints.best_hint(ten(instruction="u", context="c c", response="a"), RowShape()) is None


@pytest.mark.parametrize(
    ("before", "sample", "expected"),
    [
        (["data.format=alpaca"], ten(instruction="u", context="c", response="a"), ["u u\nc", "a* a"]),
        (["data.format=messages"], ten(question="u", context="c", answer="a"), ["u u\nc", "a* a"]),
        (["data.format=sharegpt"], [said(U, A)], ["u u", "a* a"]),
        (["data.columns.instruction=ask"], ten(question="u", context="c", reply="a"), ["u u\nc", "a* a"]),
        (
            ["data.columns.system=persona"],
            ten(question="u", persona="s", context="c", reply="a"),
            ["s s", "u u\nc", "a* a"],
        ),
        (
            ["data.roles.user=[guest]"],
            [said({"role": "guest", "content": "u"}, {"role": "agent", "content": "a"})],
            ["u u", "a* a"],
        ),
        (
            ["data.roles.user=[guest]"],
            [
                said(
                    {"role": "guest", "content": "u"},
                    {"role": "user", "content": "v"},
                    {"role": "patient", "content": "w"},
                    {"role": "bot", "content": "a"},
                )
            ],
            ["u u", "u v", "u w", "a* a"],
        ),
    ],
)
def test_a_hint_goes_with_what_was_said_already(
    before: list[str], sample: list[Any], expected: list[str]
) -> None:
    shape = pasted("", *before)
    with pytest.raises(RowError):
        rows.read_row(sample[0], shape)
    found = hints.best_hint(sample, shape)
    assert found is not None
    assert shown(sample, pasted(found.line, *before)) == expected


@pytest.mark.parametrize(
    ("sample", "expected", "line"),
    [
        (ten(instruction="u", context="c c", output="a"), ["u u\nc c", "a* a"], "data.columns.input=context"),
        (
            ten(
                persona="s s", conversations=[{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]
            ),
            ["s s s", "u u", "a* a"],
            "data.columns.system=persona",
        ),
        (
            ten(context="c c", prompt="u", completion="a"),
            ["u u\nc c", "a* a"],
            "data.columns.instruction=prompt data.columns.input=context data.columns.output=completion",
        ),
    ],
)
def test_what_is_not_read_can_be_used(sample: list[Any], expected: list[str], line: str) -> None:
    assert hints.how_to_read_more(sample, RowShape()) == line
    assert shown(sample, pasted(line)) == expected


def test_what_nothing_reads_has_no_use() -> None:
    assert hints.how_to_read_more([{**said(U, A), "comment": "quite a long text"}], RowShape()) is None
    assert hints.how_to_read_more([said(U, A)], RowShape()) is None


def test_a_source_of_a_mixture_is_told_what_goes_into_its_yaml() -> None:
    sample = ten(question="u", context="c", answer="a")
    sentence = hints.how_to_read(sample, RowShape(), mixed=True)
    assert sentence is not None
    begin, _, said = sentence.partition("-cd DIR): ")
    assert begin.startswith(
        "To read them, in the YAML of that source (for a bare file: write DIR/data/NAME.yaml"
    )
    assert shown(sample, RowShape(**yaml.safe_load(said))) == ["u u\nc", "a* a"]
    both = hints.how_to_read(sample, RowShape(format="messages"), mixed=True)
    assert both is not None
    lines = both.partition("-cd DIR): ")[2].replace(" and ", "\n")
    assert shown(sample, RowShape(**yaml.safe_load(lines))) == ["u u\nc", "a* a"]


NAMES = st.sampled_from(
    [
        *(
            word
            for words in (
                column_names.ASKED,
                column_names.SAID,
                column_names.CONTEXT,
                column_names.SYSTEM,
                column_names.THOUGHT,
                column_names.TEXTS,
                column_names.LISTS,
            )
            for word in words
        ),
        *(
            *column_names.CHOICES,
            *column_names.HISTORY,
            "id",
            "category",
            "the question",
            "Answer",
            "model_output",
            "user_input",
        ),
        *("é", "a.b", "x y", "weird{name}", "it's", "0", "~home", "null"),
    ]
)
SPEAKERS = st.sampled_from([*(word for words in SPOKEN.values() for word in words), "king", "Alice", "a,b"])
TEXTS = st.sampled_from(
    ["", "two words", "一二三四五", "### Human: a", "<think>x</think>y", "[1]", "Say it", "Say it again"]
)
TURNS = st.lists(st.fixed_dictionaries({"role": SPEAKERS, "content": TEXTS}), min_size=1, max_size=4)
EXCHANGES = st.lists(st.fixed_dictionaries({"input": TEXTS, "output": TEXTS}), min_size=1, max_size=2)
VALUES = (
    TEXTS
    | TEXTS
    | st.none()
    | st.integers(0, 9)
    | TURNS
    | EXCHANGES
    | st.lists(TEXTS, max_size=2)
    | st.dictionaries(NAMES, TEXTS, max_size=2)
)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            NAMES | st.sampled_from(["role", "from", "content", "value", "input"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(ANYTHING, max_size=3),
    st.sampled_from([RowShape(), RowShape(format="alpaca"), RowShape(columns={"messages": "turns"})]),
)
def test_whatever_the_rows_are_a_hint_is_looked_for_without_harm(sample: list[Any], shape: RowShape) -> None:
    for look in (hints.how_to_read, hints.how_to_read_more, hints.how_to_train):
        found = look(sample, shape)
        assert found is None or "\n" not in found


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), st.data())
def test_whatever_is_proposed_works_as_it_is_typed(names: list[str], data: st.DataObject) -> None:
    first = {name: data.draw(VALUES) for name in names}
    sample = [
        first,
        {name: f"{value} more" if isinstance(value, str) else value for name, value in first.items()},
    ]
    found = hints.best_hint(sample, RowShape())
    if found is None:
        return
    shape = pasted(found.line)
    trained, left = 0, set()
    for row in sample:
        read = rows.read_row(row, shape)
        assert all(isinstance(one, Conversation | Text) for one in read)
        trained += any(
            isinstance(one, Text) or (isinstance(one, Conversation) and one.trains) for one in read
        )
        left |= set(rows.unread_places(row, shape))
    assert trained
    assert left == set(found.unread)
    assert found.left.count(" of 2 rows") == min(len(left), 4)


@pytest.mark.parametrize(
    ("slip", "role"),
    [
        ("asistant", "assistant"),
        ("Assitant", "assistant"),
        ("useer", "user"),
        ("humn", "user"),
        ("sytem", "system"),
    ],
)
def test_a_slip_of_a_role_is_read_by_nearness(slip: str, role: str) -> None:
    """Also where another role is missing: a slip of `assistant` is never made a user."""
    for others in (("user", "assistant"), ("assistant",), ("system",), ("user",)):
        turns = [{"role": word, "content": f"{word} says"} for word in (*others, slip, "assistant")]
        found = hints.best_hint([{"messages": turns}] * 4, RowShape())
        if found is not None:
            assert found.way.roles == {role: (slip,)}


def test_a_slip_of_a_role_is_named_in_its_error() -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "asistant", "content": "b"}]
    with pytest.raises(RowError, match="a turn of 'asistant', which may mean assistant; known are system"):
        rows.read_row({"messages": turns}, RowShape())
