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

from tuner.config.schema import Chat
from tuner.config.view import View
from tuner.data.chat.template import Template, compile_template
from tuner.data.conversation import Message
from tuner.data.packs import Packs
from tuner.data.tokenizer.load import load_vocabulary
from tuner.kernels import attention
from tuner.models.attention_needs import attention_needs, generation_attention
from tuner.models.checkpoint.config_files import chat_with_system
from tuner.models.checkpoint.files import weight_files
from tuner.models.generate import generate_answers
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
    """{"prompt", "answer"}, in the order of eval.prompts"""

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
    """Measure the model in `directory`, with `adapter` merged into it in memory, on the held-out packs and
    the prompts.

    quant   how the base was held while the adapter was trained

    Facts say how it was computed.
    """
    began, prompts = time.monotonic(), config.eval.prompts
    packs = Packs.open(held_out)
    if not len(packs):
        say("nothing was held out (data.held_out=0), so no loss is measured")
    if not len(packs) and not prompts:
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
        answers = ask_prompts(
            model,
            directory,
            chat_with_system(config.model.chat, config.data.system),
            prompts,
            config.eval.max_new_tokens,
            say,
        )
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


def ask_prompts(
    model: Any,
    directory: Path,
    chat: Chat,
    prompts: Sequence[str],
    max_new_tokens: int,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, str], ...]:
    """What the model answers to each prompt as the first turn of a conversation, written by `chat` for the
    tokenizer in `directory`.
    """
    if not prompts:
        return ()
    template = compile_template(chat, load_vocabulary(directory))
    with progress_bar("answers", len(prompts) * max_new_tokens, say) as advance:  # at most so many tokens
        return answer_prompts(model, template, prompts, max_new_tokens, advance)


def answer_prompts(
    model: Any,
    template: Template,
    prompts: Sequence[str],
    max_new_tokens: int,
    tick: Callable[[int], object] = lambda _: None,
) -> tuple[dict[str, str], ...]:
    """The same with a template that is compiled already; `tick` as generate_answers has it."""
    ids = [template.prompt([Message(role="user", content=prompt)]) for prompt in prompts]
    texts = generate_answers(
        model, ids, end_id=template.end_id, stops=template.stops, max_new_tokens=max_new_tokens, tick=tick
    )
    # An answer that is cut at its longest may end inside a character, which then decodes to U+FFFD.
    said = [
        template.tokenizer.decode(text, skip_special_tokens=True).rstrip("\ufffd").strip() for text in texts
    ]
    return tuple({"prompt": prompt, "answer": text} for prompt, text in zip(prompts, said, strict=True))
