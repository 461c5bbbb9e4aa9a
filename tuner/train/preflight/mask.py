"""Whether the loss mask that packs hold is the chat template's: trained is what the assistant says, up to the
token that ends its turn.

How a turn of the assistant begins and ends is learnt from the template itself, on a few conversations that
hold whatever it can write. Single spans may differ for good reasons (a document cut to length, a turn of a
kind that is rare), so it is counted how many do.

Not covered: which of the assistant's turns are trained, which rows and data.loss decide.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tuner.data.chat.template import Template
from tuner.data.conversation import Call, Conversation, Message
from tuner.data.packs import Pack
from tuner.train.distributed import World, raise_together

MARK = "QuillMark"
"""what users and tools say in those conversations: a word that no template has, of as many letters as
Mistral wants in the id of a call
"""
MASKED = 64
"""packs whose mask is looked at"""
BEFORE = 128
"""tokens before a span that are looked at"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnShape:
    """How a template writes the assistant's turns."""

    openings: frozenset[str]
    """what stands between the text that it answers and its own, or between two of its turns"""
    ends: frozenset[int]
    """the tokens that end its turns"""
    joins: bool
    """whether it may write two of its turns one after the other, with nothing between them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class OddSpan:
    """A span that is not as the template writes one."""

    pack: int
    document: int
    why: str


def turn_shape(template: Template) -> TurnShape:
    """What `template` writes around what the assistant says."""
    batch = template.encode(_conversations(template))
    openings, ends, written = set[str](), {template.end_id, *template.stops}, list[NDArray[np.int32]]()
    for begin, end in pairwise(batch.offsets.tolist()):
        ids, at = batch.ids[begin:end], 0
        for start, stop in spans(batch.trained[begin:end]):
            before = _text(template, ids[at:start])
            openings.add(before.rpartition(MARK)[2])
            ends.add(int(ids[stop - 1]))
            written.append(ids[start : stop - 1])
            at = stop
    joins = any(np.isin(ids, list(ends)).any() for ids in written)
    return TurnShape(openings=frozenset(openings), ends=frozenset(ends), joins=joins)


def _conversations(template: Template) -> list[Conversation]:
    """One of each kind; what the template can't write is left out by it."""
    asks, says = (
        Message(role="user", content=MARK),
        Message(role="assistant", content="It is so.", trained=True),
    )
    thinks = Message(role="assistant", content="It is so.", reasoning="Is it?", trained=True)
    call = Call(name="look", arguments={}, id=MARK)
    calls = Message(role="assistant", calls=(call,), trained=True)
    both = Message(role="assistant", content="It is so.", calls=(call,), trained=True)
    answers = Message(role="tool", content=MARK, call_id=MARK, name="look")
    tools = (
        {
            "type": "function",
            "function": {
                "name": "look",
                "description": "",
                "parameters": {"type": "object", "properties": {}},
            },
        },
    )
    plain = [Conversation(messages=(asks, says)), Conversation(messages=(asks, says, asks, says))]
    plain += (
        [Conversation(messages=(asks, thinks)), Conversation(messages=(asks, thinks, asks, thinks))]
        if template.reasons
        else []
    )
    return plain + [
        Conversation(messages=(asks, turn, answers, says, asks, says), tools=tools) for turn in (calls, both)
    ]


def spans(trained_T: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where each stretch of trained tokens begins and ends.

    >>> list(spans(np.array([False, True, True, False, True])))
    [(1, 3), (4, 5)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], trained_T, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def find_odd_spans(packs: Sequence[Pack], template: Template) -> tuple[int, list[OddSpan]]:
    """How many spans there are in `packs`, and those that are odd."""
    known, count, odd = turn_shape(template), 0, list[OddSpan]()
    for number, pack in enumerate(packs):
        bounds = np.concatenate([[0], np.cumsum(pack.lengths)]).tolist()
        for document, (begin, end) in enumerate(pairwise(bounds)):
            ids, at = pack.ids[begin:end], 0
            for start, stop in spans(pack.trained[begin:end]):
                count += 1
                if why := _oddity(template, known, ids, at, start, stop):
                    odd.append(OddSpan(pack=number, document=document, why=why))
                at = stop
    return count, odd


def check_mask(
    packs: Sequence[Pack], template: Template, where: Callable[[Pack], list[str]], world: World
) -> int:
    """How many trained texts `packs` have. Raises StageError where most of them are not as the template
    writes what the assistant says.
    """
    count, odd = find_odd_spans(packs, template)
    complaint = ""
    if 2 * len(odd) > count:
        first = odd[0]
        complaint = (
            f"The loss mask is not what the chat template says: of {count} trained texts in the first "
            f"{len(packs)} packs {len(odd)} are others; in {where(packs[first.pack])[first.document]} "
            f"{first.why}. Tokenize again with redo=tokenize; `preview` shows the mask in colours. If it is "
            "meant so, set machine.preflight=false."
        )
    raise_together(world, complaint)
    return count


def _oddity(
    template: Template, known: TurnShape, ids: NDArray[np.int32], at: int, start: int, stop: int
) -> str:
    """What is odd about the span from `start` to `stop` of a document, the first one behind `at`; nothing
    where all is well.
    """
    # a plain text, or one that was split, is trained from its beginning on
    if start > max(1, len(template.vocabulary.begin)):
        before = _text(template, ids[max(at, start - BEFORE) : start])
        if not before.endswith(tuple(known.openings)):
            return (
                f"a trained text begins where the assistant does not begin to speak, behind {before[-40:]!r}"
            )
    inside = np.flatnonzero(np.isin(ids[start : stop - 1], list(known.ends)) & (not known.joins))
    if len(inside):
        rest = _text(template, ids[start + int(inside[0]) + 1 : stop])
        return f"a trained text goes on behind the end of the assistant's turn, with {rest[:40]!r}"
    if stop < len(ids) and int(ids[stop - 1]) not in known.ends:
        return (
            "a trained text ends before the assistant's turn does, with "
            f"{_text(template, ids[start:stop])[-40:]!r}"
        )
    return ""


def _text(template: Template, ids: NDArray[np.int32]) -> str:
    text: str = template.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
    return text
