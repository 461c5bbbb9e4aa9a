"""What the model in training answers to eval.prompts, at the steps where the held-out loss is measured:
samples.jsonl, and a text for trackers.

It answers as it is, with its adapters, and goes on training as if it had not been asked: attention, mode and
settings are given back, and nothing random is drawn.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from tuner.config.schema import Chat
from tuner.config.view import View
from tuner.data.chat.template import Template, compile_template
from tuner.data.questions import asked
from tuner.data.tokenizer.load import load_vocabulary
from tuner.kernels.compiled_layers import uncompiled
from tuner.models.attention_needs import generation_attention
from tuner.models.checkpoint.config_files import chat_with_system
from tuner.train.distributed import World
from tuner.train.evaluate import answer_questions
from tuner.train.monitor.metrics import Journal
from tuner.train.monitor.rows import read_rows

FILE = "samples.jsonl"


def why_no_samples(zero_stage: int) -> str | None:
    """Why a run can't be asked, where it can't."""
    if zero_stage < 3:
        return None
    return (
        "machine.samples=true is left out: with ZeRO 3 no process has the whole model. Set machine.zero=2, "
        "or ask a saved step with `chat`"
    )


class Sampler:
    """Asks after a step. Answers to steps that will be done again are cut off when it is made."""

    def __init__(
        self,
        model: Any,
        directory: Path,
        chat: Chat,
        prompts: Sequence[str],
        max_new_tokens: int,
        out: Path,
        journal: Journal,
        *,
        autocast: torch.dtype | None = None,
    ) -> None:
        """
        model      in train mode, whole in this process
        directory  where its tokenizer is
        out        the training directory
        journal    open: its last row is that of the step which is gone on from
        autocast   the dtype of matmuls, where the weights have another
        """
        self._model, self._prompts, self._longest, self._journal, self._autocast = (
            model,
            tuple(prompts),
            max_new_tokens,
            journal,
            autocast,
        )
        self._directory, self._chat = directory, chat
        self._path = out / FILE
        begin = journal.last["step"] if journal.last else 0
        kept = [row for row in read_rows(self._path) if row["step"] <= begin]
        self._path.write_text("".join(_line(row) for row in kept), encoding="utf-8")

    @cached_property
    def _template(self) -> Template:
        return compile_template(self._chat, load_vocabulary(self._directory))

    def write(self, step: int) -> None:
        """Ask after `step`, and write down what is answered."""
        with (
            generating(self._model) as base,
            uncompiled(),
            torch.autocast(base.device.type, dtype=self._autocast) if self._autocast else nullcontext(),
        ):
            questions = asked(self._template, self._prompts)
            answers = answer_questions(base, self._template, questions, self._longest, self._directory)
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(_line({"step": step, **answer}) for answer in answers)
        self._journal.text(
            "samples", "\n\n".join(f"**{one['prompt']}**\n\n{one['answer']}" for one in answers), step
        )


def open_sampler(
    config: View,
    model: Any,
    directory: Path,
    out: Path,
    journal: Journal,
    world: World,
    *,
    autocast: torch.dtype | None,
    zero_stage: int,
    say: Callable[[str], None],
) -> Callable[[int], None]:
    """What answers eval.prompts after a step, where machine.samples asks for it and this process is the one
    that does; else nothing.
    """
    if not config.machine.samples or not world.first:
        return lambda _: None
    if not config.eval.prompts:
        say("machine.samples=true asks eval.prompts while training, and there are none")
        return lambda _: None
    if why := why_no_samples(zero_stage):
        say(why)
        return lambda _: None
    chat = chat_with_system(config.model.chat, config.data.system)
    ask = config.eval
    return Sampler(
        model, directory, chat, ask.prompts, ask.max_new_tokens, out, journal, autocast=autocast
    ).write


@contextmanager
def generating(model: Any) -> Iterator[Any]:
    """The model that generates, adapters and all, while entered; afterwards it trains again as before."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    attention = base.config._attn_implementation
    model.eval()
    base.set_attn_implementation(generation_attention(base))
    try:
        yield base
    finally:
        base.set_attn_implementation(attention)
        model.train()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
