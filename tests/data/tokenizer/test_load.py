"""Vocabularies: what a directory says, special tokens under their names, and the space that SentencePiece
writes before a text.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from tests.data.conftest import read_chat
from tuner.config.schema import Chat
from tuner.data.chat.sandbox import renderer
from tuner.data.chat.template import compile_template
from tuner.data.chat.to_jinja import to_jinja
from tuner.data.conversation import Conversation, Message
from tuner.data.tokenizer.load import Vocabulary, load_vocabulary, with_special_tokens
from tuner.errors import DataError

IDS = {
    "<|plugin|>": 92538,
    "<|interpreter|>": 92539,
    "<|action_end|>": 92540,
    "<|action_start|>": 92541,
    "<|im_end|>": 92542,
    "<|im_start|>": 92543,
}


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        load_vocabulary(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="can't be read as a tokenizer"):
        load_vocabulary(tmp_path)
    tiny().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer_config\.json is no JSON"):
        load_vocabulary(tmp_path)


@pytest.mark.parametrize(
    ("name", "bos", "eos"),
    [
        ("internlm2", "<s>", "</s>"),
        ("internlm2_hf_fast", "<s>", "</s>"),
        ("qwen2_5", None, "<|im_end|>"),
        ("mistral_nemo", "<s>", "</s>"),
        ("smollm2", None, "<|im_end|>"),
        ("minimind", None, "<|im_end|>"),
    ],
)
def test_what_begins_and_ends_a_text(
    vocabulary: Callable[[str], Vocabulary], name: str, bos: str | None, eos: str
) -> None:
    found = vocabulary(name)
    assert (found.bos, found.eos) == (bos, eos)
    assert found.template
    assert "messages" in found.template


def tiny(**added: bool) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(
            {"<unk>": 0, "[UNUSED_TOKEN_1]": 1, "a": 2, "b": 3, "ab": 4, "<unused2>": 5, "<s>": 6},
            [("a", "b")],
            unk_token="<unk>",
        )
    )
    tokenizer.add_tokens([AddedToken(name, special=special) for name, special in added.items()])
    return tokenizer


def load(tokenizer: Tokenizer, directory: Path, **settings: object) -> Vocabulary:
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return load_vocabulary(directory)


def test_the_names_of_tokens_come_from_the_settings(tmp_path: Path) -> None:
    assert load(tiny(), tmp_path, eos_token={"content": "b"}).eos == "b"
    assert load(tiny(), tmp_path, bos_token="<s>").bos is None
    assert load(tiny(), tmp_path, bos_token="<s>", add_bos_token=True).bos == "<s>"
    assert load(tiny(), tmp_path).eos is None
    (tmp_path / "config.json").write_text('{"eos_token_id": [3, 2]}', encoding="utf-8")
    assert load(tiny(), tmp_path).eos == "b"
    named = [{"name": "rag", "template": "R"}, {"name": "default", "template": "D"}]
    assert load(tiny(), tmp_path, chat_template=named).template == "D"
    (tmp_path / "chat_template.jinja").write_text("J", encoding="utf-8")
    assert load(tiny(), tmp_path, chat_template=named).template == "J"


def test_a_reserved_place_gets_its_name_and_nothing_else_moves(tmp_path: Path) -> None:
    before = load(tiny(), tmp_path)
    after = with_special_tokens(before, ["<|end|>", "<s>"], {"<|end|>": 1, "<|call|>": 5})
    assert [after.tokenizer.id_to_token(i) for i in range(7)] == [
        "<unk>",
        "<|end|>",
        "a",
        "b",
        "ab",
        "<|call|>",
        "<s>",
    ]
    assert after.tokenizer.encode("ab", add_special_tokens=False).ids == [4]
    assert after.tokenizer.get_vocab_size() == before.tokenizer.get_vocab_size()
    assert {
        token.content for token in after.tokenizer.get_added_tokens_decoder().values() if token.special
    } == {"<|end|>", "<|call|>", "<s>"}
    assert after.repaired
    assert with_special_tokens(after, ["<|end|>"], {"<|end|>": 1}) is after
    assert not with_special_tokens(before, [], {}).repaired


def test_only_a_reserved_place_can_be_named(tmp_path: Path) -> None:
    before = load(tiny(), tmp_path)
    with pytest.raises(
        DataError, match=r"is the id 4, and the tokenizer calls that ab, which is no reserved token"
    ):
        with_special_tokens(before, [], {"<|end|>": 4})
    with pytest.raises(DataError, match=r"is the id 7, which the tokenizer does not have \(7 tokens\)"):
        with_special_tokens(before, [], {"<|end|>": 7})


def test_a_token_that_was_added_beyond_the_vocabulary_moves_to_its_place(tmp_path: Path) -> None:
    tokenizer = tiny(**{"<|end|>": True})
    assert tokenizer.token_to_id("<|end|>") == 7
    after = with_special_tokens(load(tokenizer, tmp_path), ["<|end|>"], {"<|end|>": 1})
    assert after.tokenizer.token_to_id("<|end|>") == 1
    assert after.tokenizer.get_vocab_size() == 7


def test_the_special_ids_of_internlm2(vocabulary: Callable[[str], Vocabulary]) -> None:
    raw = vocabulary("internlm2")
    assert raw.tokenizer.id_to_token(92543) == "[UNUSED_TOKEN_146]"
    after = with_special_tokens(raw, ["<s>", *IDS], IDS)
    assert {token: after.tokenizer.token_to_id(token) for token in IDS} == IDS
    assert after.tokenizer.get_vocab_size() == raw.tokenizer.get_vocab_size() == 92544
    right = vocabulary("internlm2_hf_fast").tokenizer
    for text in ("Hello, world", "你好，世界\n\n  x", "🙂 é"):
        assert (
            after.tokenizer.encode(text, add_special_tokens=False).ids
            == right.encode(text, add_special_tokens=False).ids
        )
    assert raw.tokenizer.encode("a<s>b", add_special_tokens=False).ids[1] == 1, (
        "the merges of this conversion spell <s>"
    )
    assert not {1, *IDS.values()} & {
        *after.tokenizer.encode("a<s>b" + "".join(IDS), add_special_tokens=False).ids
    }


def pieces(model: bytes) -> Iterator[tuple[str, int]]:
    """(piece, type) of a SentencePiece model: the fields 1 and 3 of each message in field 1."""

    def number(data: bytes, at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = data[at]
            value |= (byte & 127) << shift
            at, shift = at + 1, shift + 7
            if byte < 128:
                return value, at

    def fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
        at = 0
        while at < len(data):
            key, at = number(data, at)
            if key & 7 == 0:
                value, at = number(data, at)
                yield key >> 3, value
            else:
                size, at = (4, at) if key & 7 == 5 else (8, at) if key & 7 == 1 else number(data, at)
                yield key >> 3, data[at : at + size]
                at += size

    for key, message in fields(model):
        if key == 1 and isinstance(message, bytes):
            found = dict(fields(message))
            piece, kind = found[1], found.get(3, 1)
            assert isinstance(piece, bytes)
            assert isinstance(kind, int)
            yield piece.decode(), kind


def converted(model: Path, scheme: str) -> Tokenizer:
    """A BPE model of SentencePiece as a fast tokenizer, with one of the ways in which its space before a
    text is written down.
    """
    known = list(pieces(model.read_bytes()))
    vocab = {piece: i for i, (piece, _) in enumerate(known)}
    words = [piece for piece, kind in known if kind in (1, 4)]
    whole = {*words}
    merges = [
        (word[:at], word[at:])
        for word in words
        for at in sorted(range(1, len(word)), key=lambda at: vocab.get(word[:at], 0))
        if {word[:at], word[at:]} <= whole
    ]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "prepend":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece, kind in known if kind in (2, 3)]
    )
    return tokenizer


TALKS = [
    ["Hello there", "General Kenobi", "ok", "fine  then"],
    ["你好", "你好，世界"],
    ["a\nb", "```\ncode\n```"],
    ["a\n  b ", "x y"],
    ["once upon a time", "there was a dog named Ben"],
]
SHAPES = {
    "specials first": Chat(
        user="{bos}[INST] {text} [/INST]", assistant=" {text}{eos}", prompt="", end="{eos}"
    ),
    "text first": Chat(
        system="{text} ",
        default_system="A chat.",
        user="USER: {text} ",
        assistant="ASSISTANT: {text}{eos}",
        prompt="ASSISTANT:",
        end="{eos}",
    ),
}


@pytest.mark.parametrize("scheme", ["first", "always", "never", "prepend"])
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("name", ["mistral_v3", "tinystories_tok512"])
def test_a_space_before_a_text_is_written_where_the_whole_string_would_have_it(
    shared: Path, tmp_path: Path, name: str, shape: str, scheme: str
) -> None:
    tokenizer = converted(shared / "tokenizers" / name / "tokenizer.model", scheme)
    chat = SHAPES[shape]
    found = load(tokenizer, tmp_path, bos_token="<s>", eos_token="</s>", add_bos_token=True)
    template, render = compile_template(chat, found), renderer(to_jinja(chat, found), {})
    conversations = [
        Conversation(
            messages=tuple(
                Message(role="assistant" if i % 2 else "user", content=text, trained=bool(i % 2))
                for i, text in enumerate(talk)
            )
        )
        for talk in TALKS
    ]
    batch = template.encode(conversations)
    for i, talk in enumerate(conversations):
        turns = [{"role": message.role, "content": message.content} for message in talk.messages]
        assert (
            batch.ids[batch.offsets[i] : batch.offsets[i + 1]].tolist()
            == tokenizer.encode(render(turns, (), False), add_special_tokens=False).ids
        )
        assert (
            template.prompt(talk.messages[:-1])
            == tokenizer.encode(render(turns[:-1], (), True), add_special_tokens=False).ids
        )
        trained = batch.ids[batch.offsets[i] : batch.offsets[i + 1]][
            batch.trained[batch.offsets[i] : batch.offsets[i + 1]]
        ].tolist()
        assert [found.tokenizer.id_to_token(id_) for id_ in trained].count("</s>") == len(talk.messages) // 2
    plain = template.texts(["Hello", "a b"])
    assert (
        plain.ids[: plain.offsets[1]].tolist()
        == tokenizer.encode("<s>Hello</s>", add_special_tokens=False).ids
    )


def test_a_border_inside_a_text_writes_no_space_of_its_own(shared: Path, tmp_path: Path) -> None:
    """An answer that is tokenised apart goes on in the middle of a text: a dummy prefix there would be a
    space that nobody wrote.
    """
    for scheme in ("always", "prepend"):
        tokenizer = converted(shared / "tokenizers" / "mistral_v3" / "tokenizer.model", scheme)
        found = load(tokenizer, tmp_path, bos_token="<s>", eos_token="</s>", add_bos_token=True)
        template = compile_template(
            Chat(begin="{bos}", user="{text}\n", assistant="=>{text}{eos}", end="{eos}"), found
        )
        batch = template.encode(
            [
                Conversation(
                    messages=(
                        Message(role="user", content="q"),
                        Message(role="assistant", content="> x", trained=True),
                    )
                )
            ]
        )
        assert [tokenizer.id_to_token(id_) for id_ in batch.ids[batch.trained].tolist()] == [
            ">",
            "▁x",
            "</s>",
        ]


@pytest.mark.parametrize("strips", [{"rstrip": True}, {"lstrip": True}, {"lstrip": True, "rstrip": True}])
def test_tokens_that_take_white_space_along_do_so_here_too(
    shared: Path, tmp_path: Path, strips: dict[str, bool]
) -> None:
    tokenizer = Tokenizer.from_file(str(shared / "tokenizers" / "minimind" / "tokenizer.json"))
    text = json.loads(tokenizer.to_str())
    for token in text["added_tokens"]:
        token |= strips if token["content"] in ("<|im_start|>", "<|im_end|>", "<|box_start|>") else {}
    tokenizer = Tokenizer.from_str(json.dumps(text))
    found = load(tokenizer, tmp_path, eos_token="<|im_end|>")
    chat = Chat(
        special=("<|im_start|>", "<|im_end|>", "<|box_start|>"),
        user=" <|im_start|>\n{text}<|im_end|>\n",
        assistant="<|box_start|> \n<|im_start|>\n{text} <|im_end|>\n",
        end="<|im_end|>",
    )
    template, render = compile_template(chat, found), renderer(to_jinja(chat, found), {})
    for asked in ("Hi", " Hi\n", "  ", "\n\nyou "):
        messages = (
            Message(role="user", content=asked),
            Message(role="assistant", content="Hello you", trained=True),
        )
        whole = render(
            [{"role": message.role, "content": message.content} for message in messages], (), False
        )
        batch = template.encode([Conversation(messages=messages)])
        assert batch.ids.tolist() == tokenizer.encode(whole, add_special_tokens=False).ids
        assert template.tokenizer.decode(
            batch.ids[batch.trained].tolist(), skip_special_tokens=False
        ).startswith("Hello you")


def test_the_shipped_internlm2_template_names_the_ids(vocabulary: Callable[[str], Vocabulary]) -> None:
    file = Path(__file__).parents[3] / "conf" / "model" / "chat" / "internlm2.yaml"
    if not file.is_file():
        pytest.skip("there is no such template")
    template = compile_template(read_chat(file), vocabulary("internlm2"))
    assert template.end_id == 92542
    assert template.prompt([Message(role="user", content="Hi")])[:2] == [1, 92543]
