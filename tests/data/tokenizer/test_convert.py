"""Files of SentencePiece and tiktoken: the ids are those of the libraries themselves, and what a family
knows besides is there.
"""

import base64
import contextlib
import io
import json
import random
import struct
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.data.conftest import ROOT, read_chat
from tuner.data.chat.template import compile_template
from tuner.data.conversation import Message
from tuner.data.tokenizer.families import GLM4, QWEN
from tuner.data.tokenizer.load import Vocabulary, load_vocabulary
from tuner.data.tokenizer.save import save_vocabulary
from tuner.data.tokenizer.sentencepiece import PieceKind, read_model
from tuner.data.tokenizer.tiktoken import read_ranks, spell
from tuner.errors import DataError

ALPHABET = [
    "a",
    "ab",
    " ",
    "  ",
    "    ",
    "\n",
    "\r\n",
    "\t",
    "▁",
    "——",
    "……",
    "é",
    "e\u0301",
    "🙂",
    "👩‍👩‍👧",
    "中文",
    "\u3000",
    "\xa0",
    "\u200b",
    "Ａ",
    "ﬁ",
    "[UNUSED_TOKEN_3]",
    "[REFERENCE_DOC_1]",
    "<0x0A>",
    "<s>",
    "</s>",
    "<unk>",
    "def f():",
    "1234",
    "—",
    "don't",
]
"""what tokenizers stumble over"""
SYMBOLS = ("[UNUSED_TOKEN_3]", "[REFERENCE_DOC_1]", "——", "……")


@pytest.fixture(scope="session")
def texts(shared: Path) -> list[str]:
    """Real texts in English and Chinese, code and calls of tools among them, and odd ones."""
    data = shared / "data"
    rows: list[Any] = []
    for name in ("alpaca/alpaca_en.json", "alpaca/alpaca_zh.json", "sharegpt/glaive_toolcall_zh.json"):
        rows += json.loads((data / name).read_text(encoding="utf-8"))[:120]
    for name in ("pretrain/c4_demo.jsonl", "oasst/oasst1_guanaco.jsonl"):
        rows += map(json.loads, (data / name).read_text(encoding="utf-8").splitlines()[:100])
    found = [value for row in rows for value in row.values() if isinstance(value, str)]
    found += [turn["value"] for row in rows for turn in row.get("conversations", ())]
    draw = random.Random(0)
    found += ["".join(draw.choice(ALPHABET) for _ in range(draw.randint(0, 16))) for _ in range(1000)]
    # A text that is nothing but a user-defined symbol is the one that is known to differ, and one that begins
    # with what a space before it would be.
    return sorted(
        {
            text
            for text in found
            if text not in SYMBOLS and not text.startswith((" ", "▁", "\u3000", "\xa0", *SYMBOLS))
        }
    )


def written(tmp_path: Path, model: bytes, **settings: object) -> Path:
    (tmp_path / "tokenizer.model").write_bytes(model)
    if settings:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return tmp_path


def ids(vocabulary: Vocabulary, texts: Iterable[str]) -> list[list[int]]:
    """Of texts by themselves."""
    return [row.ids for row in vocabulary.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def differing(texts: list[str], ours: list[list[int]], theirs: list[list[int]]) -> list[str]:
    return [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b]


@pytest.mark.parametrize("name", ["internlm2", "mistral_v3", "tinystories_tok512"])
def test_a_published_sentencepiece_model_gives_the_ids_of_sentencepiece(
    shared: Path, tmp_path: Path, texts: list[str], name: str
) -> None:
    library = pytest.importorskip("sentencepiece")
    model = (shared / "tokenizers" / name / "tokenizer.model").read_bytes()
    found = load_vocabulary(written(tmp_path, model))
    theirs = library.SentencePieceProcessor(model_proto=model)
    assert differing(texts, ids(found, texts), theirs.encode(texts)) == []
    piecewise = load_vocabulary(written(tmp_path, model, legacy=True))
    assert (
        differing(
            texts,
            [row.ids for row in piecewise.later.encode_batch_fast(texts, add_special_tokens=False)],
            theirs.encode(texts),
        )
        == []
    )
    assert [found.tokenizer.id_to_token(id_) for id_ in range(len(theirs))] == [
        theirs.id_to_piece(id_) for id_ in range(len(theirs))
    ]
    assert (found.bos, found.eos, found.begin, found.names["unk_token"]) == ("<s>", "</s>", (1,), "<unk>")
    for text in ("Hello  world", "你好，世界\n x", "🙂 é"):
        assert found.tokenizer.decode(found.tokenizer.encode(text, add_special_tokens=False).ids) == (
            text if name != "tinystories_tok512" else text.replace("  ", " ")
        )


def trained(texts: list[str], **options: Any) -> bytes:
    library = pytest.importorskip("sentencepiece")
    out = io.BytesIO()
    lines = [text for text in texts if 40 < len(text) < 400][:300]
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=out,
        vocab_size=1500,
        character_coverage=0.995,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "unigram"},
        {
            "model_type": "unigram",
            "normalization_rule_name": "identity",
            "byte_fallback": True,
            "user_defined_symbols": ["——", "<tool>"],
        },
        {"model_type": "bpe"},
        {
            "model_type": "bpe",
            "normalization_rule_name": "nfkc",
            "byte_fallback": True,
            "remove_extra_whitespaces": False,
        },
        {
            "model_type": "bpe",
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "user_defined_symbols": ["a▁b", "——"],
        },
    ],
    ids=["unigram", "unigram, symbols", "bpe", "bpe, nfkc", "bpe, symbols"],
)
def test_a_model_of_any_settings_gives_the_ids_of_sentencepiece(
    tmp_path: Path, texts: list[str], options: dict[str, Any]
) -> None:
    library = pytest.importorskip("sentencepiece")
    model = trained(texts, **options)
    found, theirs = (
        load_vocabulary(written(tmp_path, model)),
        library.SentencePieceProcessor(model_proto=model),
    )
    ours, expected = ids(found, texts), theirs.encode(texts)
    if options["model_type"] == "unigram":  # ### is # and ## in either order, with the same score
        assert len(differing(texts, ours, expected)) < len(texts) / 50
        ours, expected = [sorted(row) for row in ours], [sorted(row) for row in expected]
    assert differing(texts, ours, expected) == []

    @settings(max_examples=60, derandomize=True, deadline=None)
    @given(
        st.lists(st.sampled_from(ALPHABET), max_size=12)
        .map("".join)
        .filter(lambda text: not text.startswith((" ", "▁", "\u3000", "\xa0", "——")))
    )
    def holds(text: str) -> None:
        assert sorted(*ids(found, [text])) == sorted(theirs.encode(text))

    holds()


def parts(*between: str) -> st.SearchStrategy[str]:
    """Texts with special tokens in the middle, at the ends and beside each other."""
    words = ["Hello", " Hello", "a", " b", "世界", "é", "\n", "1234", "don't", ".", " the quick", "🙂", "x"]
    return st.lists(st.sampled_from([*words, *between, *between]), min_size=1, max_size=10).map("".join)


@pytest.mark.parametrize(
    "settings_",
    [{}, {"legacy": False}, {"legacy": True}, {"legacy": None}, {"add_prefix_space": False}],
    ids=str,
)
@pytest.mark.parametrize("name", ["mistral_v3", "tinystories_tok512"])
def test_between_special_tokens_the_ids_are_those_of_transformers(
    shared: Path, tmp_path: Path, name: str, settings_: dict[str, Any]
) -> None:
    model = (shared / "tokenizers" / name / "tokenizer.model").read_bytes()
    directory = written(tmp_path, model, tokenizer_class="LlamaTokenizer", **settings_)
    (directory / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    ours = Tokenizer.from_str(load_vocabulary(directory).tokenizer.to_str())
    # In the first the old Llama wrote two spaces before a text that has one, as SentencePiece does.
    # SentencePiece leaves out those at the ends in the second.
    spaces = (
        " "
        if (settings_.get("legacy") and name == "mistral_v3")
        or (name != "mistral_v3" and "add_prefix_space" in settings_)
        else "\0"
    )

    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(parts("<s>", "</s>", "<unk>").map(lambda text: text.replace(spaces, "")))
    def holds(text: str) -> None:
        assert (
            ours.encode(text, add_special_tokens=False).ids
            == theirs(text, add_special_tokens=False)["input_ids"]
        )

    holds()


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_behind_a_symbol_of_the_users_the_ids_are_those_of_sentencepiece(
    tmp_path: Path, texts: list[str], kind: str
) -> None:
    library = pytest.importorskip("sentencepiece")
    more = {"normalization_rule_name": "identity", "byte_fallback": True, "remove_extra_whitespaces": False}
    model = trained(texts, model_type=kind, user_defined_symbols=["<tool>", "<|end|>"], **more)
    found, theirs = (
        load_vocabulary(written(tmp_path, model)),
        library.SentencePieceProcessor(model_proto=model),
    )

    @settings(max_examples=150, derandomize=True, deadline=None)
    @given(parts("<tool>", "<|end|>").filter(lambda text: not text.startswith((" ", "<"))))
    def holds(text: str) -> None:
        assert ids(found, [text])[0] == theirs.encode(text)

    holds()
    # and as a conversation is put together: the first text, the symbol by its id, the text behind it
    for first, second in (("Hello", "world"), ("Hello.", " world"), ("世界", "é x")):
        put = [
            *ids(found, [first])[0],
            theirs.piece_to_id("<tool>"),
            *found.later.encode(second, add_special_tokens=False).ids,
        ]
        assert put == theirs.encode(f"{first}<tool>{second}")


def rank_file(shared: Path) -> tuple[bytes, dict[bytes, int]]:
    """The vocabulary of Qwen as tiktoken has it."""
    data = json.loads((shared / "tokenizers" / "qwen2_5" / "tokenizer.json").read_text(encoding="utf-8"))
    byte = {spell(bytes([value])): value for value in range(256)}
    ranks = {bytes(byte[letter] for letter in token): id_ for token, id_ in data["model"]["vocab"].items()}
    return b"".join(
        base64.b64encode(token) + b" %d\n" % rank
        for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    ), ranks


def test_the_vocabulary_of_qwen_gives_the_ids_of_tiktoken(
    shared: Path, tmp_path: Path, texts: list[str]
) -> None:
    library = pytest.importorskip("tiktoken")
    file, ranks = rank_file(shared)
    (tmp_path / "qwen.tiktoken").write_bytes(file)
    found = load_vocabulary(tmp_path)
    theirs = library.Encoding("qwen", pat_str=QWEN.cut, mergeable_ranks=ranks, special_tokens={})
    expected = [theirs.encode(unicodedata.normalize("NFC", text), disallowed_special=()) for text in texts]
    assert differing(texts, ids(found, texts), expected) == []
    known = {
        token: found.tokenizer.token_to_id(token)
        for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>", "<|extra_204|>")
    }
    assert known == {
        "<|endoftext|>": 151643,
        "<|im_start|>": 151644,
        "<|im_end|>": 151645,
        "<|extra_0|>": 151646,
        "<|extra_204|>": 151850,
    }
    assert (found.bos, found.eos) == (None, "<|endoftext|>")
    assert found.tokenizer.decode(expected[-1]) == unicodedata.normalize("NFC", texts[-1])


def test_what_is_saved_of_ranks_is_the_same_in_transformers(tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(small_ranks())
    settings = {"tokenizer_class": "QWenTokenizer", "auto_map": {"AutoTokenizer": ["a.B", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    found = load_vocabulary(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    save_vocabulary(found, tmp_path, out)
    saved = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    assert saved("<|im_start|>hello 1234<|im_end|>")["input_ids"] == [
        263,
        *found.later.encode("hello 1234").ids,
        264,
    ]
    assert (saved.eos_token_id, len(saved)) == (262, 262 + 208)


def test_saving_in_place_leaves_a_hard_linked_source_as_it_was(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    written(source, handmade(), tokenizer_class="ChatGLMTokenizer")
    before = (source / "tokenizer_config.json").read_text(encoding="utf-8")
    for file in source.iterdir():
        (out / file.name).hardlink_to(file)
    found = load_vocabulary(out)
    save_vocabulary(found, out, out)
    assert (source / "tokenizer_config.json").read_text(encoding="utf-8") == before
    again = load_vocabulary(out)
    assert (again.begin, again.eos, again.names) == (found.begin, found.eos, found.names)


def small_ranks() -> bytes:
    tokens = [*(bytes([value]) for value in range(256)), b"he", b"llo", b"hello", b" w", b"12", b"123"]
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


def test_a_tokenizer_model_of_glm_4_is_told_from_sentencepiece_by_its_content(tmp_path: Path) -> None:
    found = load_vocabulary(written(tmp_path, small_ranks(), tokenizer_class="ChatGLM4Tokenizer"))
    names = [found.tokenizer.id_to_token(id_) for id_ in range(262, 276)]
    assert names == list(GLM4.special)
    assert names[:7] == ["<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>"]
    assert (found.bos, found.begin, found.eos) == ("[gMASK]", (264, 266), "<|endoftext|>")
    assert found.tokenizer.encode("hello 1234", add_special_tokens=False).tokens == ["hello", "Ġ", "123", "4"]
    template = compile_template(read_chat(ROOT / "conf" / "model" / "chat" / "glm4.yaml"), found)
    assert [
        found.tokenizer.id_to_token(id_) for id_ in template.prompt([Message(role="user", content="hello")])
    ] == [
        "[gMASK]",
        "<sop>",
        "<|user|>",
        "Ċ",
        "hello",
        "<|assistant|>",
    ]


def test_ranks_of_a_family_that_nobody_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of OtherTokenizer that is not known here"):
        load_vocabulary(written(tmp_path, small_ranks(), tokenizer_class="OtherTokenizer"))


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"IQ== 0\nIg== 2\n", "ranks should be 0 to 1"),
        (b"IQ== 0\nIQ== 1\n", "each for another token"),
        (b"IQ== 0\n!!!! 1\n", "not a token in base64"),
        (b"IQ== 0\nIg== 1\n", "254 of the 256 single bytes have no token"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", "here are 0"),
        (b"\x0a\x7f<unk>", "ends inside a field"),
        (b"\x0b", "a field of the kind 3"),
        (b"\x0a" + b"\xff" * 11, "more than ten bytes"),
    ],
)
def test_a_broken_file_is_refused(tmp_path: Path, file: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load_vocabulary(written(tmp_path, file, tokenizer_class="ChatGLM4Tokenizer"))


def message(*fields: tuple[int, bytes | int | float]) -> bytes:
    """A message of Protocol Buffers with small numbers and short texts."""

    def one(number: int, value: bytes | int | float) -> bytes:
        def count(n: int) -> bytes:
            return bytes([n]) if n < 128 else bytes([n % 128 | 128]) + count(n // 128)

        if isinstance(value, bytes):
            return count(number << 3 | 2) + count(len(value)) + value
        return (
            count(number << 3) + count(value)
            if isinstance(value, int)
            else count(number << 3 | 5) + struct.pack("<f", value)
        )

    return b"".join(one(*field) for field in fields)


def handmade(
    *, trainer: Iterable[tuple[int, bytes | int | float]] = ((3, 2),), unused: bool = False, reserved: int = 0
) -> bytes:
    pieces = [
        ("<unk>", 0.0, PieceKind.UNKNOWN),
        ("<s>", 0.0, PieceKind.CONTROL),
        ("</s>", 0.0, PieceKind.CONTROL),
    ]
    pieces += [(f"<0x{value:02X}>", 0.0, PieceKind.BYTE) for value in range(256)]
    pieces += [
        (piece, -float(i), PieceKind.NORMAL) for i, piece in enumerate(["▁", "a", "b", "ab", "▁ab", "x"])
    ]
    pieces += [(f"<reserved_{i}>", 0.0, PieceKind.USER_DEFINED) for i in range(reserved)]
    pieces += [("xa", -9.0, PieceKind.UNUSED)] * unused
    listed = [(1, message((1, piece.encode()), (2, score), (3, int(kind)))) for piece, score, kind in pieces]
    return message(*listed, (2, message(*trainer, (35, 1))), (3, message((4, 0))))


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_a_damaged_model_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    model = bytearray(handmade())
    for _ in range(data.draw(st.integers(1, 4))):
        model[data.draw(st.integers(0, len(model) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        read_model(bytes(model[: data.draw(st.integers(0, len(model)))]))


@pytest.mark.parametrize("charsmap", [b"xx", b"\xff" * 40, b"\x04\0\0\0\xff\xff\xff\xffa\0"])
def test_damaged_rules_of_normalisation_are_refused(tmp_path: Path, charsmap: bytes) -> None:
    with pytest.raises(DataError, match=r"damaged|can't be read as a tokenizer"):
        load_vocabulary(written(tmp_path, handmade() + message((3, message((2, charsmap))))))


def test_models_that_a_tokenizer_json_cannot_say_are_refused(tmp_path: Path) -> None:
    for model, reason in (
        (handmade(trainer=((3, 3),)), "a method of number 3"),
        (handmade(trainer=((3, 2), (24, 1))), "puts spaces behind words"),
        (handmade(unused=True), "has unused pieces"),
    ):
        with pytest.raises(DataError, match=reason):
            load_vocabulary(written(tmp_path, model))


@pytest.mark.parametrize(
    ("origin", "roles"), [("THUDM/chatglm2-6b", False), ("THUDM/chatglm3-6b", True), (None, True)]
)
@pytest.mark.parametrize("rewritten", [False, True])
def test_chatglm_has_its_special_tokens_behind_the_pieces(
    tmp_path: Path, origin: str | None, roles: bool, rewritten: bool
) -> None:
    directory = written(tmp_path, handmade())
    config = {"model_type": "chatglm"} | ({"_name_or_path": origin} if origin else {})
    if rewritten:
        (directory / "config.json").write_text('{"model_type": "glm"}', encoding="utf-8")
        (directory / "original").mkdir()
        (directory / "original" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    else:
        (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = load_vocabulary(directory)
    names = ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"] + (
        ["<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"] if roles else []
    )
    assert found.tokenizer.get_vocab_size() == 265 + len(names)
    assert [found.tokenizer.id_to_token(265 + i) for i in range(len(names))] == names
    assert (found.bos, found.begin, found.eos, found.names["pad_token"]) == (
        "[gMASK]",
        (266, 268),
        "</s>",
        "<unk>",
    )
    assert found.tokenizer.encode("sop[gMASK]", add_special_tokens=False).tokens[:2] == ["▁", "<0x73>"], (
        "no text becomes a special token"
    )


def test_the_template_of_chatglm3_gives_the_ids_of_its_publisher(tmp_path: Path) -> None:
    """The role's token, then the line break and the text, each with SentencePiece's space before it."""
    library = pytest.importorskip("sentencepiece")
    theirs = library.SentencePieceProcessor(model_proto=handmade())
    found = load_vocabulary(written(tmp_path, handmade(), tokenizer_class="ChatGLMTokenizer"))
    template = compile_template(read_chat(ROOT / "conf" / "model" / "chat" / "chatglm3.yaml"), found)
    text = "ab xab"
    assert template.prompt([Message(role="user", content=text)]) == [
        266,
        268,
        271,
        *theirs.encode("\n"),
        *theirs.encode(text),
        272,
    ]


@pytest.mark.parametrize(
    ("settings", "texts"),
    [
        ({}, ["<s>", "▁ab", "</s>", "ab", "x"]),
        ({"add_bos_token": False}, ["▁ab", "</s>", "ab", "x"]),
        ({"add_eos_token": True}, ["<s>", "▁ab", "</s>", "ab", "x", "</s>"]),
        ({"tokenizer_class": "LlamaTokenizer"}, ["<s>", "▁ab", "</s>", "ab", "x"]),
        ({"tokenizer_class": "LlamaTokenizerFast", "legacy": None}, ["<s>", "▁ab", "</s>", "ab", "x"]),
        ({"legacy": True}, ["<s>", "▁ab", "</s>", "▁ab", "x"]),
        ({"tokenizer_class": "InternLMTokenizer"}, ["<s>", "▁ab", "</s>", "▁ab", "x"]),
        (
            {"tokenizer_class": "LlamaTokenizer", "auto_map": {"AutoTokenizer": ["a.B", None]}},
            ["<s>", "▁ab", "</s>", "▁ab", "x"],
        ),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": True}, ["<s>", "▁ab", "</s>", "▁ab", "x"]),
        ({"tokenizer_class": "LlamaTokenizer", "legacy": False}, ["<s>", "▁ab", "</s>", "ab", "x"]),
        ({"add_prefix_space": False}, ["<s>", "ab", "</s>", "ab", "x"]),
    ],
)
def test_the_settings_of_a_family_hold_and_what_is_saved_is_the_same(
    tmp_path: Path, settings: dict[str, Any], texts: list[str]
) -> None:
    directory = written(tmp_path, handmade(), **settings, eos_token="</s>")
    found = load_vocabulary(directory)
    assert (found.later.encode("ab", add_special_tokens=False).tokens == ["ab"]) == (
        texts[texts.index("</s>") + 1] == "ab"
    )
    assert found.inner.encode("ab", add_special_tokens=False).tokens == ["ab"]
    out = tmp_path / "out"
    out.mkdir()
    save_vocabulary(found, directory, out)
    saved = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    assert saved.convert_ids_to_tokens(saved("ab</s>abx")["input_ids"]) == texts
    assert (saved.bos_token, saved.eos_token, saved.unk_token) == ("<s>", "</s>", "<unk>")
    again = load_vocabulary(out)
    assert (again.bos, again.begin, again.eos) == (found.bos, found.begin, found.eos)


def test_tokens_of_the_settings_get_their_ids(tmp_path: Path) -> None:
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    decoder = {
        "265": {"content": "<|a|>", **flags},
        "266": {"content": "<other>", **flags},
        "270": {"content": "<|far|>", **flags},
    }
    decoder |= {"262": {"content": "<|no place|>", **flags}, "1": {"content": "<s>", **flags}}
    directory = written(
        tmp_path,
        handmade(reserved=2),
        added_tokens_decoder=decoder,
        pad_token="<pad>",
        additional_special_tokens=["<|a|>", "<nowhere>"],
    )
    found = load_vocabulary(directory)
    size = 267
    assert [found.tokenizer.id_to_token(id_) for id_ in (262, 265, 266, 268, 270)] == [
        "ab",
        "<|a|>",
        "<other>",
        None,
        "<|far|>",
    ]
    assert found.tokenizer.token_to_id("<reserved_0>") is None
    assert found.tokenizer.token_to_id("<|no place|>") is None
    assert found.tokenizer.get_vocab_size() == size + 1
    out = tmp_path / "out"
    out.mkdir()
    save_vocabulary(found, directory, out)
    saved = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    assert max(saved.get_vocab().values()) == 270, (
        "a name without a place in the vocabulary gets none behind it either"
    )
    assert saved.pad_token is None
    assert saved.convert_tokens_to_ids(["<|a|>", "<|far|>"]) == [265, 270]


def test_added_tokens_far_behind_the_vocabulary_are_refused(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text('{"<x>": 4000000000}', encoding="utf-8")
    with pytest.raises(DataError, match="far behind its 265 tokens"):
        load_vocabulary(written(tmp_path, handmade()))


def test_two_files_that_disagree_are_refused(tmp_path: Path) -> None:
    directory = written(tmp_path, handmade(), tokenizer_class="ChatGLMTokenizer")
    text = load_vocabulary(directory).tokenizer.to_str()
    (directory / "tokenizer.json").write_text(text, encoding="utf-8")
    assert load_vocabulary(directory).tokenizer.token_to_id("sop") == 268, (
        "special tokens besides are no disagreement"
    )
    data = json.loads(text)
    vocab = data["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (directory / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(
        DataError,
        match=(
            "are different tokenizers: the piece 'a' is the id 260 in the first, and the id 261 in the second"
        ),
    ):
        load_vocabulary(directory)
    (directory / "tokenizer.model").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert load_vocabulary(directory).tokenizer.token_to_id("a") == 261


def test_internlm2_from_its_model_file_alone(shared: Path, tmp_path: Path) -> None:
    """The publisher's repository has no tokenizer.json: the special tokens stand in its settings, under
    the ids of reserved pieces.
    """
    source = shared / "tokenizers" / "internlm2"
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    found = load_vocabulary(tmp_path)
    assert (found.bos, found.eos, found.tokenizer.get_vocab_size()) == ("<s>", "</s>", 92544)
    template = compile_template(read_chat(ROOT / "conf" / "model" / "chat" / "internlm2.yaml"), found)
    head = [1, 92543, *found.later.encode("user\nHi <|im_end|>", add_special_tokens=False).ids, 92542]
    assert template.prompt([Message(role="user", content="Hi <|im_end|>")])[: len(head)] == head
    assert head.count(92542) == 1
    assert template.tokenizer.token_to_id("<|im_start|>") == 92543


def test_the_ranks_of_a_file_are_its_tokens_in_order() -> None:
    tokens = read_ranks(small_ranks())
    assert tokens[256:] == [b"he", b"llo", b"hello", b" w", b"12", b"123"]
    assert len({spell(token) for token in tokens}) == len(tokens)
