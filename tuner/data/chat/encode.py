"""Documents made of special tokens and texts → ids and the mask. Which text is trained is decided by who
writes the draft (tuner.data.chat.draft); how it is tokenised, here.

Text between two special tokens is one piece for the tokenizer, as a serving engine sees it. A border in it is
a token border all the same: up to there a prompt was tokenised before the rest existed. Most texts have a
token border there by themselves; where a token would straddle it, the two sides are tokenised apart.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tuner.data.chat.draft import Draft, TextRun
from tuner.data.conversation import Conversation, RowError
from tuner.data.tokenizer.load import Vocabulary
from tuner.hardware.limits import next_record, reading


@dataclass(kw_only=True, slots=True)
class Encoded:
    """Documents as the model sees them, one after the other."""

    ids: NDArray[np.int32]
    """[sum T] token ids"""
    trained: NDArray[np.bool_]
    """[sum T] whether the token is a target, predicted from the one before it; never the first of a
    document
    """
    offsets: NDArray[np.int64]
    """[N+1] where each document begins"""
    ends: list[tuple[int, ...]]
    """for each document, how many of its tokens there are up to the end of each assistant turn: where it
    can be cut
    """
    problems: dict[int, str]
    """why a conversation can't be written; its document is empty"""


def encode_conversations(
    vocabulary: Vocabulary,
    conversations: Sequence[Conversation],
    write: Callable[[Draft, Conversation], None],
) -> Encoded:
    """All conversations, each written into a draft by `write`; one for which it raises RowError is a
    problem, and its document empty.
    """
    draft, problems = Draft(vocabulary), {}
    for i, conversation in enumerate(conversations):
        next_record()
        try:
            write(draft, conversation)
            draft.close()
        except RowError as error:
            problems[i] = str(error)
            draft.drop()
    return encode_draft(draft, vocabulary, problems)


def encode_draft(draft: Draft, vocabulary: Vocabulary, problems: dict[int, str]) -> Encoded:
    """All documents of a draft, tokenised in one go by the tokenizer's threads."""
    items = draft.items
    _tokenise([item for item in items if type(item) is TextRun], vocabulary)
    chunks = [item.ids for item in items]
    places = [0, *accumulate(map(len, chunks))]  # tokens before each item, and in all
    trained = np.zeros(places[-1], dtype=np.bool_)
    for i, item in enumerate(items):
        if item.trained:
            trained[places[i] + item.border : places[i + 1]] = True
    offsets = np.array([places[bound] for bound in draft.bounds], dtype=np.int64)
    trained[offsets[:-1][np.diff(offsets) > 0]] = False
    return Encoded(
        ids=np.fromiter(chain.from_iterable(chunks), np.int32, places[-1]),
        trained=trained,
        offsets=offsets,
        ends=[
            tuple([places[end] - places[begin] for end in turns])
            for begin, turns in zip(draft.bounds[:-1], draft.turn_ends, strict=True)
        ],
        problems=problems,
    )


def _tokenise(runs: Sequence[TextRun], vocabulary: Vocabulary) -> None:
    """Give each text its ids, and the number of those before its last border."""
    firsts: list[str] = []
    texts: list[str] = []
    for run in runs:
        into = firsts if run.first else texts
        into.append(run.text)
        into += run.heads
    later, first = _tokens(vocabulary.later, texts), _tokens(vocabulary.tokenizer, firsts)
    straddled: list[TextRun] = []
    for run in runs:
        known = first if run.first else later
        longer = run.ids = known[run.text]
        for head in reversed(run.heads):
            ids = known[head]
            if longer[: len(ids)] != ids:
                straddled.append(run)
                break
            longer = ids
        if run.heads:
            run.border = len(known[run.heads[-1]])
    if not straddled:
        return
    inner = _tokens(vocabulary.inner, [side for run in straddled for side in run.sides()[1:]])
    for run in straddled:
        parts = [
            (first if run.first else later)[run.heads[0]],
            *(inner[side] for side in run.sides()[1:]),
        ]
        run.ids, run.border = [id_ for part in parts for id_ in part], sum(map(len, parts[:-1]))


def encode_texts(texts: Sequence[str], vocabulary: Vocabulary, end_id: int) -> Encoded:
    """Documents of plain text: the tokens that begin a text, where the tokenizer has such, the text, and
    the token that ends it.
    """
    tokenizer = vocabulary.tokenizer
    eos = None if vocabulary.eos is None else tokenizer.token_to_id(vocabulary.eos)
    begin = list(vocabulary.begin)
    end = end_id if eos is None else eos
    known = _tokens(vocabulary.later if begin else tokenizer, texts)
    flat: list[int] = []
    offsets = [0]
    for text in texts:
        flat += begin
        flat += known[text]
        flat.append(end)
        offsets.append(len(flat))
    trained = np.ones(len(flat), dtype=np.bool_)
    for start in offsets[:-1]:
        trained[start : start + max(1, len(begin))] = False
    return Encoded(
        ids=np.array(flat, dtype=np.int32),
        trained=trained,
        offsets=np.array(offsets, dtype=np.int64),
        ends=[() for _ in texts],
        problems={},
    )


def _tokens(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, list[int]]:
    if not (unique := list(dict.fromkeys(texts))):
        return {}
    with reading("the tokenizer"):
        rows = tokenizer.encode_batch_fast(unique, add_special_tokens=False)
    return {text: row.ids for text, row in zip(unique, rows, strict=True)}
