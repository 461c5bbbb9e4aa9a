"""The special tokens that a template makes use of: that the model has a row for each, and which other one can
pad.

Training here never pads. A pad token is named for whoever goes on with another trainer: most leave out of the
loss whatever equals it, so it must not be a token that was trained, or the model forgets how to end an
answer.
"""

import re
from typing import Any

from tuner.data.chat.template import Template
from tuner.data.chat.template_texts import special_tokens_of
from tuner.data.tokenizer.families import RESERVE
from tuner.errors import DataError

PAD = re.compile(r"(?<![a-z])pad", re.IGNORECASE)
MEDIA = re.compile(r"image|video|audio|vision", re.IGNORECASE)
"""tokens that something is put in place of"""

RARE = "\U0010fffd\ue0f5"
"""characters that no vocabulary has"""


def ids_in_use(template: Template, chat: Any) -> frozenset[int]:
    """The ids of all special tokens that documents of this template can hold, ends of plain texts among them.

    `chat` is what the template was compiled from: a tuner.config.schema.Chat, or a stage's view of one.
    """
    vocabulary, tokenizer = template.vocabulary, template.tokenizer
    if chat.jinja:
        text = vocabulary.template or ""
        tokens = {
            token.content
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.special and token.content in text
        }
        tokens |= {token for name, token in vocabulary.names.items() if name in text}
    else:
        tokens = {*special_tokens_of(chat, vocabulary)}
    ids = {tokenizer.token_to_id(token) for token in (*tokens, vocabulary.eos) if token}
    return frozenset(
        [id_ for id_ in ids if id_ is not None] + [*vocabulary.begin, *template.stops, template.end_id]
    )


def check_embedding_rows(template: Template, chat: Any, rows: int) -> None:
    """Raises DataError for an id that documents can hold and that is none of the `rows` of the model's
    embedding.

    A special token beyond them that the template leaves alone does no harm, since no text becomes one.
    """
    tokenizer = template.tokenizer
    if beyond := sorted(id_ for id_ in ids_in_use(template, chat) if id_ >= rows):
        raise DataError(
            f"the chat template needs the special token {tokenizer.id_to_token(beyond[0])}, which is the id "
            f"{beyond[0]} of the tokenizer, and the model's embedding has {rows:,} rows, so the last id is "
            f"{rows - 1}. Choose the template the model was made for (model/chat=…), or the tokenizer that "
            "belongs to the weights."
        )
    added = tokenizer.get_added_tokens_decoder()
    plain = {
        id_: token
        for token, id_ in tokenizer.get_vocab(with_added_tokens=True).items()
        if id_ not in added or not added[id_].special
    }
    if (last := max(plain, default=0)) >= rows:
        raise DataError(
            f"the tokenizer makes of text the token {plain[last]!r}, which is its id {last}, and the model's "
            f"embedding has {rows:,} rows, so the last id is {rows - 1}. The tokenizer belongs to another "
            "model: put the one that belongs to the weights into the model's directory."
        )


def choose_pad(template: Template, chat: Any, rows: int | None) -> str | None:
    """A token to pad with, which this template never trains: the tokenizer's own; or the one for what is
    unknown, where no text becomes it; or a special token that is kept free; or any other. None where there is
    none. `rows` of the embedding are the limit, where they are known.
    """
    tokenizer, names = template.tokenizer, template.vocabulary.names
    used, from_text = ids_in_use(template, chat), {*tokenizer.encode(RARE, add_special_tokens=False).ids}
    added = {
        token.content: id_
        for id_, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token.special
    }

    def free(token: str | None) -> bool:
        id_ = None if token is None else tokenizer.token_to_id(token)
        return id_ is not None and id_ not in used and id_ not in from_text and (rows is None or id_ < rows)

    def rank(token: str) -> tuple[bool, bool]:
        return not (PAD.search(token) or RESERVE.fullmatch(token)), bool(MEDIA.search(token))

    own = [token for token in (names.get("pad_token"), names.get("unk_token")) if token in added]
    return next((token for token in (*own, *sorted(added, key=rank)) if free(token)), None)
