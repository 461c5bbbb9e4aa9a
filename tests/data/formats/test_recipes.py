"""The shipped data sets: rows as their publishers describe them become the conversations that are meant."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from tuner.config.compose import compose
from tuner.config.schema import Config, Data
from tuner.config.view import View
from tuner.data.conversation import Call, Conversation, Message, Sample, Text, with_system
from tuner.data.files import row_files, splits
from tuner.data.formats import oasst_flat, rows
from tuner.data.formats.shape import RowShape
from tuner.data.sources import shape_of

FOLDER = Path(__file__).parents[3] / "conf" / "data"
RECIPES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
MIXTURES = {"mix", "alpaca_enzh", "alpaca_enzh_oasst1", "lawyer"}
YOURS = {"hub", "local", "mix", "persona"}
"""that say nothing of a set elsewhere"""


def recipe(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def shape(name: str) -> RowShape:
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in recipe(name).items()}
    return shape_of(View(Config(data=Data(**values)), "fetch_data").data)


def read(name: str, row: Any) -> list[Sample]:
    return list(rows.read_row(row, shape(name)))


def talk(*turns: tuple[str, str]) -> Conversation:
    """Turns of (role, text); answers are trained."""
    return Conversation(
        messages=tuple(Message(role=role, content=text, trained=role == "assistant") for role, text in turns)
    )  # type: ignore[arg-type]


def asked(question: str, answer: str) -> Conversation:
    return talk(("user", question), ("assistant", answer))


ORCA = "You are an AI assistant. You will be given a task."
COLOUR = "Pale Chestnut: a light brown with a pinkish tone."
GENERIC = {
    "idx": "1",
    "hash": "0",
    "source": "x",
    "category": None,
    "model": None,
    "system_prompt": None,
    "views": None,
    "language": None,
}
PAPER = {
    "id": "0704.0001",
    "submitter": "A",
    "authors": "A, B",
    "title": "Calculation of X",
    "comments": None,
    "doi": None,
    "categories": "hep-ph",
    "abstract": "  A fully\ndifferential calculation\n",
}

CASES: list[tuple[str, Any, list[Sample]]] = [
    (
        "alpaca",
        {"instruction": "Add.", "input": "1 and 2", "output": "3", "text": "Below is an instruction …"},
        [asked("Add.\n1 and 2", "3")],
    ),
    (
        "alpaca",
        {"instruction": "Say hello.", "input": "", "output": "Hello.", "text": "Below is …"},
        [asked("Say hello.", "Hello.")],
    ),
    (
        "alpaca_zh",
        {
            "instruction": "Add.",
            "input": "1",
            "output": "3",
            "instruction_zh": "相加。",
            "input_zh": "1和2",
            "output_zh": "3",
        },
        [asked("相加。\n1和2", "3")],
    ),
    (
        "alpaca_zh",
        {
            "instruction": "Hi",
            "input": "x",
            "output": "y",
            "instruction_zh": "你好",
            "input_zh": None,
            "output_zh": "你好！",
        },
        [asked("你好", "你好！")],
    ),
    (
        "code_alpaca",
        {"prompt": "Write a loop.", "completion": "for i in x: pass"},
        [asked("Write a loop.", "for i in x: pass")],
    ),
    (
        "open_platypus",
        {"input": "", "output": "B", "instruction": "A board game …", "data_source": "MATH/PRM-800K"},
        [asked("A board game …", "B")],
    ),
    (
        "openorca",
        {"id": "niv.1", "system_prompt": ORCA, "question": "Q", "response": "R"},
        [talk(("system", ORCA), ("user", "Q"), ("assistant", "R"))],
    ),
    ("openorca", {"id": "flan.2", "system_prompt": "", "question": "Q", "response": "R"}, [asked("Q", "R")]),
    (
        "slim_orca",
        {
            "conversations": [
                {"from": "system", "value": ORCA, "weight": None},
                {"from": "human", "value": "Q", "weight": 0},
                {"from": "gpt", "value": "R", "weight": 1},
            ]
        },
        [talk(("system", ORCA), ("user", "Q"), ("assistant", "R"))],
    ),
    (
        "wizardlm",
        {"idx": "a1", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "R"}]},
        [asked("Q", "R")],
    ),
    (
        "sql",
        {
            "answer": "SELECT COUNT(*) FROM head WHERE age > 56",
            "question": "How many are older than 56?",
            "context": "CREATE TABLE head (age INTEGER)",
        },
        [
            asked(
                "CREATE TABLE head (age INTEGER)\n\nHow many are older than 56?",
                "SELECT COUNT(*) FROM head WHERE age > 56",
            )
        ],
    ),
    (
        "gsm8k",
        {"question": "2 and 2?", "answer": "<<2+2=4>>4\n#### 4"},
        [asked("2 and 2?", "<<2+2=4>>4\n#### 4")],
    ),
    (
        "tiny_codes",
        {
            "prompt": "Write C.",
            "main_topic": "x",
            "subtopic": "y",
            "adjective": "z",
            "target_audience": "Beginners",
            "programming_language": "C",
            "common_sense_topic": "t",
            "idx": 7,
            "response": "int main",
        },
        [asked("Write C.", "int main")],
    ),
    (
        "medical",
        {"instruction": "血热的临床表现是什么?", "input": "", "output": "初发或复发病不久。"},
        [asked("血热的临床表现是什么?", "初发或复发病不久。")],
    ),
    ("colorist", {"color": "#d4b8a2", "description": COLOUR}, [asked(COLOUR, "#d4b8a2")]),
    ("lawyer_cases", {"input": "问", "output": "答"}, [asked("问", "答")]),
    ("lawyer_statutes", {"reference": ["第一条"], "question": "问", "answer": "答"}, [asked("问", "答")]),
    ("arxiv_gentitle", PAPER, [asked("  A fully\ndifferential calculation\n", "Calculation of X")]),
    (
        "dolly",
        {
            "instruction": "When did it begin?",
            "context": "It began in 2000.",
            "response": "In 2000.",
            "category": "closed_qa",
        },
        [asked("When did it begin?\nIt began in 2000.", "In 2000.")],
    ),
    (
        "dolly",
        {"instruction": "Name a fruit.", "context": "", "response": "Apple", "category": "open_qa"},
        [asked("Name a fruit.", "Apple")],
    ),
    (
        "ultrachat",
        {
            "prompt": "Q",
            "prompt_id": "0",
            "messages": [
                {"content": t, "role": r}
                for r, t in (("user", "Q"), ("assistant", "R"), ("user", "S"), ("assistant", "T"))
            ],
        },
        [talk(("user", "Q"), ("assistant", "R"), ("user", "S"), ("assistant", "T"))],
    ),
    (
        "openhermes",
        {
            **GENERIC,
            "conversations": [
                {"from": "human", "value": "Q", "weight": None},
                {"from": "gpt", "value": "R", "weight": None},
            ],
        },
        [asked("Q", "R")],
    ),
    (
        "no_robots",
        {
            "prompt": "Q",
            "prompt_id": "0",
            "category": "Chat",
            "messages": [
                {"content": "Be brief.", "role": "system"},
                {"content": "Q", "role": "user"},
                {"content": "R", "role": "assistant"},
            ],
        },
        [talk(("system", "Be brief."), ("user", "Q"), ("assistant", "R"))],
    ),
    (
        "smoltalk",
        {
            "messages": [{"content": "Q", "role": "user"}, {"content": "R", "role": "assistant"}],
            "source": "smol-magpie-ultra",
        },
        [asked("Q", "R")],
    ),
    (
        "tulu3",
        {
            "id": "x_1",
            "messages": [{"content": "Q", "role": "user"}, {"content": "R", "role": "assistant"}],
            "source": "ai2-adapt-dev/x",
        },
        [asked("Q", "R")],
    ),
    (
        "metamath",
        {"query": "Q", "response": "R", "type": "GSM_Rephrased", "original_question": "O"},
        [asked("Q", "R")],
    ),
    ("magicoder", {"instruction": "Q", "response": "R"}, [asked("Q", "R")]),
    ("belle", {"instruction": "写一首诗", "input": "", "output": "床前"}, [asked("写一首诗", "床前")]),
    ("firefly", {"kind": "ClassicalChinese", "input": "译", "target": "文"}, [asked("译", "文")]),
    ("tinystories", {"text": "Once upon a time …"}, [Text(text="Once upon a time …")]),
    (
        "oasst1_guanaco",
        {"text": "### Human: Q### Assistant: R\n### Step 1\nS### Human: T"},
        [talk(("user", "Q"), ("assistant", "R\n### Step 1\nS"), ("user", "T"))],
    ),
    ("oasst1_guanaco", {"text": "### Human: Q### Assistant: R"}, [asked("Q", "R")]),
    (
        "code_alpaca",
        {"prompt": "Sum a list.\n[1, 2]", "completion": "sum([1, 2])"},
        [asked("Sum a list.\n[1, 2]", "sum([1, 2])")],
    ),
    (
        "open_platypus",
        {"input": "x = 2", "output": "4", "instruction": "Square it.", "data_source": "scibench"},
        [asked("Square it.\nx = 2", "4")],
    ),
    (
        "slim_orca",
        {
            "conversations": [
                {"from": "human", "value": "Q", "weight": 0.0},
                {"from": "gpt", "value": "R", "weight": 1.0},
            ]
        },
        [asked("Q", "R")],
    ),
    (
        "wizardlm",
        {
            "idx": "b2",
            "conversations": [
                {"from": "human", "value": "Q"},
                {"from": "gpt", "value": "R"},
                {"from": "human", "value": "S"},
                {"from": "gpt", "value": "T"},
            ],
        },
        [talk(("user", "Q"), ("assistant", "R"), ("user", "S"), ("assistant", "T"))],
    ),
    (
        "sql",
        {
            "answer": "SELECT a FROM t",
            "question": "Which {a}?",
            "context": "CREATE TABLE t (a VARCHAR); CREATE TABLE u (b VARCHAR)",
        },
        [asked("CREATE TABLE t (a VARCHAR); CREATE TABLE u (b VARCHAR)\n\nWhich {a}?", "SELECT a FROM t")],
    ),
    (
        "gsm8k",
        {"question": "Half of 9?\n", "answer": "9/2=<<9/2=4.5>>4.5\n#### 4.5"},
        [asked("Half of 9?\n", "9/2=<<9/2=4.5>>4.5\n#### 4.5")],
    ),
    (
        "medical",
        {"instruction": "Answer the patient.", "input": "It hurts.", "output": "See a doctor."},
        [asked("Answer the patient.\nIt hurts.", "See a doctor.")],
    ),
    ("colorist", {"color": "#000000", "description": "Black."}, [asked("Black.", "#000000")]),
    (
        "lawyer_statutes",
        {"question": "甲\n\n乙？", "answer": "丙", "reference": ["第一条", "第二条"]},
        [asked("甲\n\n乙？", "丙")],
    ),
    (
        "ultrachat",
        {
            "prompt": "Q",
            "prompt_id": "1",
            "messages": [{"content": "Q", "role": "user"}, {"content": "R", "role": "assistant"}],
        },
        [asked("Q", "R")],
    ),
    (
        "openhermes",
        {
            **GENERIC,
            "conversations": [
                {"from": "system", "value": "Be brief.", "weight": None},
                {"from": "human", "value": "Q", "weight": None},
                {"from": "gpt", "value": "R", "weight": None},
            ],
        },
        [talk(("system", "Be brief."), ("user", "Q"), ("assistant", "R"))],
    ),
    (
        "no_robots",
        {
            "prompt": "Q",
            "prompt_id": "1",
            "category": "Open QA",
            "messages": [{"content": "Q", "role": "user"}, {"content": "R", "role": "assistant"}],
        },
        [asked("Q", "R")],
    ),
    (
        "smoltalk",
        {
            "messages": [
                {"content": "Be brief.", "role": "system"},
                {"content": "Q", "role": "user"},
                {"content": "R", "role": "assistant"},
            ],
            "source": "systemchats-30k",
        },
        [talk(("system", "Be brief."), ("user", "Q"), ("assistant", "R"))],
    ),
    ("belle", {"instruction": "改写\n", "input": "句子", "output": "新句"}, [asked("改写\n\n句子", "新句")]),
    ("firefly", {"kind": "NLI", "input": "前提\n假设", "target": "蕴含"}, [asked("前提\n假设", "蕴含")]),
    ("tinystories", {"text": ""}, []),
    (
        "tiny_codes",
        {
            "prompt": "Write SQL.",
            "programming_language": "relation database and SQL",
            "idx": 8,
            "response": "SELECT 1",
        },
        [asked("Write SQL.", "SELECT 1")],
    ),
    (
        "lawyer_cases",
        {"input": "欠款不还，后果严重吗？", "output": "可能有以下后果：\n1. 利息"},
        [asked("欠款不还，后果严重吗？", "可能有以下后果：\n1. 利息")],
    ),
    (
        "arxiv_gentitle",
        {**PAPER, "title": "On\n  Y", "abstract": "We show $y$.", "versions": [{"version": "v1"}]},
        [asked("We show $y$.", "On\n  Y")],
    ),
    (
        "tulu3",
        {
            "id": "x_2",
            "messages": [
                {"content": t, "role": r}
                for r, t in (("system", "Be brief."), ("user", "Q"), ("assistant", "R"))
            ],
            "source": "ai2-adapt-dev/y",
        },
        [talk(("system", "Be brief."), ("user", "Q"), ("assistant", "R"))],
    ),
    (
        "metamath",
        {"query": "P", "response": "The answer is: 2", "type": "MATH_FOBAR", "original_question": "O"},
        [asked("P", "The answer is: 2")],
    ),
    (
        "magicoder",
        {"instruction": "Q\n```\nx\n```", "response": "```\ny\n```"},
        [asked("Q\n```\nx\n```", "```\ny\n```")],
    ),
]


@pytest.mark.parametrize(
    ("name", "row", "expected"), CASES, ids=[f"{name}-{i}" for i, (name, _, _) in enumerate(CASES)]
)
def test_rows_become_the_conversations_that_are_meant(name: str, row: Any, expected: list[Sample]) -> None:
    assert read(name, row) == expected


@pytest.mark.parametrize("name", ["oasst1", "oasst2"])
def test_messages_of_openassistant_become_the_best_path_of_each_tree(name: str) -> None:
    def message(number: str, parent: str | None, role: str, text: str, rank: float | None) -> dict[str, Any]:
        row = {
            "message_id": number,
            "parent_id": parent,
            "user_id": "u",
            "created_date": "2023",
            "text": text,
            "role": role,
            "lang": "en",
            "review_count": 3,
        }
        return row | {
            "review_result": True,
            "deleted": False,
            "rank": rank,
            "synthetic": False,
            "model_name": None,
            "detoxify": None,
            "message_tree_id": "1",
            "tree_state": "ready_for_export",
            "emojis": None,
            "labels": None,
        }

    tree = [
        message("1", None, "prompter", "Q", None),
        message("2", "1", "assistant", "worse", 1.0),
        message("3", "1", "assistant", "better", 0.0),
    ]
    assert oasst_flat.is_flat(tree[0], shape(name))
    (grown,) = oasst_flat.group_rows(enumerate(tree, start=1), shape(name))
    assert grown.samples == (asked("Q", "better"),)


def test_tools_of_glaive_are_called_and_answer() -> None:
    tools = [{"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}]
    said = [
        ("human", "1 + 1?"),
        ("function_call", '{"name": "add", "arguments": {"a": 1}}'),
        ("observation", '{"sum": 2}'),
        ("gpt", "It is 2."),
    ]
    row = {
        "conversations": [{"from": who, "value": value} for who, value in said],
        "tools": json.dumps(tools),
    }
    (found,) = read("glaive_toolcall", row)
    assert isinstance(found, Conversation)
    assert [tool["function"]["name"] for tool in found.tools] == ["add"]
    assert [message.role for message in found.messages] == ["user", "assistant", "tool", "assistant"]
    assert found.messages[1].calls == (Call(name="add", arguments={"a": 1}),)
    assert [message.trains for message in found.messages] == [False, True, False, True]


def test_every_recipe_is_tried_here() -> None:
    tried = {name for name, _, _ in CASES} | {"oasst1", "oasst2", "glaive_toolcall"}
    assert set(RECIPES) == tried | MIXTURES | YOURS


LISTINGS = {
    "oasst1": (
        [
            "data/train-00000-of-00001-b42a775f407cee45.parquet",
            "data/validation-00000-of-00001-1.parquet",
            "2023-04-12_oasst_ready.trees.jsonl.gz",
            "2023-04-12_oasst_all.messages.jsonl.gz",
        ],
        1,
    ),
    "oasst1_guanaco": (
        ["openassistant_best_replies_train.jsonl", "openassistant_best_replies_eval.jsonl"],
        1,
    ),
    "code_alpaca": (
        [
            "data/train-00000-of-00001.parquet",
            "data/test-00000-of-00001.parquet",
            "create_dataset.py",
            "dataset_infos.json",
        ],
        1,
    ),
    "openorca": (["1M-GPT4-Augmented.parquet", "3_5M-GPT3_5-Augmented.parquet", "OpenOrca Logo.png"], 2),
    "gsm8k": (
        [
            "main/train-00000-of-00001.parquet",
            "main/test-00000-of-00001.parquet",
            "socratic/train-00000-of-00001.parquet",
        ],
        1,
    ),
    "medical": (
        [
            "finetune/train_zh_0.json",
            "finetune/train_en_1.json",
            "finetune/test_zh_0.json",
            "pretrain/train_encyclopedia.json",
            "medical.py",
        ],
        2,
    ),
    "colorist": (["colors.jsonl", "prepare.py", "burkelibbey--colors/train/0000.parquet"], 1),
    "ultrachat": (
        [
            "data/train_sft-00000-of-00003-a.parquet",
            "data/train_gen-00000-of-00003-b.parquet",
            "data/test_sft-00000-of-00001-c.parquet",
        ],
        1,
    ),
    "alpaca_zh": (["Alpaca_data_gpt4_zh.jsonl", ".gitattributes", "README.md"], 1),
    "wizardlm": (["WizardLM_evol_instruct_V2_143k.json", "README.md"], 1),
    "sql": (["sql_create_context_v4.json", "README.md"], 1),
    "firefly": (["firefly-train-1.1M.jsonl", "len_distribution.png"], 1),
    "belle": (["Belle_open_source_1M.json", "README.md"], 1),
    "slim_orca": (["oo-labeled_correct.gpt4.sharegpt.jsonl", "README.md"], 1),
    "openhermes": (["openhermes2_5.json", "README.md"], 1),
    "glaive_toolcall": (["glaive_toolcall.json", "README.md"], 1),
    "metamath": (["MetaMathQA-395K.json", "README.md"], 1),
    "open_platypus": (["data/train-00000-of-00001-4fe2df04669d1669.parquet", "README.md"], 1),
    "smoltalk": (
        [
            "data/all/train-00000-of-00009.parquet",
            "data/all/train-00001-of-00009.parquet",
            "data/all/test-00000-of-00001.parquet",
            "data/smol-summarize/train-00000-of-00001.parquet",
        ],
        2,
    ),
    "tinystories": (
        [
            "data/train-00000-of-00004-2d5a1467fff1081b.parquet",
            "data/validation-00000-of-00001-869c898b519ad725.parquet",
            "TinyStories-train.txt",
            "TinyStories-valid.txt",
            "MLP_input_output.npy",
        ],
        1,
    ),
}


@pytest.mark.parametrize("name", LISTINGS)
def test_the_files_of_a_published_set_are_chosen(name: str) -> None:
    paths, count = LISTINGS[name]
    patterns = recipe(name).get("files")
    assert (
        len(splits.choose_files(paths, [patterns] if isinstance(patterns, str) else patterns, None, name))
        == count
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_it_is_and_composes(name: str) -> None:
    first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# ")
    assert len(first) < 180
    needed = {
        "hub": ["data.repo=org/name"],
        "local": ["data.path=x.jsonl"],
        "mix": ["data.of={alpaca: 0.5, gsm8k: 100}"],
    }
    config = compose(["model=smollm2_135m_q4", f"data={name}", *needed.get(name, [])])
    assert bool(config.data.parts) == (name in MIXTURES)
    known = {f.name for f in fields(Data)}
    assert set(recipe(name)) <= known
    for part in config.data.parts or (config.data,):
        assert (part.repo is None) == (part.source not in ("hub", "modelscope"))


def test_a_mixture_takes_each_source_as_its_own_recipe_reads_it() -> None:
    config = compose(["model=smollm2_135m_q4", "data=alpaca_enzh_oasst1"])
    assert [(part.label, part.repo, part.format, part.take) for part in config.data.parts] == [
        ("alpaca", "tatsu-lab/alpaca", "alpaca", 1.0),
        ("alpaca_zh", "silk-road/alpaca-data-gpt4-chinese", "alpaca", 1.0),
        ("oasst1_guanaco", "timdettmers/openassistant-guanaco", "guanaco", 1.0),
    ]
    assert config.data.parts[1].columns == recipe("alpaca_zh")["columns"]
    lawyer = compose(["model=smollm2_135m_q4", "data=lawyer"])
    assert [part.system for part in lawyer.data.parts] == [
        recipe("lawyer_cases")["system"],
        recipe("lawyer_statutes")["system"],
    ]


@pytest.mark.parametrize("name", ["sql", "colorist", "arxiv_gentitle", "lawyer_cases", "lawyer_statutes"])
def test_a_set_whose_rows_do_not_say_the_task_has_a_system_prompt_that_does(name: str) -> None:
    system = compose(["model=smollm2_135m_q4", f"data={name}"]).data.system
    assert system
    ((found,), *_) = [expected for case, _, expected in CASES if case == name]
    assert isinstance(found, Conversation)
    assert with_system(found, system).messages[0] == Message(role="system", content=system)


@pytest.mark.parametrize(
    ("name", "file", "count"),
    [
        ("gsm8k", "eval/gsm8k_train_1500.jsonl", 1500),
        ("alpaca", "alpaca/alpaca_en.json", 795),
        ("belle", "alpaca/alpaca_zh.json", 794),
        ("oasst1_guanaco", "oasst/oasst1_guanaco.jsonl", 733),
        ("glaive_toolcall", "sharegpt/glaive_toolcall_en.json", 249),
        ("wizardlm", "sharegpt/vicuna_identity.json", 398),
        ("ultrachat", "messages/openai_multiturn.jsonl", 156),
        ("tinystories", "pretrain/c4_demo.jsonl", 232),
    ],
)
def test_real_rows_of_a_set_are_read_to_the_last(name: str, file: str, count: int, shared: Path) -> None:
    found = [
        row for chunk in row_files.chunks(shared / "data" / file) for _, row in row_files.parse_rows(chunk)
    ]
    samples = [read(name, row) for row in found]
    assert len(samples) == count
    assert all(
        len(one) == 1 and (isinstance(one[0], Text) or (isinstance(one[0], Conversation) and one[0].trains))
        for one in samples
    )


def test_real_trees_of_openassistant_are_read_to_the_last(shared: Path) -> None:
    chunks = row_files.chunks(shared / "data" / "oasst" / "oasst_en_messages.jsonl")
    grown = list(
        oasst_flat.group_rows(
            (entry for chunk in chunks for entry in row_files.parse_rows(chunk)), shape("oasst1")
        )
    )
    assert len(grown) == 77
    assert sum(len(tree.numbers) for tree in grown) == 891
    assert not any(tree.bad for tree in grown)
    assert sum(len(tree.samples) for tree in grown) > 70
