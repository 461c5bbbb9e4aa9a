"""Held-out rows as questions: what the user said, the ids of training, and the answer that stands there."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.data.chat.shapes import SHAPES
from tests.data.chat.test_template import document, said, talk, user
from tuner.config.compose import compose
from tuner.data.chat.template import Template, compile_template
from tuner.data.conversation import Conversation
from tuner.data.packs import Pack, Packs
from tuner.data.questions import asked, held_out_questions
from tuner.data.tokenizer.load import Vocabulary


def packed(template: Template, conversations: Sequence[Conversation], each: int = 3) -> Packs:
    """Documents in packs of `each`, the last line first."""
    batch = template.encode(conversations)
    assert not batch.problems
    documents = [document(batch, at) for at in range(len(conversations))]
    packs = []
    for begin in range(0, len(documents), each):
        chosen = range(begin, min(begin + each, len(documents)))
        packs.append(
            Pack(
                ids=np.array([id_ for at in chosen for id_ in documents[at][0]], dtype=np.int32),
                trained=np.array([one for at in chosen for one in documents[at][1]]),
                lengths=np.array([len(documents[at][0]) for at in chosen], dtype=np.int32),
                files=np.zeros(len(chosen), dtype=np.int32),
                lines=np.array([len(documents) - at for at in chosen], dtype=np.int32),
            )
        )
    return packs  # type: ignore[return-value]


@pytest.mark.parametrize("name", list(SHAPES))
def test_in_every_template_it_is_the_prompt_and_the_answer_of_the_row(
    vocabulary: Callable[[str], Vocabulary], name: str
) -> None:
    template = compile_template(SHAPES[name], vocabulary("minimind"))
    rows = [talk(f"What is {i} 你好?", f"It is {i + 1}.", "And then?", f"{i + 2}!") for i in range(20)]
    found = held_out_questions(template, packed(template, rows), 8)
    assert len(found) == 8
    for question in found:
        number = int(question.text.split()[2])
        assert question.text == f"What is {number} 你好?"
        assert list(question.ids) == template.prompt([user(question.text)])
        assert question.expected is not None
        assert question.expected.startswith(f"It is {number + 1}.")
        assert "And then" not in question.expected
        assert asked(template, [question.text])[0].ids == list(question.ids)


def test_they_are_spread_over_the_rows_in_their_order(template: Template) -> None:
    rows = [talk(f"{i}?", "Yes.") for i in range(40)]
    asked_for = [
        int(question.text[:-1]) for question in held_out_questions(template, packed(template, rows), 4)
    ]
    assert len(asked_for) == 4
    found = held_out_questions(template, packed(template, rows[:3]), 8)
    assert sorted(question.text for question in found) == ["0?", "1?", "2?"]
    assert max(asked_for) - min(asked_for) >= 30


def test_a_system_prompt_of_the_row_is_told_with_it(template: Template) -> None:
    (found,) = held_out_questions(template, packed(template, [talk("Hi?", "Hello.", system="Be a fish.")]), 8)
    assert "Be a fish." in found.text
    assert "Hi?" in found.text


def test_what_is_no_conversation_is_no_question(template: Template) -> None:
    texts = template.texts(["A text of its own."])
    ids, trained = document(texts)
    plain = Pack(
        ids=np.array(ids, dtype=np.int32),
        trained=np.array(trained),
        lengths=np.array([len(ids)], dtype=np.int32),
        files=np.zeros(1, dtype=np.int32),
        lines=np.ones(1, dtype=np.int32),
    )
    silent = packed(template, [Conversation(messages=(user("Hi?"), said("Hm.", trained=False)))])
    assert held_out_questions(template, [plain, *silent], 8) == []  # type: ignore[arg-type]
    assert held_out_questions(template, [], 8) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "prompts", "longest"),
    [
        ([], 8, 48),
        (["data=local", "data.path=x.jsonl"], 0, 256),
        (["data=local", "data.path=x.jsonl", "eval.prompts=[Hi?]"], 1, 256),
        (["eval=none"], 0, 256),
    ],
)
def test_the_demos_questions_are_for_the_demo(words: list[str], prompts: int, longest: int) -> None:
    found = compose(words).eval
    assert (len(found.prompts), found.max_new_tokens) == (prompts, longest)
    assert found.held_out_rows == (0 if "eval=none" in words else 8)
