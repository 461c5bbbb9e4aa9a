"""The names of XTuner's configs: each has an equal recipe, or is refused with what comes nearest."""

import random
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SHARED, Tuner
from tuner.config.compose import compose, group_options
from tuner.config.xtuner_names import STAND_IN, Equal, bare_name, equal_recipe
from tuner.errors import ConfigError

OPTIONS = group_options()
HAD, REFUSED = 473, 116
"""of XTuner's names, four of which are scripts"""


@pytest.fixture(scope="module")
def names() -> list[str]:
    """XTuner's, as `xtuner list-cfg` prints them."""
    file = SHARED / "xtuner_configs.txt"
    if not file.is_file():
        pytest.skip("no ../shared beside the repository")
    return file.read_text(encoding="utf-8").split()


def equals(names: list[str]) -> Iterator[tuple[str, Equal | str]]:
    """Each name with its equal, or with why there is none."""
    for name in names:
        try:
            yield name, equal_recipe(name, OPTIONS)
        except ConfigError as error:
            yield name, str(error)


def test_each_name_has_an_equal_or_a_reason_and_what_comes_nearest(names: list[str]) -> None:
    found = dict(equals(names))
    refused = {name: text for name, text in found.items() if isinstance(text, str)}
    assert (len(found) - len(refused), len(refused)) == (HAD, REFUSED)
    nearest = set()
    for name, text in refused.items():
        assert text.startswith(f"XTuner's {name} can't be had: ")
        if not name.startswith("convert_"):
            nearest.add(text.partition("Write: python -m tuner copy ")[2])
    for line in nearest:
        near, *words = shlex.split(line)
        assert equal_recipe(near, OPTIONS).words, words


def test_the_nearest_of_each_kind_composes(names: list[str]) -> None:
    kinds = {}
    for _, text in equals(names):
        if isinstance(text, str) and "Write: " in text:
            why, _, line = text.partition(" Write: python -m tuner copy ")
            kinds[why.partition("can't be had")[2]] = line
    assert len(kinds) > 7
    for line in kinds.values():
        near, *words = shlex.split(line)
        compose([*equal_recipe(near, OPTIONS).words, *words])


def test_each_word_of_an_equal_composes(names: list[str]) -> None:
    """So many names that each word that any of them stands for is among them."""
    seen: set[str] = set()
    for name, equal in equals(names):
        assert isinstance(equal, str) or len(equal.differs) > 4, name
        if not isinstance(equal, str) and not seen.issuperset(equal.words):
            seen.update(equal.words)
            compose(equal.words)


@pytest.mark.slow
def test_each_equal_composes(names: list[str]) -> None:
    for name, equal in equals(names):
        if not isinstance(equal, str):
            config = compose(equal.words)
            assert (config.data.path == STAND_IN) == equal.own_data, name


@pytest.mark.parametrize(
    ("name", "repo", "data", "numbers"),
    [  # from XTuner 0.2.0's files: epochs, rate, tokens a sequence and a step; quant, rank, alpha, dropout
        (
            "internlm2_chat_7b_qlora_oasst1_e3",
            "internlm/internlm2-chat-7b",
            "timdettmers/openassistant-guanaco",
            (3, 2e-4, 2048, 32768, "nf4", 64, 16, 0.1),
        ),
        (
            "baichuan2_13b_base_qlora_oasst1_512_e3",
            "baichuan-inc/Baichuan2-13B-Base",
            "timdettmers/openassistant-guanaco",
            (3, 2e-4, 512, 8192, "nf4", 64, 16, 0.1),
        ),
        (
            "llama2_70b_int8_lora_open_platypus_e1",
            "meta-llama/Llama-2-70b-hf",
            "garage-bAInd/Open-Platypus",
            (1, 3e-4, 2048, 32768, "int8", 16, 16, 0.05),
        ),
        (
            "minicpm_2b_lora_alpaca_zh_e3",
            "openbmb/MiniCPM-2B-sft-bf16",
            "silk-road/alpaca-data-gpt4-chinese",
            (3, 2e-4, 2048, 32768, "none", 64, 16, 0.1),
        ),
        (
            "qwen_7b_chat_qlora_colorist_e5",
            "Qwen/Qwen-7B-Chat",
            "burkelibbey/colors",
            (5, 2e-4, 2048, 32768, "nf4", 64, 16, 0.1),
        ),
        (
            "qwen1_5_110b_full_alpaca_e3",
            "Qwen/Qwen1.5-110B",
            "tatsu-lab/alpaca",
            (3, 1e-5, 2048, 65536, None),
        ),
        (
            "gemma_2b_it_full_alpaca_e3",
            "google/gemma-2b-it",
            "tatsu-lab/alpaca",
            (3, 2e-5, 2048, 32768, None),
        ),
        (
            "internlm2_7b_full_finetune_custom_dataset_e1",
            "internlm/internlm2-7b",
            None,
            (1, 4e-5, 32768, 64 * 32768, None),
        ),
        (
            "mistral_7b_full_finetune_custom_sft_e1",  # QLoRA, whatever it is called
            "mistralai/Mistral-7B-v0.1",
            None,
            (1, 2e-4, 32768, 16 * 32768, "nf4", 64, 16, 0.1),
        ),
    ],
)
def test_numbers_are_xtuners(name: str, repo: str, data: str | None, numbers: tuple[object, ...]) -> None:
    config = compose(equal_recipe(name, OPTIONS).words)
    algo = config.algo
    assert (config.model.repo, config.data.repo) == (repo, data)
    adapter = (algo.quant, algo.r, algo.alpha, algo.dropout) if algo.uses_adapter else (None,)
    assert (algo.epochs, algo.optim.lr, config.data.length, algo.batch_tokens, *adapter) == numbers


def test_long_sequences_are_shared_as_there() -> None:
    config = compose(equal_recipe("yi_34b_200k_full_alpaca_enzh_128k_sp8", OPTIONS).words)
    assert (config.data.length, config.algo.batch_tokens) == (131072, 8 * 131072)
    assert (config.machine.gpus, config.machine.sequence_parallel, len(config.data.parts)) == (8, 8, 2)


def test_a_slip_of_a_letter_names_the_nearest() -> None:
    draw = random.Random(0)
    for name in (
        "internlm2_chat_7b_qlora_oasst1_512_e3",
        "llama2_7b_full_wizardlm_e1",
        "yi_6b_qlora_alpaca_enzh_e3",
    ):
        method = name.index("_qlora_" if "_qlora_" in name else "_full_") + 1
        data = name.index("_", method) + 1
        for _ in range(20):
            at = draw.choice([*range(1, method - 2), *range(data + 1, data + 5)])
            slip = name[:at] + "x" + name[at + 1 :]
            try:
                equal_recipe(slip, OPTIONS)
            except ConfigError as error:
                near = str(error).rpartition("Did you mean ")[2].rstrip("?")
                equal_recipe(near, OPTIONS)
                assert near.endswith(name[data + 6 :])


def test_what_is_no_name_says_so() -> None:
    with pytest.raises(ConfigError, match="neither a file to write, which ends in"):
        equal_recipe("foo", OPTIONS)
    with pytest.raises(ConfigError, match="list model"):
        equal_recipe("zzzzzzzz_qlora_1234567", OPTIONS)
    assert bare_name("a/llama2_7b_qlora_sql_e3_copy.py") == "llama2_7b_qlora_sql_e3"


def test_copy_writes_the_equal_and_says_what_differs(tuner: Tuner, tmp_path: Path) -> None:
    done = tuner("copy", "internlm2_chat_1_8b_qlora_oasst1_e3")
    text = (tmp_path / "internlm2_chat_1_8b_qlora_oasst1_e3.yaml").read_text(encoding="utf-8")
    assert "  - data: oasst1_guanaco" in text
    for said in (done.out, text):
        assert "XTuner's oasst1 is openassistant-guanaco" in said
    assert done.out.endswith("run it with: python -m tuner internlm2_chat_1_8b_qlora_oasst1_e3.yaml\n")
    plan = tuner("plan", "internlm2_chat_1_8b_qlora_oasst1_e3.yaml")
    assert "hub internlm/internlm2-chat-1_8b@main" in plan.out
    tuner(
        "copy", "llama2_7b_qlora_custom_sft_e1.py", "mine/own.yaml", "data.path=mine.jsonl", "algo.epochs=2"
    )
    own = (tmp_path / "mine" / "own.yaml").read_text(encoding="utf-8")
    assert STAND_IN not in own
    assert "epochs: 2.0" in own
    there = tuner("copy-cfg", "llama2_7b_qlora_sql_e3", "mine", code=2)
    assert there.err.endswith("is called copy here: python -m tuner copy llama2_7b_qlora_sql_e3 mine\n")
    tuner("copy", "llama2_7b_qlora_sql_e3", "mine")
    tuner("copy", "mine/own.yaml", "new/", "seed=3")
    assert (tmp_path / "mine" / "llama2_7b_qlora_sql_e3.yaml").is_file()
    assert "seed: 3" in (tmp_path / "new" / "own.yaml").read_text(encoding="utf-8")
    other = tuner("copy", "llama2_7b_qlora_custom_sft_e1")
    assert f"{STAND_IN} stands where your file belongs" in other.out
    refused = tuner("copy", "internlm2_chat_1_8b_dpo_full", code=2)
    assert "trains on preferences" in refused.err
    bare = tuner("internlm2_7b_qlora_sql_e3", code=2)
    assert bare.err.endswith("python -m tuner copy internlm2_7b_qlora_sql_e3\n")
