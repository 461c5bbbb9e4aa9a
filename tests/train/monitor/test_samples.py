"""Answers while training: what they are, and that training does not notice."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

from tests.conftest import REPO
from tests.data.conftest import read_chat
from tests.train.preflight.test_numerics import engine_of, made
from tuner.config.schema import Chat
from tuner.data.chat.template import compile_template
from tuner.data.packs import Packs
from tuner.data.questions import asked
from tuner.data.tokenizer.load import load_vocabulary
from tuner.models.load import load_tuned
from tuner.train.batch import collate
from tuner.train.engine import State
from tuner.train.evaluate import answer_questions
from tuner.train.monitor.metrics import Journal
from tuner.train.monitor.rows import read_rows
from tuner.train.monitor.samples import Sampler, why_no_samples

Opens = Callable[[int], Journal]
PROMPTS = ["What is 1 plus 1?", "你好"]


@pytest.fixture(scope="module")
def chat() -> Chat:
    return read_chat(REPO / "conf" / "model" / "chat" / "chatml.yaml")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Callable[[int], Journal]]:
    """Opens the journal of the training in `tmp_path` after a step."""
    opened: list[Journal] = []

    def opens(step: int) -> Journal:
        opened.append(Journal(tmp_path, step=step))
        return opened[-1]

    yield opens
    for one in opened:
        one.close()


def trained(
    directory: Path, packs: Sequence[object], adapter: str, chat: Chat, out: Path, journal: Journal | None
) -> tuple[State, list[float]]:
    """Three steps; with a journal, questions before the second and the third."""
    engine = engine_of(made(directory, adapter))
    sampler = Sampler(engine.model, directory, chat, PROMPTS, 6, out, journal) if journal else None
    norms = []
    for step in range(3):
        if step and sampler:
            sampler.write(step)
        engine.forward_backward([collate([packs[step]])], 20)  # type: ignore[list-item]
        norms.append(engine.step(0.1, 1.0).item())
    return engine.state(), norms


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_training_that_is_asked_goes_on_as_one_that_is_not(
    adapter: str, tiny_model: Path, packs: Packs, chat: Chat, tmp_path: Path, journal: Opens
) -> None:
    small = [
        type(pack)(
            ids=pack.ids % 200, trained=pack.trained, lengths=pack.lengths, files=pack.files, lines=pack.lines
        )
        for pack in packs
    ]
    asked, alone = (trained(tiny_model, small, adapter, chat, tmp_path, one) for one in (journal(0), None))
    assert asked[1] == alone[1]
    for one, other in ((asked[0].weights, alone[0].weights), (asked[0].optimizer, alone[0].optimizer)):
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    rows = read_rows(tmp_path / "samples.jsonl")
    assert [(row["step"], row["prompt"]) for row in rows] == [
        (step, prompt) for step in (1, 2) for prompt in PROMPTS
    ]
    assert rows[0]["answer"] != rows[2]["answer"]  # it has learnt something meanwhile


def test_it_answers_as_a_model_that_is_loaded_to_answer(
    tiny_model: Path, chat: Chat, tmp_path: Path, journal: Opens
) -> None:
    Sampler(made(tiny_model), tiny_model, chat, PROMPTS, 8, tmp_path, journal(0)).write(1)
    model = load_tuned(tiny_model, None, dtype=torch.float32, device="cpu", attention="sdpa")
    template = compile_template(chat, load_vocabulary(tiny_model))
    answers = answer_questions(model, template, asked(template, PROMPTS), 8, tiny_model)
    assert [
        {"prompt": row["prompt"], "answer": row["answer"]} for row in read_rows(tmp_path / "samples.jsonl")
    ] == list(answers)


def test_answers_to_steps_that_are_done_again_are_cut_off(
    tiny_model: Path, chat: Chat, tmp_path: Path, journal: Opens
) -> None:
    rows = [{"step": step, "prompt": "你", "answer": str(step)} for step in (2, 4, 6)]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "seconds": 1.0}) + "\n" for step in range(1, 6)), encoding="utf-8"
    )
    Sampler(None, tiny_model, chat, PROMPTS, 8, tmp_path, journal(4))
    assert read_rows(tmp_path / "samples.jsonl") == rows[:2]


def test_zero_3_is_refused() -> None:
    assert why_no_samples(2) is None
    assert "machine.zero=2" in str(why_no_samples(3))
