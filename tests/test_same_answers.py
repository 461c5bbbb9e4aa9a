"""What is shipped answers as the report says: `chat`, and plain transformers on the merged model with the
settings that lie beside it. Where they would answer otherwise, the report says that.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import environment, linked
from tests.models.talkers import moody, put
from tuner.data.chat.template import compile_template
from tuner.data.tokenizer.load import load_vocabulary
from tuner.files import read_json, write_json
from tuner.models.generate import CachedGenerator, Dialogue
from tuner.models.load_adapted import load_result
from tuner.pipeline.inherit import load_config
from tuner.pipeline.plan import settle_from_run
from tuner.pipeline.run import RunDirectory, all_runs, store_of
from tuner.pipeline.weights import locate_weights
from tuner.stages import STAGES

ASKED = ["What is 1 plus 2?", "你好", "Who are you?"]
SAME = "answer from the same weights, in the same dtype and by the same decoding"


def made(model: Path, words: list[str], root: Path, *more: str, **settings: Any) -> RunDirectory:
    """A run on a model whose answers depend on the question, with `settings` in generation_config.json."""
    base = root.parent / "base"
    shutil.copytree(model, base)
    put(moody(load_vocabulary(base).tokenizer), base)
    write_json(base / "generation_config.json", {"eos_token_id": 2, **settings})
    words = [word for word in words if not word.startswith(("model.path=", "eval."))]
    asked = [f"model.path={base}", f"eval.prompts={json.dumps(ASKED, ensure_ascii=False)}"]
    line = [sys.executable, "-m", "tuner", *words, *asked, "eval.max_new_tokens=12", *more, f"root={root}"]
    subprocess.run(line, env=environment(), check=True, capture_output=True, cwd=root.parent)
    (found,) = all_runs(root)
    return found


def words_of(text: str) -> str:
    """Without what a terminal would obey, and what is no character: random weights write both."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ufffd]", "", text).strip()


def of_the_report(run: RunDirectory) -> list[str]:
    report = read_json(run.path("evaluate") / "report.json")
    assert report
    return [words_of(row["after"]) for row in report["answers"]]


def of_chat(run: RunDirectory, root: Path) -> tuple[list[str], str]:
    """Each question in a conversation of its own, through a pipe."""
    line = [sys.executable, "-m", "tuner", "chat", run.name, f"root={root}", "generation.max_new_tokens=12"]
    typed = "\n/reset\n".join(ASKED)
    done = subprocess.run(
        line, env=environment(), input=typed, capture_output=True, text=True, check=True, cwd=root.parent
    )
    return [words_of(answer) for answer in done.stdout.split("\n")[:-1]], done.stderr


def of_transformers(run: RunDirectory, **settings: Any) -> list[str]:
    """By what lies in merge/: weights in the dtype that its config.json names, its template, its settings."""
    home = run.path("merge")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(home), AutoTokenizer.from_pretrained(home)
    answers = []
    for question in ASKED:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, **settings)
        answers.append(words_of(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)))
    return answers


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["lora", "full"])
def test_the_report_chat_and_transformers_answer_the_same_word_for_word(
    tiny_model: Path, words: list[str], tmp_path: Path, algo: str
) -> None:
    run = made(tiny_model, words, tmp_path / "out", f"algo={algo}", "algo.optim.lr=1e-3")
    answers = of_the_report(run)
    assert len(set(answers)) == 3
    said, err = of_chat(run, tmp_path / "out")
    assert said == answers
    assert "may differ" not in err
    assert of_transformers(run) == answers
    page = (linked(tmp_path / "out", "evaluate") / "report.md").read_text(encoding="utf-8")
    assert SAME in page
    assert "Greedy, one turn each, up to 12 tokens, in float32 on cpu." in page


@pytest.mark.slow
def test_where_they_would_answer_otherwise_the_report_says_so_and_how_not(
    tiny_model: Path, words: list[str], tmp_path: Path
) -> None:
    """A base in 4 bits, whose publisher has its answers drawn and repetitions punished."""
    root = tmp_path / "out"
    run = made(
        tiny_model,
        words,
        root,
        "algo=qlora",
        "algo.optim.lr=1e-3",
        do_sample=True,
        temperature=5.0,
        repetition_penalty=1.5,
    )
    answers = of_the_report(run)
    page = (linked(root, "evaluate") / "report.md").read_text(encoding="utf-8")
    assert SAME not in page
    assert "keeps the base in 4 bits with the adapter beside it, as it was trained" in page
    assert "with do_sample=True, repetition_penalty=1.5, temperature=5.0, which" in page
    assert "they take do_sample=False, repetition_penalty=1.0." in page
    assert of_transformers(run) != answers
    assert of_transformers(run, do_sample=False, repetition_penalty=1.0) == answers
    said, _ = of_chat(run, root)
    assert said == answers  # on the CPU it is the merged model

    # what a GPU talks with, here on the CPU
    config = settle_from_run(load_config(run), STAGES, store_of(load_config(run)), run)
    found = locate_weights(run, tmp_path / "base", quant="nf4")
    assert found.called == "step 6, the adapter on its base in 4 bits, as it was trained"
    model = load_result(
        found.base, found.adapter, precision=config.algo.precision, quant="nf4", kept=True, device="cpu"
    )
    assert type(model.model.layers[0].self_attn.q_proj.base_layer).__name__ == "Linear4bit"
    template = compile_template(config.model.chat, load_vocabulary(found.home))
    speaker = CachedGenerator(
        model, template.tokenizer, stops=frozenset(template.stops), temperature=0, top_p=1, seed=None
    )
    talked = [
        words_of("".join(speaker.answer(Dialogue(template, None).prompt(question), most=12)))
        for question in ASKED
    ]
    assert talked == answers  # in fp32, where the rounding of the merged model changes no word
