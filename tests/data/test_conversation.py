import pytest

from tuner.data.conversation import Conversation, Message, fill, with_system
from tuner.errors import DataError

TALK = Conversation(
    messages=(Message(role="user", content="{{name}}?"), Message(role="assistant", content="I'm {{name}} by {{maker}}, {name}.", trained=True))
)


def texts(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages]


def test_fill_puts_words_into_every_turn_and_looks_at_them_once() -> None:
    assert texts(fill(TALK, {"name": "{{maker}}", "maker": "我们 \\1"})) == ["{{maker}}?", "I'm {{maker}} by 我们 \\1, {name}."]


def test_without_words_texts_stay_as_they_are() -> None:
    assert fill(TALK, {}) is TALK


def test_a_place_without_word_is_refused() -> None:
    with pytest.raises(DataError, match=r"place \{\{maker\}\}.*data\.fill\.name.*Add data\.fill\.maker="):
        fill(TALK, {"name": "Tuna"})


def test_a_system_prompt_is_for_those_that_bring_none() -> None:
    added = with_system(TALK, "Be kind.")
    assert [message.role for message in added.messages] == ["system", "user", "assistant"]
    assert with_system(added, "Be rude.") is added
    assert with_system(TALK, None) is TALK


def test_an_answer_without_text_trains_nothing() -> None:
    assert TALK.trains
    assert not Conversation(messages=(Message(role="assistant", content=" \n", trained=True), Message(role="assistant", content="no"))).trains
