"""Texts that a chat template wrote are the conversations that they were, to the letter; what only looks so
stays text.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.files import test_row_files
from tests.data.files.test_row_files import write
from tuner.data.conversation import Conversation, RowError, Text
from tuner.data.formats import rows
from tuner.data.formats.known_templates import begins_as_template, template_of
from tuner.data.formats.shape import RowShape
from tuner.data.formats.templated import continued, templated
from tuner.data.survey import scan, templated_texts

Q, A = ("user", "Q"), ("assistant", "A")
S = ("system", "S")
TWICE = [Q, A, ("user", "Q2"), ("assistant", "A2")]
WRITTEN: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "chatml": (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n",
        [S, Q, A],
    ),
    "phi 4": ("<|im_start|>user<|im_sep|>Q<|im_end|><|im_start|>assistant<|im_sep|>A<|im_end|>", [Q, A]),
    "llama 3": (
        (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nQ<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
        ),
        [S, Q, A],
    ),
    "llama 4": (
        "<|header_start|>user<|header_end|>\n\nQ<|eot|><|header_start|>assistant<|header_end|>\n\nA<|eot|>",
        [Q, A],
    ),
    "llama 2": (
        "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nQ [/INST] A </s><s>[INST] Q2 [/INST] A2 </s>",
        [S, *TWICE],
    ),
    "llama 2 without its begin": ("[INST] Q [/INST] A", [Q, A]),
    "mistral": ("<s>[INST] Q [/INST] A</s> [INST] Q2 [/INST] A2</s>", TWICE),
    "mistral v7": ("<s>[SYSTEM_PROMPT] S[/SYSTEM_PROMPT][INST] Q[/INST] A</s>", [S, Q, A]),
    "zephyr": ("<|system|>\nS</s>\n<|user|>\nQ</s>\n<|assistant|>\nA</s>\n", [S, Q, A]),
    "phi 3": ("<|user|>\nQ<|end|>\n<|assistant|>\nA<|end|>\n<|endoftext|>", [Q, A]),
    "phi 4 mini": ("<|system|>S<|end|><|user|>Q<|end|><|assistant|>A<|end|>", [S, Q, A]),
    "glm 4": (
        "[gMASK]<sop><|system|>\nS<|user|>\nQ<|assistant|>\nA<|user|>\nQ2<|assistant|>\nA2",
        [S, *TWICE],
    ),
    "chatglm3": ("[gMASK]sop<|user|>\n Q<|assistant|>\n A", [Q, A]),
    "olmo 2": ("<|endoftext|><|system|>\nS\n<|user|>\nQ\n<|assistant|>\nA<|endoftext|>\n", [S, Q, A]),
    "stablelm": ("<|SYSTEM|>S<|USER|>Q<|ASSISTANT|>A", [S, Q, A]),
    "open assistant": ("<|prompter|>Q<|endoftext|><|assistant|>A<|endoftext|>", [Q, A]),
    "gemma": ("<bos><start_of_turn>user\nQ<end_of_turn>\n<start_of_turn>model\nA<end_of_turn>\n", [Q, A]),
    "command r": (
        (
            "<BOS_TOKEN><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>S<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Q<|END_OF_TURN_TOKEN|>"
            "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>A<|END_OF_TURN_TOKEN|>"
        ),
        [S, Q, A],
    ),
    "granite": (
        "<|start_of_role|>user<|end_of_role|>Q<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>A<|end_of_text|>\n",
        [Q, A],
    ),
    "deepseek": (
        "<｜begin▁of▁sentence｜>S<｜User｜>Q<｜Assistant｜>A<｜end▁of▁sentence｜><｜User｜>Q2<｜Assistant｜>A2<｜end▁of▁sentence｜>",
        [S, *TWICE],
    ),
    "internlm": ("<s><|User|>:Q<eoh>\n<|Bot|>:A<eoa>\n", [Q, A]),
    "moss": ("S\n<|Human|>: Q<eoh>\n<|MOSS|>: A<eom>\n", [S, Q, A]),
    "exaone": ("[|system|]S[|endofturn|]\n[|user|]Q\n[|assistant|]A[|endofturn|]", [S, Q, A]),
    "baichuan": ("<reserved_106>Q<reserved_107>A</s>", [Q, A]),
    "minicpm": ("<用户>Q<AI>A</s>", [Q, A]),
    "redpajama": ("<human>: Q\n<bot>: A", [Q, A]),
    "openchat": ("GPT4 Correct User: Q<|end_of_turn|>GPT4 Correct Assistant: A<|end_of_turn|>", [Q, A]),
    "vicuna": ("S USER: Q ASSISTANT: A</s>USER: Q2 ASSISTANT: A2</s>", [S, *TWICE]),
    "human and assistant": ("\n\nHuman: Q\n\nAssistant: A\n\nHuman: Q2\n\nAssistant: A2", TWICE),
    "deepseek llm": ("S\n\nUser: Q\n\nAssistant: A<｜end▁of▁sentence｜>", [S, Q, A]),
    "alpaca": (
        "S\n\n### Instruction:\nQ\n\n### Input:\nmore\n\n### Response:\nA</s>",
        [S, ("user", "Q\nmore"), A],
    ),
    "dolly": ("### Instruction:\nQ\n\n### Response:\nA\n\n### End", [Q, A]),
    "deepseek coder": ("### Instruction:\nQ\n### Response:\nA\n<|EOT|>\n", [Q, A]),
    "solar": ("### System:\nS\n\n### User:\nQ\n\n### Assistant:\nA", [S, Q, A]),
    "question and answer": ("### Question: Q\n### Answer: A", [Q, A]),
    "an answer with headings": (
        "### Instruction:\nQ\n\n### Response:\nA\n### Step\n### Input:\nx",
        [Q, ("assistant", "A\n### Step\n### Input:\nx")],
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_template_wrote_is_read_back(name: str) -> None:
    text, turns = WRITTEN[name]
    found = templated({"text": text})
    assert [(message.role, message.content) for message in found.messages] == turns
    assert [message.trained for message in found.messages] == [role == "assistant" for role, _ in turns]
    assert begins_as_template(text)


def test_blank_lines_between_all_turns_part_no_conversation() -> None:
    spaced = WRITTEN["chatml"][0].replace("<|im_end|>\n", "<|im_end|>\n\n")
    assert [
        message.content
        for message in templated({"text": spaced + spaced.partition("<|im_end|>\n\n")[2]}).messages
    ] == ["S", "Q", "A", "Q", "A"]
    tight = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in TWICE)
    assert [(message.role, message.content) for message in templated({"text": tight}).messages] == TWICE


def test_what_the_model_is_asked_to_go_on_with_is_no_answer() -> None:
    for text in (
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "<s>[INST] Q [/INST]",
        "<|user|>\nQ</s>\n<|assistant|>\n",
    ):
        assert [message.role for message in templated({"text": text}).messages] == ["user"]


def test_thoughts_and_tools_of_a_text_stay_where_they_were() -> None:
    harmony = (
        "<|start|>system<|message|>S<|end|><|start|>user<|message|>Q<|end|><|start|>assistant<|channel|>analysis<|message|>T<|end|>"
        "<|start|>assistant<|channel|>final<|message|>A<|return|>"
    )
    assert templated({"text": harmony}).messages[-1].reasoning == "T"
    assert [message.content for message in templated({"text": harmony}).messages] == ["S", "Q", "A"]
    thought = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n<think>\nT\n</think>\n\nA<|im_end|>"
    assert templated({"text": thought}).messages[-1].content == "<think>\nT\n</think>\n\nA"
    row = {"text": WRITTEN["chatml"][0], "tools": [{"name": "f"}]}
    assert templated(row).tools == ({"type": "function", "function": {"name": "f"}},)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "<|im_start|>user\nQ<|im_start|>assistant\nA<|im_end|>",
            r"a turn of 'user' is not ended by <\|im_end\|>",
        ),
        (
            "<|im_start|>user\nQ<|im_end|> more <|im_start|>assistant\nA<|im_end|>",
            r"'more' stands between <\|im_end\|> and the next turn",
        ),
        (
            "<|im_start|>guest\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>",
            "a turn of 'guest'; known are system, human, user",
        ),
        ("<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\nP.S.", "'P.S.' stands between"),
        (
            "<s>[INST] Q [/INST] [TOOL_CALLS] [{}]</s>",
            r"a turn of the assistant holds \[TOOL_CALLS\], which Llama 2 or Mistral writes",
        ),
        (
            "<|im_start|>user\nQ <|fim_prefix|><|im_end|>\n<|im_start|>assistant\nA<|im_end|>",
            r"a turn of the user holds <\|fim_prefix\|>",
        ),
        (
            "<|fim_prefix|>a<|fim_suffix|>b",
            r"begins with <\|fim_prefix\|>, a mark of no template that is known; data\.format=text",
        ),
        (WRITTEN["chatml"][0] * 2, "the same system prompt stands twice, so these are several conversations"),
        (
            f"{WRITTEN['gemma'][0].removeprefix('<bos>')}\n" * 2,
            "a blank line follows each answer and no other turn, so these are several conversations",
        ),
        (
            WRITTEN["llama 3"][0] * 2,
            r"<\|begin_of_text\|>, which begins a text, stands in the middle, so these are several",
        ),
        ("Once upon a time.", r"begins with no mark of a chat template \('Once upon a time\.'\)"),
        (
            "<|start|>user<|message|>Q<|end|><|start|>assistant<|channel|>commentary<|message|>{}<|call|>",
            "holds|channel 'commentary'",
        ),
    ],
)
def test_what_does_not_fit_is_refused(text: str, words: str) -> None:
    with pytest.raises(RowError, match=words):
        templated({"text": text})


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time.\nUser: hi",
        "### Question:\nWhat is a fox?",
        "int main() { /* [INST] <|im_start|> */ }",
        "# Title\n### Instruction:\nx\n### Response:\ny",
        "He said that <|im_start|> begins a turn.",
        "A: b\nB: c",
        "Note to the User: hi\nAssistant: x",
        "ASSISTANT: first\nUSER: then",
        "",
        "<html><s>",
    ],
)
def test_prose_and_code_begin_with_no_mark(text: str) -> None:
    assert template_of(text) is None
    assert not begins_as_template(text)


WORDS = st.text(" abc\n.é{}", min_size=1, max_size=12).filter(lambda text: bool(text.strip()))


@settings(deadline=None, max_examples=120, derandomize=True)
@given(asked=WORDS, said=WORDS, system=st.none() | WORDS)
def test_turns_that_are_ended_are_kept_to_the_letter(asked: str, said: str, system: str | None) -> None:
    turns = [*([("system", system)] if system else []), ("user", asked), ("assistant", said)]
    chatml = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    llama = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text.lstrip()}<|eot_id|>" for role, text in turns
    )
    assert [(message.role, message.content) for message in templated({"text": chatml}).messages] == turns
    assert [(m.role, m.content) for m in templated({"text": llama}).messages] == [
        (role, text.lstrip()) for role, text in turns
    ]


# In a source


def surveyed(folder: Path, values: list[Any], **shape: Any) -> RowShape:
    file = write(folder / "rows.jsonl", "".join(json.dumps(value) + "\n" for value in values))
    return scan.scan_source([(file, "auto")], RowShape(**shape))


def kinds(values: list[Any], shape: RowShape) -> list[type]:
    return [type(sample) for value in values for sample in rows.read_row(value, shape)]


def test_where_most_texts_begin_so_they_are_conversations(tmp_path: Path) -> None:
    chat, plain = {"text": WRITTEN["chatml"][0]}, {"text": "Once upon a time."}
    for values, wanted in (
        ([chat, chat, plain], Conversation),
        ([chat, plain, plain], Text),
        ([chat, plain], Text),
    ):
        shape = surveyed(tmp_path, values)
        assert kinds([chat, plain], shape) == [wanted, Text]
        assert templated_texts.describe_templates(shape)[0].startswith(
            f"{values.count(chat)} of {len(values)} texts begin as a chat template"
        )
    assert kinds([chat], surveyed(tmp_path, [chat], format="text")) == [Text]
    assert kinds([chat], RowShape(format="templated")) == [Conversation]
    assert templated_texts.describe_templates(surveyed(tmp_path, [plain])) == []
    with pytest.raises(RowError, match="begins with no mark"):
        rows.read_row({"text": "Never <|im_start|>"}, surveyed(tmp_path, [chat]))
    many = [chat] * 5 + [{"text": "plain " * 30_000}] * 12  # in chunks of their own
    assert kinds([chat], surveyed(tmp_path, many)) == [Text]
    assert surveyed(tmp_path, many).facts.templated == (5, 17)
    renamed = [{"body": chat["text"]}, {"body": chat["text"]}]
    assert kinds(renamed, surveyed(tmp_path, renamed, columns={"text": "body"})) == [
        Conversation,
        Conversation,
    ]


@pytest.mark.parametrize(
    "text", ["Once.</s>", "<s>Once.", "Once.<|endoftext|>\n", "<bos>Once.<eos>", "<|begin_of_text|>Once."]
)
def test_a_special_token_that_is_written_out_in_a_text_is_said(tmp_path: Path, text: str) -> None:
    shape = surveyed(tmp_path, [{"text": text}, {"text": "Twice."}])
    assert kinds([{"text": text}], shape) == [Text]
    (line,) = templated_texts.describe_templates(shape)
    assert line.startswith(
        f"1 of 2 texts begin or end with a special token written out, such as {shape.facts.spelled[1]}, "
        "which is trained as plain text"
    )
    assert shape.facts.spelled[1] in text


@pytest.mark.parametrize("column", ["content", "formatted", "conversation", "prompt"])
def test_another_column_that_begins_so_is_the_text_where_no_format_is_known(column: str) -> None:
    row = {"id": "1", column: WRITTEN["llama 2"][0]}
    (found,) = rows.read_row(row, RowShape())
    assert found == templated({"text": WRITTEN["llama 2"][0]})


def test_lines_of_a_text_that_are_conversations_are_rows(tmp_path: Path) -> None:
    lines = ["<s>[INST] Q [/INST] A </s>", "", "<s>[INST] Q2 [/INST] A2 </s>", "### Human: Q### Assistant: A"]
    file = write(tmp_path / "a.txt", "\r\n".join(lines) + "\r\n")
    assert test_row_files.read(file) == [(n, {"text": line}) for n, line in enumerate(lines, start=1) if line]
    assert len(test_row_files.read(file, letters=True)) == 1
    whole = write(tmp_path / "b.txt", WRITTEN["chatml"][0])
    assert test_row_files.read(whole) == [(1, {"text": WRITTEN["chatml"][0]})]


def test_a_text_beside_a_pair_is_not_looked_at() -> None:
    row = {"instruction": "Q", "output": "A", "text": WRITTEN["alpaca"][0]}
    (found,) = rows.read_row(row, RowShape())
    assert isinstance(found, Conversation)
    assert [message.content for message in found.messages] == ["Q", "A"]


PAIRS = [
    (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
        "A<|im_end|>",
        [S, Q, A],
    ),
    ("<|im_start|>user\nQ<|im_end|>\n", "<|im_start|>assistant\nA<|im_end|>\n", [Q, A]),
    ("<s>[INST] Q [/INST]", " A </s>", [Q, A]),
    ("Human: Q\n\nAssistant:", " A", [Q, A]),
    ("S\n\n### Instruction:\nQ\n\n### Response:\n", "A", [S, Q, A]),
    ("<|user|>\nQ<|end|>\n<|assistant|>\n", "A<|end|>", [Q, A]),
    ("<s>[INST] Q [/INST] A </s><s>[INST] Q2 [/INST]", "A2</s>", TWICE),
]


@pytest.mark.parametrize(
    "keys", [("prompt", "completion"), ("instruction", "output"), ("question", "answer")]
)
@pytest.mark.parametrize(("asked", "said", "turns"), PAIRS)
def test_a_question_that_a_template_wrote_is_read_with_its_answer(
    tmp_path: Path, asked: str, said: str, turns: list[Any], keys: tuple[str, str]
) -> None:
    row = dict(zip(keys, (asked, said), strict=True))
    shape = surveyed(tmp_path, [row, row])
    (found,) = rows.read_row(row, shape)
    assert isinstance(found, Conversation)
    assert [(message.role, message.content) for message in found.messages] == turns
    assert [message.trained for message in found.messages] == [False] * (len(turns) - 1) + [True]
    assert templated_texts.describe_templates(shape)[0].startswith(
        "2 of 2 questions begin as a chat template"
    )
    assert rows.unread_values(row, shape) == {}
    plain = {keys[0]: "q", keys[1]: "a"}
    (other,) = rows.read_row(row, surveyed(tmp_path, [row, plain, plain]))
    assert isinstance(other, Conversation)
    assert other.messages[0].content == asked


def test_a_question_that_ends_with_an_answer_is_refused() -> None:
    with pytest.raises(RowError, match="the question ends with an answer"):
        continued({"prompt": WRITTEN["chatml"][0], "completion": "A"})
    with pytest.raises(RowError, match=r"'B' stands between <\|im_end\|>"):
        continued({"prompt": PAIRS[0][0], "completion": "A<|im_end|>B"})


@pytest.mark.parametrize("name", WRITTEN)
def test_each_template_is_seen_in_a_whole_source(tmp_path: Path, name: str) -> None:
    for value in ({"text": WRITTEN[name][0]}, {"text": WRITTEN[name][0].replace("<", "\\u003c")}):
        line = json.dumps(value).replace("\\\\u003c", "\\u003c")
        file = write(tmp_path / "rows.jsonl", f"{line}\n{line}\n")
        assert scan.scan_source([(file, "auto")], RowShape()).facts.templated == (2, 2)


def test_plain_texts_in_other_files_count_too(tmp_path: Path) -> None:
    chat, plain = tmp_path / "chat.jsonl", tmp_path / "plain.jsonl"
    chat.write_text(
        '{"text": "<|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nYo<|im_end|>\\n"}\n' * 2,
        encoding="utf-8",
    )
    plain.write_text('{"text": "a story"}\n' * 5, encoding="utf-8")
    for order in ((chat, plain), (plain, chat)):
        facts = scan.scan_source([(file, "auto") for file in order], RowShape()).facts
        assert (facts.templated, facts.chats) == ((2, 7), False)
