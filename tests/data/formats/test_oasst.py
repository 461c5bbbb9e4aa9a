"""Trees of messages: the best path, every path, and the fate of every message."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.data.conversation import Conversation, LeftOut, RowError
from tuner.data.files import row_files
from tuner.data.files.row_files import Unreadable
from tuner.data.formats import detect, oasst_flat
from tuner.data.formats.oasst import CUT_OFF, NO_ROOT, NOT_BEST, UNANSWERED
from tuner.data.formats.oasst_flat import RowGroup, group_rows, is_flat
from tuner.data.formats.rows import read_row
from tuner.data.formats.shape import RowShape


def node(name: str, *replies: dict[str, Any], **others: Any) -> dict[str, Any]:
    """A message whose role its first letter says."""
    return {
        "message_id": name,
        "text": name,
        "role": "prompter" if name[0] == "q" else "assistant",
        "replies": list(replies),
        **others,
    }


def tree(root: dict[str, Any]) -> dict[str, Any]:
    return {"message_tree_id": root["message_id"], "tree_state": "ready_for_export", "prompt": root}


def flat(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages of a tree, a row each."""
    result, open_ = [], [(row["prompt"], None)]
    while open_:
        message, parent = open_.pop()
        result.append({**message, "parent_id": parent, "message_tree_id": row["message_tree_id"]})
        del result[-1]["replies"]
        open_ += [(reply, message["message_id"]) for reply in reversed(message["replies"])]
    return result


def told(conversations: Any) -> list[list[str]]:
    """Texts, with a star where they are trained."""
    assert all(isinstance(conversation, Conversation) for conversation in conversations)
    return [
        [message.content + "*" * message.trained for message in conversation.messages]
        for conversation in conversations
    ]


TREE = tree(
    node(
        "q",
        node("a-none", node("q-none", node("a-deep"))),
        node("a1", node("q1", node("a11", rank=1), node("a10", node("q10"), rank=0))),
        node("a0", node("q-first"), node("q0", node("a00"), node("a01", deleted=True))),
        node("a-failed", node("q-failed"), review_result=False, rank=0),
    )
)
for _reply, _rank in zip(TREE["prompt"]["replies"], (None, 1, 0, 0), strict=True):
    _reply["rank"] = _rank


def test_the_best_path_takes_the_lowest_rank_at_each_level() -> None:
    assert detect.sniff(TREE) == "oasst"
    assert told(read_row(TREE, RowShape())) == [["q", "a0*"]]
    ranked = tree(
        node(
            "q",
            node("a-none"),
            node("a1", rank=1.0),
            node("a0", node("q0", node("a-x"), node("a2", rank=2)), rank=0),
        )
    )
    assert told(read_row(ranked, RowShape())) == [["q", "a0*", "q0", "a2*"]]


def test_every_path_is_told_once_and_every_answer_trained_once() -> None:
    assert told(read_row(TREE, RowShape(paths="all"))) == [
        ["q", "a0*"],
        ["q", "a0", "q0", "a00*"],
        ["q", "a1*", "q1", "a10*"],
        ["q", "a1", "q1", "a11*"],
        ["q", "a-none*", "q-none", "a-deep*"],
    ]


@pytest.mark.parametrize(
    "root", [node("q"), node("q", node("a", deleted=True)), node("q", node("a"), deleted=True)]
)
def test_a_tree_without_answer_gives_nothing(root: dict[str, Any]) -> None:
    for paths in ("best", "all"):
        assert read_row(tree(root), RowShape(paths=paths)) == ()
        (gathered,) = group_rows(enumerate(flat(tree(root)), start=1), RowShape(paths=paths))
        assert gathered.samples == ()
        assert set(gathered.left) == set(gathered.numbers)
        assert not gathered.bad


@pytest.mark.parametrize(
    ("root", "words"),
    [
        (node("q", node("a", role="king")), "a turn of 'king'; known are prompter, assistant"),
        (node("q", node("a", text=None)), "text must be a string, and this is null"),
        (node("q", node("a", rank="0")), "rank must be a number or null, and this is the string '0'"),
        (node("q", replies={}), "replies must be a list"),
        (node("q", replies=["a"]), "a message of a tree must be an object, and this is the string 'a'"),
        (node("q\ud800"), "surrogate"),
    ],
)
def test_a_tree_with_a_bad_message_is_refused(root: dict[str, Any], words: str) -> None:
    with pytest.raises(RowError, match=words):
        read_row(tree(root), RowShape())


def test_more_words_for_a_role_count_in_trees() -> None:
    row = tree(node("q", node("a", role="bot")))
    assert told(read_row(row, RowShape(roles={"assistant": ("bot",)}))) == [["q", "a*"]]


@pytest.mark.parametrize("paths", ["best", "all"])
def test_messages_in_rows_give_what_their_tree_gives_in_any_order(paths: str) -> None:
    expected = told(read_row(TREE, RowShape(paths=paths)))
    for seed in range(5):
        messages = flat(TREE)
        # those of one parent keep their order, which decides among equal ranks
        random.Random(seed).shuffle(messages) if seed else None
        order = {message["message_id"]: place for place, message in enumerate(flat(TREE))}
        if seed:
            for parent in {message["parent_id"] for message in messages}:
                mine = [i for i, message in enumerate(messages) if message["parent_id"] == parent]
                for i, message in zip(
                    mine,
                    sorted((messages[i] for i in mine), key=lambda m: order[m["message_id"]]),
                    strict=True,
                ):
                    messages[i] = message
        (gathered,) = group_rows(enumerate(messages, start=1), RowShape(paths=paths))
        assert told(gathered.samples) == expected
        assert sorted(gathered.numbers) == list(range(1, len(messages) + 1))


def fates(
    messages: list[Any], shape: RowShape | None = None
) -> tuple[dict[str, str], list[list[str]], list[RowGroup]]:
    found = list(group_rows(enumerate(messages, start=1), shape or RowShape()))
    left = {messages[number - 1]["message_id"]: why for group in found for number, why in group.left.items()}
    return left, told([sample for group in found for sample in group.samples]), found


def test_each_message_that_is_in_no_conversation_has_its_reason() -> None:
    left, _, _ = fates(flat(TREE))
    assert left["q-first"] == UNANSWERED
    assert left["a1"] == left["q0"] == NOT_BEST
    assert left["a01"] == "it was deleted"
    assert left["a-failed"] == "it failed its review"
    assert left["q-failed"] == CUT_OFF
    assert set(left) == {message["message_id"] for message in flat(TREE)} - {"q", "a0"}
    left, _, _ = fates(flat(TREE), RowShape(paths="all"))
    assert left == {
        "a01": "it was deleted",
        "a-failed": "it failed its review",
        "q-failed": CUT_OFF,
        "q-first": UNANSWERED,
        "q10": UNANSWERED,
    }


def message(id_: str, parent: str | None, tree_: str = "t", **others: Any) -> dict[str, Any]:
    return {
        "message_id": id_,
        "parent_id": parent,
        "message_tree_id": tree_,
        "text": id_,
        "role": "prompter" if id_[0] == "q" else "assistant",
        **others,
    }


def test_orphans_and_circles_are_left_out_and_counted() -> None:
    left, samples, (group,) = fates(
        [
            message("q", None),
            message("a", "q"),
            message("q1", "gone"),
            message("a1", "q1"),
            message("a2", "q3"),
            message("q3", "a2"),
        ]
    )
    assert samples == [["q", "a*"]]
    assert left == dict.fromkeys(("q1", "a1", "a2", "q3"), NO_ROOT)
    assert not group.bad
    left, samples, (group,) = fates([message("q1", "gone"), message("a1", "q1")])
    assert (left, samples, group.bad) == ({"q1": NO_ROOT, "a1": NO_ROOT}, [], frozenset())


def test_a_tree_with_two_first_messages_is_refused() -> None:
    left, samples, (group,) = fates([message("q", None), message("a", "q"), message("q1", None)])
    assert samples == []
    assert all("its tree has 2 first messages (rows 1, 3)" in why for why in left.values())
    assert group.bad == {1, 2, 3}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (message("q", "a"), "the message_id 'q' is that of row 1 already"),
        (message("a1", "q", text=3), "text must be a string"),
        (message("a1", 3), "parent_id must be a string"),  # type: ignore[arg-type]
        (message("a1", "q", role="king"), "a turn of 'king'"),
        (message("a1", "q", None), "message_tree_id must be a string"),  # type: ignore[arg-type]
        ({"message_id": "x", "no": "format"}, "no known format"),
        (Unreadable(reason="not JSON"), "not JSON"),
        ("a word", "must be an object"),
    ],
)
def test_a_bad_row_among_messages_is_refused_alone(bad: Any, words: str) -> None:
    found = list(group_rows([(1, message("q", None)), (2, bad), (3, message("a", "q"))], RowShape()))
    (why,) = (why for group in found for number, why in group.left.items() if number == 2)
    assert words in why
    assert [number for group in found for number in group.bad] == [2]
    assert told([sample for group in found for sample in group.samples]) == [["q", "a*"]]


def test_rows_of_other_formats_among_messages_stand_for_themselves() -> None:
    found = list(
        group_rows(
            [
                (1, message("q", None)),
                (2, {"instruction": "i", "output": "o"}),
                (3, message("a", "q")),
                (4, TREE),
            ],
            RowShape(),
        )
    )
    assert [(group.numbers, told(group.samples)) for group in found] == [
        ((2,), [["i", "o*"]]),
        ((4,), [["q", "a0*"]]),
        ((1, 3), [["q", "a*"]]),
    ]


def test_only_a_file_that_begins_with_messages_is_gathered() -> None:
    assert is_flat(message("q", None), RowShape())
    assert is_flat(message("q", None), RowShape(format="oasst"))
    assert not is_flat(message("q", None), RowShape(format="text"))
    assert not is_flat(TREE, RowShape(format="oasst"))
    assert not is_flat({"text": "a"}, RowShape())
    assert not is_flat(None, RowShape())
    assert not is_flat([], RowShape())
    assert is_flat(Unreadable(reason="not JSON"), RowShape(format="oasst"))


def test_columns_of_messages_may_have_other_names() -> None:
    names = {"message_id": "id", "parent_id": "parent", "message_tree_id": "tree"}
    renamed = [
        {names.get(key, key): value for key, value in row.items()}
        for row in (message("q", None), message("a", "q"))
    ]
    shape = RowShape(columns=names)
    assert is_flat(renamed[0], shape)
    (group,) = group_rows(enumerate(renamed), shape)
    assert told(group.samples) == [["q", "a*"]]


def test_trees_may_be_mixed_within_the_window_and_are_refused_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(oasst_flat, "WINDOW", 3)
    mixed = [
        message("q1", None, "1"),
        message("q2", None, "2"),
        message("a1", "q1", "1"),
        message("a2", "q2", "2"),
    ]
    assert sorted(fates(mixed)[1]) == [["q1", "a1*"], ["q2", "a2*"]]
    far = [
        message("q1", None, "1"),
        *(message(f"q{i}", None, str(i)) for i in range(2, 6)),
        message("a1", "q1", "1"),
    ]
    left, _, found = fates(far)
    assert "its tree ended more than 3 rows before" in left["a1"]
    assert [number for group in found for number in group.bad] == [6]
    assert sorted(number for group in found for number in group.numbers) == [1, 2, 3, 4, 5, 6]


def test_no_more_than_the_window_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oasst_flat, "WINDOW", 10)
    taken = 0

    def endless() -> Any:
        nonlocal taken
        while True:
            taken += 1
            yield taken, message("q" if taken % 2 else "a", None if taken % 2 else "q", str((taken + 1) // 2))

    groups = group_rows(endless(), RowShape())
    for number in range(100):
        assert next(groups).numbers == (2 * number + 1, 2 * number + 2)
        assert taken <= 2 * number + 14


@pytest.mark.parametrize("paths", ["best", "all"])
def test_a_tree_may_be_deeper_than_the_recursion_limit(paths: str) -> None:
    deep = 20_000
    root: dict[str, Any] = node("a")
    for place in range(deep - 1):
        root = node("qa"[place % 2], root)
    (conversation,) = read_row(tree(root), RowShape(paths=paths))
    assert isinstance(conversation, Conversation)
    assert len(conversation.messages) == deep
    chain = [message(f"{'qa'[i % 2]}{i}", f"{'qa'[(i - 1) % 2]}{i - 1}" if i else None) for i in range(deep)]
    (group,) = group_rows(enumerate(chain), RowShape(paths=paths))
    assert len(group.samples) == 1
    assert not group.left
    while root["replies"]:  # taken apart, so that nothing has to forget it recursively
        root = root["replies"].pop()


@st.composite
def forests(draw: st.DrawFn) -> list[dict[str, Any]]:
    count = draw(st.integers(1, 12))
    return [
        {
            "message_id": draw(st.sampled_from([f"{i}", f"{i}", f"{i}", "0"])),
            "parent_id": draw(st.none() | st.sampled_from([f"{j}" for j in range(count)])) if i else None,
            "message_tree_id": draw(st.sampled_from(["s", "t"])),
            "text": draw(st.sampled_from(["a", "", "\ud800"])),
            "role": draw(st.sampled_from(["prompter", "assistant", "assistant"])),
            "rank": draw(st.sampled_from([None, 0, 1, 1.5, float("nan")])),
            "deleted": draw(st.sampled_from([False, False, True])),
        }
        for i in range(count)
    ]


@given(messages=forests(), paths=st.sampled_from(["best", "all"]))
@settings(max_examples=400, deadline=None, derandomize=True)
def test_every_message_is_in_a_conversation_or_left_out_with_a_reason(
    messages: list[dict[str, Any]], paths: str
) -> None:
    found = list(group_rows(enumerate(messages, start=1), RowShape(paths=paths)))
    assert sorted(number for group in found for number in group.numbers) == list(range(1, len(messages) + 1))
    for group in found:
        assert set(group.left) <= set(group.numbers)
        assert group.bad <= set(group.left)
        conversations = [sample for sample in group.samples if isinstance(sample, Conversation)]
        used = len(group.numbers) - len(group.left)
        assert bool(conversations) == bool(used)
        assert all(conversation.messages[-1].role == "assistant" for conversation in conversations)
        # each answer is trained once
        answers = sum(
            messages[number - 1]["role"] == "assistant"
            for number in group.numbers
            if number not in group.left
        )
        assert (
            sum(message.trained for conversation in conversations for message in conversation.messages)
            == answers
        )


STATES = (
    "aborted_low_grade",
    "halted_by_moderator",
    "prompt_lottery_waiting",
    "growing",
    "ranking",
    "ready_for_scoring",
    "scoring_failed",
    "backlog_ranking",
)


@pytest.mark.parametrize("state", STATES)
def test_a_tree_that_is_not_ready_for_export_is_left_out_with_its_state(state: str) -> None:
    row = {**tree(node("q", node("a"))), "tree_state": state}
    with pytest.raises(LeftOut, match=rf"its tree is {state}, not ready_for_export"):
        read_row(row, RowShape())
    messages = [{**message, "tree_state": state} for message in flat(row)]
    whole = [{**message, "tree_state": "ready_for_export"} for message in flat(tree(node("q2", node("a2"))))]
    lost, kept = group_rows(enumerate([*messages, *whole], start=1), RowShape())
    assert lost == RowGroup(
        numbers=(1, 2), left=dict.fromkeys((1, 2), f"its tree is {state}, not ready_for_export")
    )
    assert told(kept.samples) == [["q2", "a2*"]]
    mixed = list(group_rows(enumerate([*messages[:1], {**row, "message_tree_id": "x"}], start=1), RowShape()))
    assert [found.left for found in mixed] == [
        {2: f"its tree is {state}, not ready_for_export"},
        {1: f"its tree is {state}, not ready_for_export"},
    ]


@pytest.mark.parametrize("state", [None, "ready_for_export"])
def test_a_tree_of_no_state_is_as_good_as_a_whole_one(state: str | None) -> None:
    assert told(read_row({**tree(node("q", node("a"))), "tree_state": state}, RowShape())) == [["q", "a*"]]


def test_messages_without_text_are_left_out_with_what_answers_them() -> None:
    root = node("q", node("a1", node("q1", node("a11"), text=" \n")), node("a0", rank=1, text=""))
    assert told(read_row(tree(root), RowShape(paths="all"))) == [["q", "a1*"]]
    assert read_row(tree(node("q", node("a"), text="")), RowShape()) == ()
    (found,) = group_rows(enumerate(flat(tree(root)), start=1), RowShape())
    assert found.left == {3: "it has no text", 4: CUT_OFF, 5: "it has no text"}


def test_the_flat_file_gives_what_the_trees_give(shared: Path) -> None:
    trees = [
        row
        for chunk in row_files.chunks(shared / "data/oasst/oasst_en_trees.jsonl")
        for _, row in row_files.parse_rows(chunk)
    ]
    messages = [
        entry
        for chunk in row_files.chunks(shared / "data/oasst/oasst_en_messages.jsonl")
        for entry in row_files.parse_rows(chunk)
    ]
    for paths, count in (("best", 77), ("all", None)):
        shape = RowShape(paths=paths)
        nested = [told(read_row(row, shape)) for row in trees]
        assert [told(group.samples) for group in group_rows(messages, shape)] == nested
        if count:
            assert sum(map(len, nested)) == count
