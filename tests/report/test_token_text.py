"""Tokens as a person sees them: whole characters, special tokens by name, nothing that a terminal obeys."""

import re
import unicodedata
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from tuner.report.token_text import (
    Decoder,
    escape_hidden,
    is_hidden,
    next_boundary,
    painter,
    render_spans,
    split_spans,
)

SPECIAL = "<|im_end|>"


def byte_level() -> Tokenizer:
    """A token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def with_fallback() -> Tokenizer:
    """As SentencePiece does it: pieces with ▁ for a space, bytes for what has no piece, and no space
    before the first word.
    """
    vocab = {
        "<unk>": 0,
        **{f"<0x{i:02X}>": i + 1 for i in range(256)},
        **{sign: 257 + i for i, sign in enumerate("▁abcdehlorw你好\n<|_>imn")},
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return tokenizer


@pytest.fixture(params=[byte_level, with_fallback], ids=["bytes", "fallback"], scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = request.param()
    made.add_special_tokens([AddedToken(SPECIAL, special=True)])
    made.encode_special_tokens = True
    return made


@pytest.fixture(scope="module")
def words(tokenizer: Tokenizer) -> Decoder:
    return words_of(tokenizer)


def words_of(tokenizer: Tokenizer) -> Decoder:
    return Decoder(
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
        special={tokenizer.token_to_id(SPECIAL): SPECIAL},
    )


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("text", ["你好 😀😀 é", "a\ufffdb \ufffd", "\ufffd\ufffd", "龘𠮷e\u0301"])
def test_a_character_of_several_tokens_is_one_piece(tokenizer: Tokenizer, words: Decoder, text: str) -> None:
    ids = ids_of(tokenizer, text)
    assert len(ids) > len(text)
    found = split_spans(ids, [False] * len(ids), words)
    assert [piece.text for piece in found] == list(text)
    assert [i for piece in found for i in piece.ids] == ids


@settings(derandomize=True, max_examples=80, deadline=None)
@given(text=st.text(alphabet=st.sampled_from("a 你😀é\ufffd\n\x1b好\u202eb"), max_size=30))
@pytest.mark.parametrize("make", [byte_level, with_fallback])
def test_the_pieces_together_are_the_text(make: Callable[[], Tokenizer], text: str) -> None:
    tokenizer = make()
    tokenizer.add_special_tokens([AddedToken(SPECIAL, special=True)])
    ids = ids_of(tokenizer, "a" + text)
    assert (
        "".join(piece.text for piece in split_spans(ids, [True] * len(ids), words_of(tokenizer)))
        == "a" + text
    )


def test_broken_characters_and_borders_hold_nobody_up(words: Decoder, tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "😀a😀")
    found = split_spans(ids[1:-1], [i > 5 for i in range(len(ids) - 2)], words)
    assert [i for piece in found for i in piece.ids] == ids[1:-1]
    assert "a" in "".join(piece.text for piece in found)
    assert "\ufffd" in found[0].text
    assert "\ufffd" in found[-1].text


def test_a_part_begins_where_a_character_does(words: Decoder, tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "a😀b")
    assert [next_boundary(ids, at, words.decode) for at in range(7)] == [0, 1, 5, 5, 5, 5, 6]


def test_a_special_token_and_the_text_that_spells_it_differ(words: Decoder, tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id(SPECIAL)
    ids = [end, *ids_of(tokenizer, f"ab{SPECIAL}"), end]
    found = split_spans(ids, [False] * len(ids), words)
    assert render_spans(found, painter(False), marks=True, ids=False) == f"{SPECIAL}ab<\\|im_end|>{SPECIAL}"
    assert [piece.special for piece in found].count(True) == 2


def test_what_is_trained_stands_between_marks_or_in_colour(words: Decoder, tokenizer: Tokenizer) -> None:
    end = tokenizer.token_to_id(SPECIAL)
    ids = [*ids_of(tokenizer, "ab"), end]
    found = split_spans(ids, [False, True, True], words)
    assert render_spans(found, painter(False), marks=True, ids=False) == f"a⟦b{SPECIAL}⟧"
    assert (
        render_spans(found, painter(True), marks=False, ids=False)
        == f"a\x1b[32mb\x1b[0m\x1b[1;32m{SPECIAL}\x1b[0m"
    )
    broken = split_spans(ids_of(tokenizer, "a\n"), [True, True], words)
    (first, second) = ids_of(tokenizer, "a\n")
    assert render_spans(broken, painter(False), marks=True, ids=True) == f"⟦a‹{first}›↵‹{second}›\n⟧"


def test_the_marks_in_a_text_are_no_marks(words: Decoder, tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "⟦a⟧")
    assert (
        render_spans(split_spans(ids, [False] * len(ids), words), painter(False), marks=True, ids=False)
        == "\\u27e6a\\u27e7"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x9b31m\x7f\x00\x08", "\\x9b31m\\x7f\\x00\\x08"),
        ("a\rb\x0b\x0c\x85", "a\\rb\\x0b\\x0c\\x85"),
        (
            "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
            "\\u202a\\u202b\\u202c\\u202d\\u202e\\u2066\\u2067\\u2068\\u2069",
        ),
        (
            "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\xad\u061c",
            "\\u200b\\u200c\\u200d\\u200e\\u200f\\u2060\\ufeff\\xad\\u061c",
        ),
        ("\u2028\u2029\u3164\u115f\u034f\u2800", "\\u2028\\u2029\\u3164\\u115f\\u034f\\u2800"),
        ("\U000e0041\U000e0100\ufe00", "\\U000e0041\\U000e0100\\ufe00"),
        ("\ud800\ue000\uffff", "\\ud800\\ue000\\uffff"),
        ("a\tb\n你好 ❤️ 🙂 é \u3000", "a\tb\n你好 ❤️ 🙂 é \u3000"),
    ],
)
def test_signs_that_move_hide_or_deceive_are_written_out(text: str, shown: str) -> None:
    assert escape_hidden(text) == shown


def test_no_sign_at_all_gets_through_that_a_terminal_obeys() -> None:
    for code in range(0x110000):
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and chr(code) not in "\n\t":
            assert is_hidden(chr(code)), hex(code)
    assert re.fullmatch(
        r"[\x20-\x7e]+", escape_hidden("".join(map(chr, [*range(9), *range(11, 32), 127, *range(128, 160)])))
    )
