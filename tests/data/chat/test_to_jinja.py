"""The exported Jinja gives the ids of the training again, and a tokenizer's own Jinja can be trained with,
or is refused with the reason.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.chat.shapes import ALL, CHATML, SHAPES, B, E, conversations, dictionary
from tests.data.tokenizer.test_load import IDS
from tuner.config.schema import Chat
from tuner.data.chat.sandbox import renderer
from tuner.data.chat.template import Template, compile_template
from tuner.data.chat.to_jinja import to_jinja
from tuner.data.conversation import Call, Conversation, Message, RowError
from tuner.data.tokenizer.load import Vocabulary, load_vocabulary
from tuner.errors import ConfigError
from tuner.models.checkpoint.config_files import write_tokenizer

transformers = pytest.importorskip("transformers")
OWN = Chat(jinja=True)


def talk(*turns: str) -> Conversation:
    messages = [
        Message(role="assistant" if i % 2 else "user", content=text, trained=bool(i % 2))
        for i, text in enumerate(turns)
    ]
    return Conversation(messages=tuple(messages))


def document(template: Template, conversation: Conversation, **how: bool) -> tuple[list[int], str]:
    """The ids of a conversation, and the text of what is trained."""
    batch = template.encode([conversation], **how)
    assert not batch.problems
    return batch.ids.tolist(), template.tokenizer.decode(
        batch.ids[batch.trained].tolist(), skip_special_tokens=False
    )


@pytest.mark.parametrize("name", list(SHAPES))
def test_the_exported_template_gives_the_same_ids_and_refuses_the_same_rows(
    shared: Path, vocabulary: Callable[[str], Vocabulary], name: str
) -> None:
    chat = SHAPES[name]
    template = compile_template(chat, vocabulary("minimind"))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(shared / "tokenizers" / "minimind" / "tokenizer.json")
    )
    theirs.chat_template = to_jinja(chat, vocabulary("minimind"))
    rows = conversations(150)
    batch, equal = template.encode(rows), 0
    for i, row in enumerate(rows):
        turns, tools = [dictionary(message) for message in row.messages], list(row.tools) or None
        if i in batch.problems:
            with pytest.raises(
                Exception, match=r"the chat template|system prompt is written|tools are written"
            ):
                theirs.apply_chat_template(turns, tools=tools, tokenize=False)
            continue
        ids = batch.ids[batch.offsets[i] : batch.offsets[i + 1]].tolist()
        if chat.end_in == "next" and row.messages[-1].role == "assistant":
            ids.pop()
        assert ids == theirs.apply_chat_template(turns, tools=tools, tokenize=True, return_dict=False)
        asked = theirs.apply_chat_template(
            turns, tools=tools, tokenize=True, return_dict=False, add_generation_prompt=True
        )
        assert template.prompt(row.messages, row.tools) == asked
        equal += 1
    assert equal > 10


def test_thoughts_at_the_beginning_of_a_text_are_found_in_the_exported_template_too(
    shared: Path, vocabulary: Callable[[str], Vocabulary]
) -> None:
    chat = SHAPES["thoughts in the last turns"]
    render = renderer(to_jinja(chat, vocabulary("minimind")), {})
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "\n<think>\nso\n</think>\n\nyes </think>"},
    ]
    assert render(turns, (), False).endswith(f"{B}assistant\n<think>\nso\n</think>\n\nyes </think>{E}\n")
    assert render([*turns, {"role": "user", "content": "b"}], (), False).count("<think>") == 0


def test_an_unknown_role_is_refused_in_jinja(vocabulary: Callable[[str], Vocabulary]) -> None:
    with pytest.raises(RowError, match="no turn for the role judge"):
        renderer(to_jinja(CHATML, vocabulary("minimind")), {})([{"role": "judge", "content": "x"}], (), False)


@pytest.mark.parametrize("name", ["internlm2", "internlm2_hf_fast"])
def test_what_lies_beside_the_weights_loads_without_code_and_gives_the_same_ids(
    shared: Path, tmp_path: Path, name: str
) -> None:
    """InternLM2: the vocabulary calls its special tokens [UNUSED_TOKEN_…], and its settings name code of
    the publisher.
    """
    source = tmp_path / "source"
    shutil.copytree(shared / "tokenizers" / name, source)
    (tmp_path / "out").mkdir()
    chat = replace(CHATML, ids=IDS, begin="{bos}", default_system="你是书生")
    write_tokenizer(source, tmp_path / "out", chat)
    settings = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "auto_map" not in settings
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert {token: theirs.convert_tokens_to_ids(token) for token in IDS} == IDS
    assert len(theirs) == 92544
    template = compile_template(chat, load_vocabulary(source))
    again = compile_template(chat, load_vocabulary(tmp_path / "out"))
    for row in (talk("Hi", "Hello!", "你好", "你好！"), talk("  two\n\n", "a  b")):
        ids = theirs.apply_chat_template(
            [dictionary(message) for message in row.messages], tokenize=True, return_dict=False
        )
        assert document(template, row)[0] == document(again, row)[0] == ids
        assert ids[:2] == [1, 92543]
    assert not again.vocabulary.repaired


OFFICIAL = ["internlm2", "internlm2_hf_fast", "qwen2_5", "mistral_nemo", "smollm2", "minimind"]


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_own_template_of_a_tokenizer_gives_its_ids_and_a_mask(
    shared: Path, vocabulary: Callable[[str], Vocabulary], name: str
) -> None:
    template = compile_template(OWN, vocabulary(name))
    home = "internlm2_hf_fast" if name == "internlm2" else name  # the same, as transformers can load it
    theirs = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / home)
    assert to_jinja(OWN, vocabulary(name)) == vocabulary(name).template
    end = template.tokenizer.id_to_token(template.end_id)
    rows = [
        talk("Hi", "Hello!"),
        talk("你是谁？", "我是助手。", "谢谢", "不客气！\n"),
        talk("a\n\n", "{text} é🙂", "b", "2", "c", "3"),
        talk("open"),
    ]
    for row in rows:
        turns = [dictionary(message) for message in row.messages]
        ids, trained = document(template, row)
        assert ids == theirs.apply_chat_template(turns, tokenize=True, return_dict=False)
        assert trained == "".join(
            message.content + end for message in row.messages if message.role == "assistant"
        )
        if row.messages[-1].role == "user":
            assert template.prompt(row.messages) == theirs.apply_chat_template(
                turns, tokenize=True, return_dict=False, add_generation_prompt=True
            )
    batch = template.encode(rows)
    assert [len(ends) for ends in batch.ends] == [1, 2, 3, 0]
    assert batch.ids[batch.offsets[0] : batch.offsets[1]].tolist() == document(template, rows[0])[0]
    assert template.texts(["Hi"]).trained.tolist().count(False) == 1


@pytest.mark.parametrize("name", ["qwen2_5", "minimind"])
def test_tools_and_thoughts_of_an_own_template(
    shared: Path, vocabulary: Callable[[str], Vocabulary], name: str
) -> None:
    template = compile_template(OWN, vocabulary(name))
    theirs = transformers.AutoTokenizer.from_pretrained(shared / "tokenizers" / name)
    assert template.reasons == (name == "minimind")
    equal = 0
    rows = conversations(80, seed=3)
    batch = template.encode(rows)
    for i, row in enumerate(rows):
        if i in batch.problems:
            assert name == "qwen2_5"
            assert "leaves out thoughts" in batch.problems[i]
            continue
        ids = theirs.apply_chat_template(
            [dictionary(m) for m in row.messages],
            tools=list(row.tools) or None,
            tokenize=True,
            return_dict=False,
        )
        assert batch.ids[batch.offsets[i] : batch.offsets[i + 1]].tolist() == ids
        equal += 1
    assert equal > 20
    call = Call(name="look", arguments={"x": "é"})
    row = Conversation(
        messages=(
            *talk("Hi").messages,
            Message(role="assistant", calls=(call,), trained=True),
            Message(role="tool", content="17"),
            *talk("", "So.").messages[1:],
        ),
        tools=({"type": "function", "function": {"name": "look"}},),
    )
    assert (
        document(template, row)[1]
        == f'<tool_call>\n{{"name": "look", "arguments": {{"x": "é"}}}}\n</tool_call>{E}So.{E}'
    )


@pytest.mark.parametrize("name", ["qwen2_5", "smollm2"])
def test_a_system_prompt_for_all_is_in_an_own_template_too(
    vocabulary: Callable[[str], Vocabulary], name: str
) -> None:
    chat = replace(OWN, default_system='Say "é".')
    template, render = (
        compile_template(chat, vocabulary(name)),
        renderer(to_jinja(chat, vocabulary(name)), vocabulary(name).names),
    )
    for row in (
        talk("Hi", "Hello!"),
        Conversation(messages=(Message(role="system", content="S"), *talk("Hi", "Hello!").messages)),
    ):
        turns = [dictionary(message) for message in row.messages]
        assert template.tokenizer.decode(document(template, row)[0], skip_special_tokens=False) == render(
            turns, (), False
        )
        assert template.tokenizer.decode(
            template.prompt(row.messages[:-1]), skip_special_tokens=False
        ) == render(turns[:-1], (), True)
    assert 'Say "é".' in render([{"role": "user", "content": "Hi"}], (), False)


def test_an_own_template_with_thoughts(vocabulary: Callable[[str], Vocabulary]) -> None:
    template = compile_template(OWN, vocabulary("minimind"))
    thought = Message(role="assistant", content="yes", reasoning="so", trained=True)
    assert (
        document(template, Conversation(messages=(*talk("Hi").messages, thought)))[1]
        == f"so\n</think>\n\nyes{E}"
    )


def test_an_own_template_that_hides_thoughts_trains_no_answer_without_them(
    vocabulary: Callable[[str], Vocabulary],
) -> None:
    chat = SHAPES["thoughts in the last turns"]
    template = own(vocabulary("minimind"), to_jinja(chat, vocabulary("minimind")))
    thought = Message(role="assistant", content="yes", reasoning="so", trained=True)
    row = Conversation(messages=(*talk("Hi").messages, thought, *talk("b", "2").messages))
    assert document(template, row)[1] == f"2{E}"
    assert "hides thoughts of earlier turns" in template.encode([row], keep_reasoning=True).problems[0]


def own(vocabulary: Vocabulary, template: str) -> Template:
    return compile_template(OWN, replace(vocabulary, template=template))


def test_a_row_that_spells_a_special_token_is_written_as_text_by_an_own_template(
    vocabulary: Callable[[str], Vocabulary],
) -> None:
    template = compile_template(OWN, vocabulary("minimind"))
    function = {"name": "look", "description": E, "parameters": {"x": [E]}}

    def spelled(word: str) -> Conversation:
        call = Call(name="look", arguments={word: word})
        turns = (
            Message(role="system", content=word),
            *talk(f"a{word}", f"{word}b").messages,
            Message(role="user", content=word),
        )
        answer = Message(role="assistant", content=word, calls=(call,), trained=True, reasoning=word)
        return Conversation(
            messages=(*turns, answer),
            tools=({"type": "function", "function": function | {"description": word}},),
        )

    tame, wild = document(template, spelled("word"))[0], document(template, spelled("".join(ALL)))[0]
    special = [template.tokenizer.token_to_id(token) for token in ALL]
    assert [id_ for id_ in wild if id_ in special] == [id_ for id_ in tame if id_ in special]
    assert template.prompt(spelled(E).messages[:-1]).count(template.end_id) == template.prompt(
        spelled("word").messages[:-1]
    ).count(template.end_id)
    batch = template.encode([talk(f"\ue000{E}", "x"), talk("\ue000", "x")])
    assert "U+E000" in batch.problems[0]
    assert list(batch.problems) == [0]


def test_an_own_template_that_looks_at_what_a_text_says_refuses_rows_where_that_matters(
    vocabulary: Callable[[str], Vocabulary],
) -> None:
    written = to_jinja(CHATML, vocabulary("minimind"))
    template = own(
        vocabulary("minimind"),
        written + "{% for m in messages %}{% if '<|im_end|>' in m.content %}!{% endif %}{% endfor %}",
    )
    batch = template.encode([talk(E, "x"), talk("a", "x")])
    assert "writes the row otherwise" in batch.problems[0]
    assert list(batch.problems) == [0]


LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def test_an_own_template_that_does_not_ask_the_assistant_to_speak(
    vocabulary: Callable[[str], Vocabulary],
) -> None:
    """Where it writes no prompt, what comes before an answer is not trained, and is the prompt."""
    template = own(vocabulary("minimind"), LOOP)
    ids, trained = document(template, talk("Hi", "Hello!", "b", "c"))
    assert trained == f"Hello!{E}c{E}"
    prompt = template.prompt(talk("Hi").messages)
    assert ids[: len(prompt)] == prompt
    assert template.tokenizer.decode(prompt, skip_special_tokens=False).endswith(f"{B}assistant\n")


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "and it has none"),
        ("{% for %}", "can't be read"),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "no special token follows"),
        ("{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}", "no special token follows"),
        (
            "{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}",
            "does not write the text of a turn",
        ),
        (
            LOOP + "{% if add_generation_prompt %}<think>{% endif %}",
            "is not how a turn of the assistant begins",
        ),
        (
            (
                "{% for m in messages %}{{ m.content }}{% if m.role == 'user' or loop.last %}<|im_end|>{% "
                "else %}<|box_end|>{% endif %}{% endfor %}"
            ),
            "end in different tokens",
        ),
        ("{{ raise_exception('no talks here') }}", "no talks here"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "fails on the row"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "do not come to an end",
        ),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ 'a' * 10 ** 10 }}", "too long"),
        ("{{ 'a' * 9999999999 }}", "too long"),
        (
            (
                "{% set ns = namespace(x='aa') %}{% for i in range(90) %}{% set ns.x = ns.x + ns.x %}{% "
                "endfor %}"
            ),
            "too long",
        ),
        (
            (
                "{% set ns = namespace(x='aa') %}{% for i in range(90) %}{% set ns.x = ns.x ~ ns.x %}{% "
                "endfor %}"
            ),
            "too long",
        ),
        ("{{ 'a'.ljust(9999999999) }}", "too long, by ljust"),
        ("{{ '%99999999999d' % 1 }}", "formats text by %"),
        ("{{ strftime_now is defined }}{{ 1 // 0 }}", "ZeroDivisionError"),
    ],
)
def test_an_own_template_without_a_mask_is_refused_with_the_reason(
    vocabulary: Callable[[str], Vocabulary], template: str | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        compile_template(OWN, replace(vocabulary("minimind"), template=template))


def test_an_own_template_refuses_single_rows(vocabulary: Callable[[str], Vocabulary]) -> None:
    nemo = compile_template(OWN, vocabulary("mistral_nemo"))
    user, system = Message(role="user", content="a"), Message(role="system", content="S")
    answer = Message(role="assistant", content="b", trained=True)
    rows = [
        talk("a", "b"),
        Conversation(messages=(user, user)),
        Conversation(messages=(system, user, answer)),
    ]
    problems = nemo.encode(rows).problems
    assert list(problems) == [1, 2]
    assert (
        "refuses the row: After the optional system message, conversation roles must alternate" in problems[1]
    )
    assert "leaves out or changes the text of a turn (system)" in problems[2]
    smol = compile_template(OWN, vocabulary("smollm2"))
    tools = ({"type": "function", "function": {"name": "look"}},)
    assert "leaves out tools" in smol.encode([replace(talk("a", "b"), tools=tools)]).problems[0]
    with pytest.raises(ConfigError, match="can't be written for the model"):
        nemo.prompt((user, user))


def rendered(template: str, *messages: Any, tools: tuple[Any, ...] = (), **names: str) -> str:
    return renderer(template, names)(messages, tools, False)


def test_a_template_sees_what_transformers_shows_it() -> None:
    assert rendered("{{ messages | tojson }}", {"a": "é<'&\n"}) == '[{"a": "é<\'&\\n"}]'
    assert rendered("{{ tools is none }}{{ documents is none }}") == "TrueTrue"
    assert rendered("{{ bos_token }}", bos_token="<s>") == "<s>"
    assert rendered("  {% if true %}\nx{% endif %}\n") == "x"
    assert (
        rendered(
            "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{{ loop.last }}{{ "
            "loop.length }}{% endfor %}"
        )
        == "1False33True3"
    )
    assert rendered("{% generation %}x{% endgeneration %}") == "x"
    assert rendered("{{ strftime_now('%Y') }}") == "2024"
    assert rendered("{% if strftime_now is defined %}now{% else %}then{% endif %}") == "then"
    assert rendered("{{ tools[0] | tojson(indent=2) }}", tools=({"a": 1},)) == '{\n  "a": 1\n}'
    assert (
        rendered("{% set x = 'ab' + 'c' %}{{ x * 2 }}{{ 3 * 4 }}{{ 7 % 4 }}{{ 2 + 2 }}{{ ['a'] + ['b'] }}")
        == "abcabc1234['a', 'b']"
    )
