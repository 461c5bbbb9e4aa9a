"""What a model is asked before and after training: questions of the config, or the first turns of rows that
were kept out of training, with the answers that stand there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tuner.data.chat.template import Template
from tuner.data.conversation import Conversation, Message
from tuner.data.packs import Packs

PLACE = "\ue000"
"""stands in a prompt for what a user says"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A prompt, up to where the assistant begins to write."""

    ids: Sequence[int]
    text: str
    """what the user said, as people read it"""
    expected: str | None = None
    """what the row answers; None where nobody knows"""


def asked(template: Template, prompts: Sequence[str]) -> list[Question]:
    """Each prompt as the first turn of a conversation."""
    return [
        Question(ids=template.prompt([Message(role="user", content=prompt)]), text=prompt)
        for prompt in prompts
    ]


def held_out_questions(template: Template, packs: Packs, count: int) -> list[Question]:
    """The first turns of up to `count` held-out conversations, spread over all of them in the order of their
    files; none of plain texts, and of rows that compare answers.
    """
    places = sorted(_conversations(packs))
    chosen = {places[at * len(places) // count] for at in range(count)} if places else set()
    return [_question(template, packs, pack, begin, end) for *_, pack, begin, end in sorted(chosen)]


def _conversations(packs: Packs) -> Iterator[tuple[int, int, int, int, int]]:
    """Where those lie that somebody else than the assistant begins: file, line, pack, first token, end."""
    for number, pack in enumerate(packs):
        ends = np.cumsum(pack.lengths).tolist()
        for file, line, length, end in zip(pack.files, pack.lines, pack.lengths, ends, strict=True):
            trained = pack.trained[end - length : end]
            if pack.roles is None and trained.any() and int(trained.argmax()) > 1:
                yield int(file), int(line), number, int(end - length), end


def _question(template: Template, packs: Packs, number: int, begin: int, end: int) -> Question:
    pack = packs[number]
    ids, trained = pack.ids[begin:end].tolist(), pack.trained[begin:end]
    first = int(trained.argmax())
    rest = np.flatnonzero(~trained[first:])
    answer = ids[first : first + int(rest[0])] if len(rest) else ids[first:]
    expected = template.tokenizer.decode(answer, skip_special_tokens=True).strip()
    whole = template.tokenizer.decode(ids[:first], skip_special_tokens=False)
    for head, tail in sorted(_frames(template), key=lambda frame: -len(frame[1])):
        if whole.startswith(head) and whole.endswith(tail) and len(whole) > len(head) + len(tail):
            said = whole[len(head) : len(whole) - len(tail)]
            return replace(asked(template, [said])[0], text=said.strip(), expected=expected)
    shown = template.tokenizer.decode(ids[:first], skip_special_tokens=True).strip()
    return Question(ids=ids[:first], text=shown, expected=expected)


def _frames(template: Template) -> Iterator[tuple[str, str]]:
    """What a template writes before and behind what a user says first: in a prompt, and in rows of one turn
    and of two up to what is trained, which may have an empty thought there, or none.
    """
    question, answer = Message(role="user", content=PLACE), Message(role="assistant", content="Yes.")
    turns = [replace(answer, trained=True), Message(role="user", content="And?"), answer]
    prompts = [template.prompt([question])]
    for row in ((question, turns[0]), (question, *turns)):
        encoded = template.encode([Conversation(messages=row)])
        if not encoded.problems and encoded.trained.any():
            prompts.append(encoded.ids[: int(encoded.trained.argmax())].tolist())
    for ids in prompts:
        head, place, tail = template.tokenizer.decode(ids, skip_special_tokens=False).partition(PLACE)
        if place:
            yield head, tail
