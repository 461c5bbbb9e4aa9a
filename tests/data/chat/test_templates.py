"""Every shipped chat template: against its vendor's texts, against real tokenizers with a Jinja of their own,
and against what it exports.

The vendors' texts are in `vendors`. Where the vendor's tokenizer is not at hand, a small one that has the
template's special tokens stands for it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.data.chat.vendors.conversations import CONVERSATIONS, assistant, user
from tests.data.conftest import ROOT, SHARED, read_chat
from tuner.config.compose import compose
from tuner.config.schema import Chat
from tuner.data.chat.template import Template, compile_template
from tuner.data.chat.to_jinja import to_jinja
from tuner.data.conversation import Call, Conversation, Message
from tuner.data.formats.rows import read_row
from tuner.data.formats.shape import RowShape
from tuner.data.tokenizer.load import Vocabulary, load_vocabulary
from tuner.errors import DataError

YAML = ROOT / "conf" / "model" / "chat"
VENDORS = Path(__file__).parent / "vendors"
NAMES = sorted(file.stem for file in YAML.glob("*.yaml") if file.stem not in ("tokenizer", "auto"))
REAL = {
    "internlm2": "internlm2",
    "internlm2_hf_fast": "internlm2",
    "qwen2_5": "qwen2_5",
    "mistral_nemo": "mistral_nemo",
    "smollm2": "smollm2",
    "minimind": "minimind",
}
"""tokenizers with an official template → ours of it"""


@cache
def shipped(name: str) -> Chat:
    return read_chat(YAML / f"{name}.yaml")


@cache
def vendor(name: str) -> Any:
    """The vendor's texts, from lists of lines."""
    texts = json.loads((VENDORS / f"{name}.json").read_text(encoding="utf-8"))
    return {
        **texts,
        **{
            kind: {key: lines and "\n".join(lines) for key, lines in texts[kind].items()}
            for kind in ("texts", "prompts")
        },
    }


def spoken(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Turns as transformers takes them."""
    return [
        {"role": message.role, "content": message.content}
        | ({"reasoning_content": message.reasoning} if message.reasoning is not None else {})
        | ({"tool_calls": [told(call) for call in message.calls]} if message.calls else {})
        | ({"tool_call_id": message.call_id} if message.call_id else {})
        for message in messages
    ]


def told(call: Call) -> dict[str, Any]:
    return {"type": "function", "id": call.id, "function": {"name": call.name, "arguments": call.arguments}}


def asked(
    tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any], *, prompt: bool = False
) -> list[int]:
    """What transformers makes of the turns with the tokenizer's own template."""
    ids: list[int] = tokenizer.apply_chat_template(
        spoken(messages), tools=list(tools) or None, add_generation_prompt=prompt, return_dict=False
    )
    return ids


def automatic(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory)


# Small tokenizers

WORDS = r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
"""as tokenizers of chat models cut: line breaks that follow each other are one token, whatever comes
behind them
"""


@cache
def trained_small() -> str:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(
        [message.content for conversation in CONVERSATIONS.values() for message in conversation.messages],
        trainer,
    )
    text: str = tokenizer.to_str()
    return text


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A directory with a small tokenizer that has the special tokens of a template."""

    @cache
    def make(name: str, *, strips: bool = False) -> Path:
        chat, texts = shipped(name), vendor(name)
        tokenizer = Tokenizer.from_str(trained_small())
        names = dict.fromkeys([*chat.special, texts["bos"], texts["eos"]])
        tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False, rstrip=strips) for token in names if token]
        )
        directory = tmp_path_factory.mktemp(name)
        tokenizer.save(str(directory / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}
        settings |= {f"{key}_token": texts[key] for key in ("bos", "eos") if texts[key]}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        return directory

    return make


def without_ids(chat: Chat) -> Chat:
    """For a small tokenizer, which has the special tokens under their own names."""
    return replace(chat, ids={})


def parsed(directory: Path) -> Tokenizer:
    """The tokenizer as a serving engine has it: it reads special tokens out of text."""
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def stretches(ids: Sequence[int], trained: Sequence[bool]) -> Iterator[tuple[int, int]]:
    """Where the trained tokens are: start and stop of each stretch."""
    edges = [i for i, (a, b) in enumerate(pairwise([False, *trained, False])) if a != b]
    yield from zip(edges[::2], edges[1::2], strict=True)


def learned(tokenizer: Tokenizer, ids: Sequence[int], trained: Sequence[bool]) -> list[str]:
    """The texts of the trained stretches, in the text as a whole, since some tokenizers decode a first
    token otherwise.
    """

    def text(stop: int) -> str:
        decoded: str = tokenizer.decode(list(ids[:stop]), skip_special_tokens=False)
        return decoded

    return [text(stop)[len(text(start)) :] for start, stop in stretches(ids, trained)]


# What vendors publish


def test_every_template_has_its_vendors_texts() -> None:
    assert {file.stem for file in VENDORS.glob("*.json")} == set(NAMES)
    assert set().union(*(vendor(name)["texts"] for name in NAMES)) == set(CONVERSATIONS)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_says_in_its_first_line_whose_it_is(name: str) -> None:
    first = (YAML / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert 4 < len(first) < 100


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_an_option_of_the_command_line(name: str) -> None:
    assert compose([f"model/chat={name}"], whole=False).model.chat == shipped(name)


@pytest.mark.parametrize("name", NAMES)
def test_a_template_writes_what_its_vendor_writes(name: str, small: Callable[..., Path]) -> None:
    directory, texts = small(name), vendor(name)
    template, reader = (
        compile_template(without_ids(shipped(name)), load_vocabulary(directory)),
        parsed(directory),
    )
    for key, text in texts["texts"].items():
        batch = template.encode([CONVERSATIONS[key]])
        if text is None:
            assert 0 in batch.problems, f"{name} has no place for {key}"
            continue
        assert not batch.problems, key
        assert template.tokenizer.decode(batch.ids.tolist(), skip_special_tokens=False) == text, key
        assert batch.ids.tolist() == reader.encode(text, add_special_tokens=False).ids, key
    for key, text in texts["prompts"].items():
        conversation = CONVERSATIONS[key]
        ids = template.prompt(conversation.messages[:-1], conversation.tools)
        assert template.tokenizer.decode(ids, skip_special_tokens=False) == text, key


def test_special_tokens_that_take_white_space_along_do_so_here_too(small: Callable[..., Path]) -> None:
    directory, texts = small("phi3", strips=True), vendor("phi3")["texts"]
    template, reader = compile_template(shipped("phi3"), load_vocabulary(directory)), parsed(directory)
    spaced = Conversation(messages=(user("\n Hi "), assistant("Yes. \n")))
    rows = [
        (CONVERSATIONS["bare"], texts["bare"]),
        (CONVERSATIONS["dialogue"], texts["dialogue"]),
        (spaced, "<|user|>\n\n Hi <|end|>\n<|assistant|>\nYes. \n<|end|>\n<|endoftext|>"),
    ]
    for conversation, text in rows:
        assert (
            template.encode([conversation]).ids.tolist() == reader.encode(text, add_special_tokens=False).ids
        ), text


# What is trained

PLAIN = ["bare", "dialogue", "white space"]


@pytest.mark.parametrize("name", NAMES)
def test_what_an_assistant_writes_behind_its_prompt_is_trained_and_the_end_of_its_turn(
    name: str, small: Callable[..., Path]
) -> None:
    chat, texts = shipped(name), vendor(name)
    template = compile_template(without_ids(chat), load_vocabulary(small(name)))
    head, _, rest = chat.assistant.partition("{text}")
    lead = head.removeprefix(head if chat.prompt is None or chat.prompt.startswith(head) else chat.prompt)
    tail = rest.partition(chat.end)[0] + chat.end if chat.end_in == "turn" else chat.end
    for key in PLAIN:
        if texts["texts"].get(key) is None:
            continue
        batch = template.encode([CONVERSATIONS[key]])
        answers = [message.content for message in CONVERSATIONS[key].messages if message.role == "assistant"]
        if "assistant" in chat.trim:
            answers = [answer.strip() for answer in answers]
        assert learned(template.tokenizer, batch.ids.tolist(), batch.trained.tolist()) == [
            (lead + answer + tail).replace("{eos}", texts["eos"]) for answer in answers
        ], key


TRAINED = {
    ("qwen2_5", "two calls"): [
        (
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 40}}\n</tool_call><|im_end|>'
        ),
        "-7 °C, and 42.<|im_end|>",
    ],
    ("qwen2_5", "text and call"): [
        (
            'I will add them.\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b":'
            " 40}}\n</tool_call><|im_end|>"
        ),
        "It is 42.<|im_end|>",
    ],
    ("qwen3", "thoughts"): ["<think>\nThat is six.\n</think>\n\n6<|im_end|>"],
    ("qwen3", "thought and call"): [
        (
            '<think>\nI need the tool.\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 2, "b":'
            " 40}}\n</tool_call><|im_end|>"
        ),
        "It is 42.<|im_end|>",
    ],
    ("minimind", "thoughts"): [
        "Two and two\nis four.\n</think>\n\n4<|im_end|>",
        "That is six.\n</think>\n\n6<|im_end|>",
    ],
    ("minimind", "tools"): [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        "Yes, it is -7 °C.<|im_end|>",
        "You are welcome.<|im_end|>",
    ],
    ("smollm3", "thoughts"): [
        "<think>\nTwo and two\nis four.\n</think>\n4<|im_end|>",
        "<think>\nThat is six.\n</think>\n6<|im_end|>",
    ],
    ("deepseek_r1", "thoughts"): ["That is six.\n</think>\n\n6<｜end▁of▁sentence｜>"],
    ("llama3_1", "tools"): [
        '{"name": "get_weather", "parameters": {"city": "Oslo"}}<|eot_id|>',
        "Yes, it is -7 °C.<|eot_id|>",
        "You are welcome.<|eot_id|>",
    ],
    ("mistral_v3", "tools"): [
        '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "aB3dE6gH9"}]</s>',
        " Yes, it is -7 °C.</s>",
        " You are welcome.</s>",
    ],
    ("mistral_nemo", "tools"): [
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}, "id": "aB3dE6gH9"}]</s>',
        "Yes, it is -7 °C.</s>",
        "You are welcome.</s>",
    ],
    ("internlm2", "text and call"): [
        (
            'I will add them.<|action_start|><|plugin|>\n{"name": "add", "parameters": {"a": 2, "b":'
            " 40}}<|action_end|><|im_end|>"
        ),
        "It is 42.<|im_end|>",
    ],
    ("glm4", "text and call"): [
        '\nI will add them.<|assistant|>add\n{"a": 2, "b": 40}<|observation|>',
        "\nIt is 42.<|user|>",
    ],
}
"""what is trained of a conversation with calls or thoughts, stretch by stretch"""


@pytest.mark.parametrize(("name", "key"), TRAINED)
def test_calls_and_thoughts_are_trained_and_answers_of_tools_are_not(
    name: str, key: str, small: Callable[..., Path]
) -> None:
    template = compile_template(without_ids(shipped(name)), load_vocabulary(small(name)))
    batch = template.encode([CONVERSATIONS[key]])
    assert not batch.problems
    assert learned(template.tokenizer, batch.ids.tolist(), batch.trained.tolist()) == TRAINED[name, key]


# What real tokenizers make of real conversations with the template they came with

FILES = {
    "alpaca/alpaca_en.json": 6,
    "alpaca/alpaca_zh.json": 6,
    "sharegpt/vicuna_identity.json": 4,
    "messages/openai_multiturn.jsonl": 1,
    "messages/openai_bare_lists.jsonl": 2,
    "oasst/oasst_en_trees.jsonl": 1,
    "sharegpt/glaive_toolcall_en.json": 2,
    "sharegpt/glaive_toolcall_zh.json": 2,
    "messages/openai_tools_en.jsonl": 2,
    "messages/reason_tool_parts.jsonl": 1,
}
"""files of ../shared/data, and of how many rows one is taken"""


@cache
def real() -> list[Conversation]:
    """Real conversations of all kinds."""
    found: list[Conversation] = []
    for name, step in FILES.items():
        text = (SHARED / "data" / name).read_text(encoding="utf-8")
        rows = (
            json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
        )
        found += [
            sample
            for row in rows[::step]
            for sample in read_row(row, RowShape())
            if isinstance(sample, Conversation)
        ]
    return [with_ids(conversation) for conversation in found]


def with_ids(conversation: Conversation) -> Conversation:
    """Calls with ids of nine letters and digits, which Mistral's template insists on, and answers that
    refer to them in their order.
    """
    messages: list[Message] = []
    asked_for: list[str] = []
    count = 0
    for message in conversation.messages:
        if message.calls:
            asked_for = [f"call{count + i:05d}" for i in range(len(message.calls))]
            count += len(asked_for)
            calls = tuple(replace(call, id=id_) for call, id_ in zip(message.calls, asked_for, strict=True))
            messages.append(replace(message, calls=calls))
        elif message.role == "tool":
            messages.append(replace(message, call_id=asked_for.pop(0) if asked_for else "call99999"))
        else:
            messages.append(message)
    return replace(conversation, messages=tuple(messages))


@pytest.mark.parametrize("directory", REAL)
def test_ids_are_those_of_the_tokenizers_own_template(
    directory: str, vocabulary: Callable[[str], Vocabulary]
) -> None:
    """On real conversations, token for token; and trained are all answers with the ends of their turns,
    and nothing else.
    """
    name, rows = REAL[directory], real()
    template = compile_template(shipped(name), vocabulary(directory))
    reference = automatic(loadable(directory))
    assert reference.chat_template == vocabulary(directory).template
    knows_tools = "tool_calls" in reference.chat_template
    batch = template.encode(rows)
    equal = refused = unwritten = elsewhere = 0
    for i, conversation in enumerate(rows):
        if i in batch.problems:
            unwritten += 1
        elif has_tools(conversation) and not knows_tools:
            elsewhere += 1  # the vendor's Jinja would leave them out; what is written instead is in `vendors`
        else:
            ids = batch.ids[batch.offsets[i] : batch.offsets[i + 1]].tolist()
            trained = batch.trained[batch.offsets[i] : batch.offsets[i + 1]].tolist()
            try:
                if name == "mistral_nemo" and conversation.messages[0].role == "system":
                    # its Jinja writes a system prompt only where the user has the last word
                    messages = conversation.messages[
                        : 1
                        + max(k for k, message in enumerate(conversation.messages) if message.role == "user")
                    ]
                    assert template.prompt(messages, conversation.tools) == asked(
                        reference, messages, conversation.tools
                    ), messages
                else:
                    assert ids == asked(reference, conversation.messages, conversation.tools), conversation
            except TemplateError:
                refused += 1
                continue
            equal += 1
            if i % 8 == 0:
                assert_learned(name, conversation, learned(template.tokenizer, ids, trained))
    assert equal >= 500
    assert equal + refused + unwritten + elsewhere == len(rows)
    assert refused < 5


def loadable(directory: str) -> Path:
    """The same tokenizer as transformers can load it: internlm2 names code of its publisher, and
    transformers would give its special tokens new ids.
    """
    return SHARED / "tokenizers" / ("internlm2_hf_fast" if directory == "internlm2" else directory)


def has_tools(conversation: Conversation) -> bool:
    return bool(conversation.tools) or any(
        message.calls or message.role == "tool" for message in conversation.messages
    )


def assert_learned(name: str, conversation: Conversation, texts: Sequence[str]) -> None:
    """That `texts` are the answers of a conversation, each with what ends its turn."""
    end = "</s>" if name == "mistral_nemo" else "<|im_end|>"
    answers = [message for message in conversation.messages if message.trains]
    assert len(texts) == len(answers)
    for text, answer in zip(texts, answers, strict=True):
        thought = answer.reasoning.strip("\n") + "\n</think>\n\n" if answer.reasoning else ""
        said = thought + (answer.content.lstrip("\n") if name == "minimind" else answer.content)
        if not answer.calls:
            assert text == said + end
            continue
        assert text.startswith(said)
        assert text.endswith(end)
        assert text.count(end) == 1
        assert all(json.dumps(call.arguments, ensure_ascii=False) in text for call in answer.calls)


def test_internlm2s_special_tokens_have_the_ids_of_the_model(vocabulary: Callable[[str], Vocabulary]) -> None:
    right = {
        "<|plugin|>": 92538,
        "<|interpreter|>": 92539,
        "<|action_end|>": 92540,
        "<|action_start|>": 92541,
        "<|im_end|>": 92542,
        "<|im_start|>": 92543,
    }
    for directory in ("internlm2", "internlm2_hf_fast"):
        template = compile_template(shipped("internlm2"), vocabulary(directory))
        assert {token: template.tokenizer.token_to_id(token) for token in right} == right
        assert max(template.encode([CONVERSATIONS["text and call"]]).ids) < 92544
        assert template.end_id == 92542


# What a template exports


def refuses(tokenizer: Any, messages: Sequence[Message], tools: Sequence[Any]) -> bool:
    try:
        asked(tokenizer, messages, tools)
    except TemplateError:
        return True
    return False


def goes_on(chat: Chat, tokenizer: Any, conversation: Conversation) -> bool:
    """Whether each prompt's tokens are the first ones of the answered text's too.

    Where they are not, a token reaches over the place where the assistant starts to write, which generation
    never sees so; transformers, which tokenises the finished text, differs there from what is trained.
    """

    def ids(text: str) -> list[int]:
        found: list[int] = tokenizer(text, add_special_tokens=False).input_ids
        return found

    for k, message in enumerate(conversation.messages):
        if message.role == "assistant":
            text, prompt = (
                tokenizer.apply_chat_template(
                    spoken(turns),
                    tools=list(conversation.tools) or None,
                    add_generation_prompt=opened,
                    tokenize=False,
                )
                for turns, opened in (
                    (conversation.messages[: k + 1], False),
                    (conversation.messages[:k], True),
                )
            )
            whole = ids(text)
            if any(
                text.startswith(start) and whole[: len(ids(start))] != ids(start)
                for start in (prompt, prompt + chat.no_reasoning)
            ):
                return False
    return True


def assert_exports(chat: Chat, template: Template, tokenizer: Any, rows: Sequence[Conversation]) -> int:
    """That `tokenizer`, with the exported template, gives the same ids for texts and prompts, and refuses
    what is refused here; how many were equal.
    """
    equal = 0
    batch = template.encode(rows)
    for i, row in enumerate(rows):
        if i in batch.problems:
            assert refuses(tokenizer, row.messages, row.tools), (batch.problems[i], row)
            continue
        ids = batch.ids[batch.offsets[i] : batch.offsets[i + 1]].tolist()
        pairs = [(ids[:-1] if chat.end_in == "next" else ids, asked(tokenizer, row.messages, row.tools))]
        last = max(k for k, message in enumerate(row.messages) if message.role == "assistant")
        pairs.append(
            (
                template.prompt(row.messages[:last], row.tools),
                asked(tokenizer, row.messages[:last], row.tools, prompt=True),
            )
        )
        equal += all(ours == theirs for ours, theirs in pairs)
        for ours, theirs in pairs:
            assert template.tokenizer.decode(ours, skip_special_tokens=False) == template.tokenizer.decode(
                theirs, skip_special_tokens=False
            ), row
            assert ours == theirs or not goes_on(chat, tokenizer, row), row
    return equal


@pytest.mark.parametrize("name", NAMES)
def test_the_exported_jinja_gives_the_same_ids(name: str, small: Callable[..., Path]) -> None:
    chat, directory = without_ids(shipped(name)), small(name)
    vocabulary = load_vocabulary(directory)
    template, tokenizer = compile_template(chat, vocabulary), automatic(directory)
    tokenizer.chat_template = to_jinja(chat, vocabulary)
    rows = list(CONVERSATIONS.values())
    written = sum(text is not None for text in vendor(name)["texts"].values())
    assert assert_exports(chat, template, tokenizer, rows) >= written


@pytest.mark.parametrize("directory", REAL)
def test_the_exported_jinja_gives_the_same_ids_with_every_real_tokenizer_that_holds_it(
    directory: str, vocabulary: Callable[[str], Vocabulary]
) -> None:
    rows = [*CONVERSATIONS.values(), *real()[::90]]
    tokenizer = automatic(loadable(directory))
    # InternLM2's special tokens are named in it
    known = compile_template(shipped(REAL[directory]), vocabulary(directory)).vocabulary
    held = 0
    for name in NAMES:
        chat = shipped(name)
        try:
            template = compile_template(chat, known)
        except DataError:
            continue
        tokenizer.chat_template = to_jinja(chat, known)
        assert assert_exports(chat, template, tokenizer, rows) >= 1, name
        held += 1
    assert held >= 10
