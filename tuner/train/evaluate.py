"""What a model is worth: its loss on conversations kept out of training, and its answers to fixed
questions.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tuner.config.view import View
from tuner.data.chat.template import Template, compile_template
from tuner.data.packs import Packs
from tuner.data.questions import Question, asked, held_out_questions
from tuner.data.tokenizer.load import load_vocabulary
from tuner.kernels import attention
from tuner.models.attention_needs import attention_needs, generation_attention
from tuner.models.checkpoint.config_files import chat_with_system
from tuner.models.checkpoint.files import weight_files
from tuner.models.generate import generate_answers, stop_ids
from tuner.models.load import PRECISIONS, compute_dtype, load_tuned, resolve_device
from tuner.progress import progress_bar, track
from tuner.train.determinism import deterministic
from tuner.train.held_out import held_out_loss
from tuner.train.objectives import objective_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """A model, measured. The same model, data and settings give the same values: no times, no places."""

    loss: float | None
    """mean over the held-out tokens of -log p, in nats; null where nothing was held out"""
    perplexity: float | None
    """exp(loss)"""
    tokens: int
    """how many held-out tokens the loss is over"""
    answers: tuple[dict[str, str], ...]
    """{"prompt", "answer"}, in the order of eval.prompts; of held-out rows with `expected`"""

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"answers": list(self.answers)}


def measure_model(
    config: View,
    held_out: Path,
    directory: Path,
    adapter: Path | None,
    quant: str,
    say: Callable[[str], None],
) -> tuple[Measurement, dict[str, Any]]:
    """Measure the model in `directory`, with `adapter` merged into it in memory, on the held-out packs, and
    ask it eval.prompts; where there are none, the first turns of held-out rows.

    quant   how the base was held while the adapter was trained

    Facts say how it was computed.
    """
    began, ask = time.monotonic(), config.eval
    packs = Packs.open(held_out)
    if not len(packs):
        say("nothing was held out (data.held_out=0), so no loss is measured")
    if not len(packs) and not ask.prompts:
        return Measurement(loss=None, perplexity=None, tokens=0, answers=()), {}
    if config.machine.threads != "auto":
        torch.set_num_threads(config.machine.threads)
    device = resolve_device(config.machine.device)
    compute = compute_dtype(config.algo.precision, device)
    model = load_tuned(
        directory,
        adapter,
        dtype=compute,
        device=device,
        rounded=PRECISIONS[config.algo.precision],
        quant=quant,
    )
    backend, _ = attention.choose_backend(
        config.machine.attention, attention_needs(model, dtype=compute, device=device)
    )
    with attention.using_backend(backend), deterministic(config.machine.deterministic):
        loss, tokens = held_out_loss(
            model,
            track(packs, "held-out loss", len(packs), say),
            device,
            weight_files(directory),
            objective_of(config.algo).held_out,
        )
        # Answers grow token by token on a cache, which the kernel for packed rows does not serve.
        model.set_attn_implementation(generation_attention(model))
        answers: tuple[dict[str, str], ...] = ()
        if ask.prompts or (ask.held_out_rows and len(packs)):
            chat = chat_with_system(config.model.chat, config.data.system)
            template = compile_template(chat, load_vocabulary(directory))
            questions = asked(template, ask.prompts) or held_out_questions(template, packs, ask.held_out_rows)
            most = len(questions) * ask.max_new_tokens
            with progress_bar("answers", most, say) as advance:
                answers = answer_questions(model, template, questions, ask.max_new_tokens, directory, advance)
    facts = {
        "device": device.type,
        "attention": backend,
        "compute": str(compute).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
    }
    return Measurement(loss=loss, perplexity=perplexity(loss), tokens=tokens, answers=answers), facts


def perplexity(loss: float | None) -> float | None:
    """exp(loss), at most exp(700), where floats end.

    >>> perplexity(0.0), perplexity(None)
    (1.0, None)
    """
    return None if loss is None else math.exp(min(loss, 700.0))


def answer_questions(
    model: Any,
    template: Template,
    questions: Sequence[Question],
    max_new_tokens: int,
    directory: Path,
    tick: Callable[[int], object] = lambda _: None,
) -> tuple[dict[str, str], ...]:
    """What the model answers to each question, up to an end of turn: of `template`, or one that the settings
    in `directory`, the model's, name, as in `chat`. `tick` as generate_answers has it.
    """
    texts = generate_answers(
        model,
        [question.ids for question in questions],
        end_id=template.end_id,
        stops=stop_ids(directory, template.stops),
        max_new_tokens=max_new_tokens,
        tick=tick,
    )
    # An answer that is cut at its longest may end inside a character, which then decodes to U+FFFD.
    said = [
        template.tokenizer.decode(text, skip_special_tokens=True).rstrip("\ufffd").strip() for text in texts
    ]
    return tuple(
        {"prompt": question.text, "answer": text}
        | ({} if question.expected is None else {"expected": question.expected})
        for question, text in zip(questions, said, strict=True)
    )
