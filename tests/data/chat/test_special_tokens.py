"""Special tokens in use: each has a row of the embedding, and none of them pads."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import AddedToken

from tests.data.conftest import ROOT, read_chat
from tests.data.tokenizer.test_load import load, tiny
from tuner.config.schema import Chat
from tuner.data.chat.special_tokens import check_embedding_rows, choose_pad, ids_in_use
from tuner.data.chat.template import Template, compile_template
from tuner.data.tokenizer.load import Vocabulary
from tuner.errors import DataError

CHAT = Chat(special=("<|end|>",), user="a{text}", assistant="b{text}<|end|>", end="<|end|>")


def made(tmp_path: Path, *special: str, chat: Chat = CHAT, **settings: object) -> Template:
    """A tokenizer with the tokens of `tiny`, ids 0 to 6, and special ones from 7 on."""
    tokenizer = tiny()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return compile_template(chat, load(tokenizer, tmp_path, **settings))


def test_a_special_token_of_the_template_has_a_row(tmp_path: Path) -> None:
    template = made(tmp_path, "<|x|>", "<|end|>")
    assert ids_in_use(template, CHAT) == {8}
    check_embedding_rows(template, CHAT, 9)
    with pytest.raises(
        DataError,
        match=(
            r"special token <\|end\|>, which is the id 8 of the tokenizer, and the model's embedding has 8"
            r" rows"
        ),
    ):
        check_embedding_rows(template, CHAT, 8)


def test_a_special_token_that_nothing_uses_needs_none(tmp_path: Path) -> None:
    check_embedding_rows(made(tmp_path, "<|end|>", "<pad>", pad_token="<pad>"), CHAT, 8)


def test_the_end_of_plain_texts_and_what_begins_them_have_a_row(tmp_path: Path) -> None:
    for settings in ({"eos_token": "<|e|>"}, {"bos_token": "<|e|>", "add_bos_token": True}):
        template = made(tmp_path, "<|end|>", "<|e|>", **settings)
        with pytest.raises(DataError, match=r"special token <\|e\|>, which is the id 8"):
            check_embedding_rows(template, CHAT, 8)


def test_all_that_text_can_become_has_a_row(tmp_path: Path) -> None:
    tokenizer = tiny()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("word", normalized=False)])
    template = compile_template(CHAT, load(tokenizer, tmp_path))
    with pytest.raises(
        DataError,
        match="makes of text the token 'word', which is its id 8, and the model's embedding has 8 rows",
    ):
        check_embedding_rows(template, CHAT, 8)
    with pytest.raises(DataError, match=r"makes of text the token '<s>', which is its id 6"):
        check_embedding_rows(
            made(
                tmp_path,
                chat=replace(CHAT, special=("[UNUSED_TOKEN_1]",), assistant="{text}{eos}", end="{eos}"),
                eos_token="[UNUSED_TOKEN_1]",
            ),
            CHAT,
            6,
        )


def test_a_borrowed_template_uses_what_it_spells(vocabulary: Callable[[str], Vocabulary]) -> None:
    chat = read_chat(ROOT / "conf" / "model" / "chat" / "tokenizer.yaml")
    template = compile_template(chat, vocabulary("minimind"))
    used = {template.tokenizer.id_to_token(id_) for id_ in ids_in_use(template, chat)}
    assert {"<|im_start|>", "<|im_end|>"} <= used
    check_embedding_rows(template, chat, 6400)


@pytest.mark.parametrize(
    ("special", "settings", "pad"),
    [
        (("<|end|>", "<pad>"), {"pad_token": "<pad>"}, "<pad>"),
        (("<|end|>", "<unk>", "<pad>"), {"pad_token": "<|end|>"}, "<pad>"),
        (("<|end|>", "<|other|>", "<|image_pad|>", "<|fim_pad|>"), {}, "<|fim_pad|>"),
        (
            ("<|end|>", "<|other|>", "<|reserved_special_token_0|>"),
            {"pad_token": "<|end|>"},
            "<|reserved_special_token_0|>",
        ),
        (("<|end|>", "<|other|>"), {"eos_token": "<|other|>", "pad_token": "<|other|>"}, None),
        (("<|end|>", "<|other|>"), {"pad_token": "<|end|>"}, "<|other|>"),
        (("<|end|>",), {"pad_token": "<|end|>"}, None),
        (("<|end|>",), {"pad_token": "ab"}, None),
        (("<|end|>", "<|other|>"), {"pad_token": "<absent>"}, "<|other|>"),
    ],
)
def test_what_pads_is_never_trained(
    tmp_path: Path, special: tuple[str, ...], settings: dict[str, str], pad: str | None
) -> None:
    template = made(tmp_path, *special, **settings)
    assert choose_pad(template, CHAT, None) == pad
    chosen = choose_pad(template, CHAT, 8)
    assert chosen is None or template.tokenizer.token_to_id(chosen) < 8


@pytest.mark.parametrize(
    ("name", "chat", "pad"),
    [
        ("smollm2", "smollm2", "<|endoftext|>"),
        ("qwen2_5", "qwen2_5", "<|endoftext|>"),
        ("minimind", "minimind", "<|endoftext|>"),
    ],
)
def test_what_pads_for_real_tokenizers(
    vocabulary: Callable[[str], Vocabulary], name: str, chat: str, pad: str
) -> None:
    shipped = read_chat(ROOT / "conf" / "model" / "chat" / f"{chat}.yaml")
    assert choose_pad(compile_template(shipped, vocabulary(name)), shipped, None) == pad


def test_an_unknown_token_that_text_becomes_does_not_pad(tmp_path: Path) -> None:
    tokenizer = tiny()
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<|end|>")]
    )
    assert (
        choose_pad(compile_template(CHAT, load(tokenizer, tmp_path, unk_token="<unk>")), CHAT, None) is None
    )
