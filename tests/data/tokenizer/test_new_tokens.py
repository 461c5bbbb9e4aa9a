"""New tokens: what they were before, under which ids they are, and that text becomes them or not."""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from tests.data.tokenizer.test_convert import handmade, small_ranks, written
from tuner.data.tokenizer.load import load_vocabulary
from tuner.data.tokenizer.new_tokens import pieces_of, write_new_tokens
from tuner.errors import DataError


def directory_of(tmp_path: Path, kind: str) -> Path:
    """A model directory with a tokenizer of one kind or another; none has "word" in it."""
    source = tmp_path / "source"
    source.mkdir()
    if kind == "sentencepiece":
        return written(source, handmade(), tokenizer_class="LlamaTokenizer")
    if kind == "tiktoken":
        return written(source, small_ranks(), tokenizer_class="ChatGLM4Tokenizer")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    if kind == "unigram":
        tokenizer = Tokenizer(
            models.Unigram([("<unk>", 0.0), *((letter, -1.0) for letter in letters)], unk_id=0)
        )
    else:
        tokenizer = Tokenizer(models.BPE({letter: id_ for id_, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True, normalized=False)])
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}), encoding="utf-8"
    )
    return source


@pytest.mark.parametrize("kind", ["bpe", "unigram", "sentencepiece", "tiktoken"])
@pytest.mark.parametrize("gap", [0, 5])
def test_new_tokens_are_under_their_ids_and_nothing_else_changes(tmp_path: Path, kind: str, gap: int) -> None:
    source = directory_of(tmp_path, kind)
    before = load_vocabulary(source)
    first = max(before.tokenizer.get_vocab(with_added_tokens=True).values()) + 1 + gap
    names = ["<tool>", "wörd", "[END]", "客服"]
    ids = {token: first + i for i, token in enumerate(names)}
    pieces = pieces_of(source, names)
    assert pieces == {token: before.inner.encode(token, add_special_tokens=False).ids for token in names}
    out = tmp_path / "out"
    out.mkdir()
    if kind == "unigram" and gap:
        with pytest.raises(
            DataError, match=f"can't have <tool> as the id {first}. The next free id is {first - gap}"
        ):
            write_new_tokens(source, ids, out)
        return
    write_new_tokens(source, ids, out)
    after = load_vocabulary(out)
    assert {token: after.tokenizer.token_to_id(token) for token in names} == ids
    assert (after.bos, after.eos, after.begin) == (before.bos, before.eos, before.begin)
    text = "ab hello 123 \n"
    assert after.tokenizer.encode(text).ids == before.tokenizer.encode(text).ids
    assert [
        id_
        for id_ in after.later.encode("a<tool>[END]wördb客服", add_special_tokens=False).ids
        if id_ >= first
    ] == [first + 1, first + 3]
    assert after.inner.encode("<tool>", add_special_tokens=False).ids == pieces["<tool>"], (
        "no row can spell a special token"
    )
    saved = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    assert saved.convert_tokens_to_ids(names) == list(ids.values())
    assert [id_ for id_ in saved("a<tool>b wördb")["input_ids"] if id_ >= first] == [first, first + 1]
    assert max(saved.get_vocab().values()) == first + 3


def test_tokens_that_can_not_be_new_are_refused(tmp_path: Path) -> None:
    source = directory_of(tmp_path, "bpe")
    with pytest.raises(DataError, match=r"names '<\|end\|>', and the tokenizer in .* has that as the id 256"):
        pieces_of(source, ["<x>", "<|end|>"])
    with pytest.raises(DataError, match="names '<x>' twice"):
        pieces_of(source, ["<x>", "<x>"])
    with pytest.raises(DataError, match="names ' ': a new token is a visible text"):
        pieces_of(source, [" "])
    for ids, taken in (({"<x>": 5}, "that is &"), ({"<x>": 257, "<y>": 257}, "that is another new one")):
        with pytest.raises(DataError, match=taken):
            write_new_tokens(source, ids, tmp_path)
