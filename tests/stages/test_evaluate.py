"""baseline and evaluate measure by token, ask the same questions, and report both."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.models.tiny import write_tiny
from tests.stages.support import config, held_out, run, trained_lora
from tuner.config.schema import Config, Eval
from tuner.data.packs import Packs
from tuner.data.tokenizer.load import load_vocabulary
from tuner.files import write_json
from tuner.stages import baseline, convert, evaluate, merge


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("base"), dtype=torch.float32)


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_tiny(tmp_path_factory.mktemp("tuned"), dtype=torch.float32)
    model = LlamaForCausalLM.from_pretrained(out)
    for parameter in model.model.layers[1].parameters():
        parameter.data *= 1.3
    model.save_pretrained(out)
    return out


def plainly(directory: Path, packs: Packs) -> tuple[float, int]:
    """The definition: each document alone, each trained token's -log p, summed over everything and divided
    once.
    """
    model = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    total, tokens = 0.0, 0
    for pack in packs:
        start = 0
        for length in pack.lengths:
            ids = torch.from_numpy(pack.ids[start : start + length].astype("int64"))
            log_p = model(ids[None]).logits[0].log_softmax(-1)
            for t in range(1, length):
                if pack.trained[start + t]:
                    total -= log_p[t - 1, ids[t]].item()
                    tokens += 1
            start += length
    return total / tokens, tokens


def measured(
    config: Config, base: Path, tuned: Path, tokens: Path, tmp_path: Path, said: list[str] | None = None
) -> Path:
    run(baseline.STAGE, config, tmp_path / "baseline", said, fetch_model=base, tokenize=tokens)
    run(
        evaluate.STAGE,
        config,
        tmp_path / "evaluate",
        said,
        baseline=tmp_path / "baseline",
        fetch_model=base,
        convert=tuned,
        tokenize=tokens,
    )
    return tmp_path / "evaluate"


def test_before_and_after(base: Path, tuned: Path, tmp_path: Path) -> None:
    tokens = held_out(tmp_path / "tokens")
    said: list[str] = []
    out = measured(config(), base, tuned, tokens, tmp_path, said)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    packs = Packs.open(tokens / "held_out.arrow")
    for key, directory in (("before", base), ("after", tuned)):
        loss, count = plainly(directory, packs)
        assert report["held_out"]["loss"][key] == pytest.approx(loss, rel=1e-5)
        assert report["held_out"]["perplexity"][key] == pytest.approx(math.exp(loss), rel=1e-4)
        assert report["held_out"]["tokens"] == count
    assert [row["prompt"] for row in report["answers"]] == list(config().eval.prompts)
    assert any(row["before"] != row["after"] for row in report["answers"])
    assert any("held-out loss" in line for line in said)
    texts = [
        path.read_text(encoding="utf-8")
        for directory in ("baseline", "evaluate")
        for path in (tmp_path / directory).iterdir()
    ]
    assert str(tmp_path) not in "".join(texts)
    assert {path.name for path in out.iterdir()} == {"eval.json", "report.json", "report.md"}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_adapter_is_measured_as_the_merged_model_would_be(
    base: Path, tmp_path: Path, precision: str
) -> None:
    """To the byte: the merged model need not be there, and is what was measured."""
    wish, tokens = config(precision=precision), held_out(tmp_path / "tokens")
    run(
        convert.STAGE,
        wish,
        tmp_path / "convert",
        train=trained_lora(base, tmp_path / "train"),
        fetch_model=base,
    )
    run(merge.STAGE, wish, tmp_path / "merge", fetch_model=base, convert=tmp_path / "convert")
    for name, tuned in (("adapter", tmp_path / "convert"), ("merged", tmp_path / "merge")):
        measured(wish, base, tuned, tokens, tmp_path)
        (tmp_path / "evaluate").rename(tmp_path / name)
    assert (tmp_path / "adapter" / "eval.json").read_bytes() == (
        tmp_path / "merged" / "eval.json"
    ).read_bytes()


def test_the_same_measurement_gives_the_same_bytes(base: Path, tmp_path: Path) -> None:
    tokens = held_out(tmp_path / "tokens")
    for name in ("a", "b"):
        run(baseline.STAGE, config(), tmp_path / name, fetch_model=base, tokenize=tokens)
    assert (tmp_path / "a" / "baseline.json").read_bytes() == (tmp_path / "b" / "baseline.json").read_bytes()


def test_an_answer_ends_at_each_token_that_ends_one_for_transformers(base: Path, tmp_path: Path) -> None:
    """A publisher's generation_config.json may name more than the template has."""
    tokens, told = held_out(tmp_path / "tokens"), tmp_path / "told"
    shutil.copytree(base, told)

    def answers(name: str) -> list[str]:
        run(baseline.STAGE, config(), tmp_path / name, fetch_model=told, tokenize=tokens)
        measured = json.loads((tmp_path / name / "baseline.json").read_text(encoding="utf-8"))
        return [row["answer"] for row in measured["answers"]]

    whole, tokenizer = answers("before"), load_vocabulary(told).tokenizer
    stop = tokenizer.encode(whole[0], add_special_tokens=False).ids[3]
    write_json(told / "generation_config.json", {"eos_token_id": [0, stop]})
    said = answers("after")
    assert whole[0].startswith(said[0])
    assert len(said[0]) < len(whole[0])
    assert tokenizer.decode([stop]) not in said[0]


def test_a_system_prompt_of_the_data_is_part_of_the_question(base: Path, tmp_path: Path) -> None:
    tokens = held_out(tmp_path / "tokens")
    plain = config()
    for name, system in (("without", None), ("with", "You are a fish who speaks of nothing else.")):
        run(
            baseline.STAGE,
            replace(plain, data=replace(plain.data, system=system)),
            tmp_path / name,
            fetch_model=base,
            tokenize=tokens,
        )
    answers = [
        json.loads((tmp_path / name / "baseline.json").read_text(encoding="utf-8"))["answers"]
        for name in ("without", "with")
    ]
    assert answers[0] != answers[1]


def test_nothing_held_out(base: Path, tuned: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = measured(config(), base, tuned, held_out(tmp_path / "tokens", packs=0), tmp_path, said)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["held_out"]["loss"] == {"before": None, "after": None}
    assert len(report["answers"]) == 3
    assert any("nothing was held out" in line for line in said)


def test_without_questions_held_out_rows_are_asked(base: Path, tuned: Path, tmp_path: Path) -> None:
    wish = replace(config(), eval=Eval(prompts=(), held_out_rows=3, max_new_tokens=5))
    out = measured(wish, base, tuned, held_out(tmp_path / "tokens"), tmp_path)
    answers = json.loads((out / "report.json").read_text(encoding="utf-8"))["answers"]
    assert 1 <= len(answers) <= 3
    assert all(row["prompt"] and row["expected"] for row in answers)
    page = (out / "report.md").read_text(encoding="utf-8")
    assert page.count("expected:") == len(answers)
    assert "rows that were kept out of training" in page


def test_nothing_to_measure_loads_nothing(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    silent = replace(config(), eval=Eval(prompts=()))
    out = measured(silent, nowhere, nowhere, held_out(tmp_path / "tokens", packs=0), tmp_path)
    assert "Nothing was held out" in (out / "report.md").read_text(encoding="utf-8")
