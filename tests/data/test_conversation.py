import re
from dataclasses import replace

import pytest

from tuner.data.conversation import (
    TAGS,
    Call,
    Conversation,
    Message,
    RowError,
    every_turn,
    exchanges,
    fill,
    last_only,
    split_reasoning,
    with_system,
    without_reasoning,
)

TALK = Conversation(
    messages=(
        Message(role="user", content="{{name}}?"),
        Message(role="assistant", content="I'm {{name}} by {{maker}}, {name}.", trained=True),
    )
)


def talk(*turns: str) -> Conversation:
    """Turns such as "u question" and "a answer"; all answers are trained."""
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return Conversation(
        messages=tuple(Message(role=roles[t[0]], content=t[2:], trained=t[0] == "a") for t in turns)
    )  # type: ignore[arg-type]


def texts(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


def trained(conversation: Conversation) -> list[bool]:
    return [message.trained for message in conversation.messages]


def test_fill_puts_words_into_every_turn_and_looks_at_them_once() -> None:
    assert texts(fill(TALK, {"name": "{{maker}}", "maker": "我们 \\1"})) == [
        "{{maker}}?",
        "I'm {{maker}} by 我们 \\1, {name}.",
    ]


def test_without_words_texts_stay_as_they_are() -> None:
    assert fill(TALK, {}) is TALK


def test_a_place_without_word_is_refused() -> None:
    with pytest.raises(RowError, match=r"place \{\{maker\}\}.*data\.fill\.name.*Add data\.fill\.maker="):
        fill(TALK, {"name": "Tuna"})


def test_a_system_prompt_is_for_those_that_bring_none() -> None:
    added = with_system(TALK, "Be kind.")
    assert [message.role for message in added.messages] == ["system", "user", "assistant"]
    assert with_system(added, "Be rude.") is added
    assert with_system(TALK, None) is TALK


def test_an_answer_without_text_trains_nothing() -> None:
    assert TALK.trains
    assert not Conversation(
        messages=(
            Message(role="assistant", content=" \n", trained=True),
            Message(role="assistant", content="no"),
        )
    ).trains


def test_a_call_without_text_is_trained() -> None:
    assert Message(role="assistant", calls=(Call(name="look", arguments={}),), trained=True).trains


def test_a_thought_in_front_of_an_answer_is_taken_out_of_it() -> None:
    split = split_reasoning(
        talk(
            "u <think>q</think>",
            "a <think>\nwhy\n\nnot\n</think>\n\nso",
            "a <think></think>yes",
            "a see `</think>`",
        )
    )
    assert texts(split) == ["<think>q</think>", "so", "yes", "see `</think>`"]
    assert [message.reasoning for message in split.messages] == [None, "why\n\nnot", "", None]
    assert texts(without_reasoning(split)) == texts(split)
    assert not any(message.reasoning for message in without_reasoning(split).messages)
    plain = talk("u q", "a b")
    assert split_reasoning(plain) is plain


@pytest.mark.parametrize(
    ("answer", "thought", "said"),
    [
        ("Easy.\n</think>\n\n1.", "Easy.", "1."),
        ("Easy: <b>.</think>1.", "Easy: <b>.", "1."),
        ("</think>\n\n1.", "", "1."),
        ("\n\nEasy.\n\nYes.\n</think>\n1. </think> 2.", "Easy.\n\nYes.", "1. </think> 2."),
        ("Easy.\n</think>", "Easy.", ""),
        (" <think>\na <think> b\n</think>1.", "a <think> b", "1."),
        ("<thinking>\nEasy.\n</thinking>\n1.", "Easy.", "1."),
        ("<thought>Easy.</thought>1.", "Easy.", "1."),
        ("<reasoning>\nEasy.\n</reasoning>\n<answer>\n1\n</answer>", "Easy.", "<answer>\n1\n</answer>"),
        (
            "<|begin_of_thought|>\n\nEasy.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n1.\n\n<|end_of_solution|>",
            "Easy.",
            "1.",
        ),
        ("<|begin_of_thought|>Easy.<|end_of_thought|>1.", "Easy.", "1."),
        ("[THINK]Easy.[/THINK]1.", "Easy.", "1."),
        ("◁think▷Easy.◁/think▷1.", "Easy.", "1."),
        ("<seed:think>Easy.</seed:think>1.", "Easy.", "1."),
    ],
)
def test_a_thought_is_told_by_its_tags_also_where_none_opens_it(answer: str, thought: str, said: str) -> None:
    (message,) = split_reasoning(
        Conversation(messages=(Message(role="assistant", content=answer, trained=True),))
    ).messages
    assert (message.reasoning, message.content) == (thought, said)


@pytest.mark.parametrize(
    "answer",
    [
        "Tags are <think> and </think>.",
        "It ends with `</think>`.",
        'say "</think>" now',
        "1. <think>why</think>",
        "Write <thinking>.",
        "a [/THINK] b",
    ],
)
def test_an_answer_that_speaks_of_the_tags_is_text(answer: str) -> None:
    alone = Conversation(messages=(Message(role="assistant", content=answer, trained=True),))
    assert split_reasoning(alone).messages == alone.messages
    asked = Conversation(
        messages=(
            Message(role="user", content="Easy.\n</think>\n1."),
            Message(role="assistant", content="1.", trained=True),
        )
    )
    assert split_reasoning(asked) is asked


@pytest.mark.parametrize("tag", TAGS)
def test_a_thought_that_never_ends_is_no_answer(tag: str) -> None:
    cut = Message(role="assistant", content=f"{tag}\nFirst, I", trained=True)
    with pytest.raises(
        RowError,
        match=(
            rf"begins a thought with {re.escape(tag)} and never ends it with {re.escape(TAGS[tag])}, so it"
            r" was cut off"
        ),
    ):
        split_reasoning(Conversation(messages=(cut,)))
    with pytest.raises(RowError, match="never ends it"):
        without_reasoning(Conversation(messages=(cut,)))
    shown = Conversation(
        messages=(replace(cut, trained=False), Message(role="assistant", content="a", trained=True))
    )
    assert split_reasoning(shown) == shown


def test_a_thought_of_its_own_leaves_the_text_alone() -> None:
    both = Conversation(messages=(Message(role="assistant", content="<think>a</think>b", reasoning="c"),))
    assert split_reasoning(both).messages == both.messages


def test_the_last_turn_that_trains_is_the_last_trained() -> None:
    assert trained(last_only(talk("u a", "a b", "u c", "a d", "a  "))) == [False, False, False, True, False]
    assert trained(last_only(talk("u a"))) == [False]


def test_each_turn_that_trains_ends_a_conversation() -> None:
    parts = list(every_turn(talk("u 1", "a 2", "u 3", "a ", "u 5", "a 6", "u 7")))
    assert [texts(part) for part in parts] == [["1", "2"], ["1", "2", "3", "", "5", "6"]]
    assert all(trained(part) == [False] * (len(part.messages) - 1) + [True] for part in parts)


def test_groups_begin_where_a_person_speaks_after_an_answer() -> None:
    messages = talk("s s", "u 1", "u 2", "a 3", "t 4", "a 5", "u 6", "a 7", "u 8").messages
    groups = [[message.content for message in group] for group in exchanges(messages)]
    assert groups == [["s", "1", "2", "3", "4", "5"], ["6", "7"], ["8"]]
    assert list(exchanges(())) == []
