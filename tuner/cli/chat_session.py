"""A conversation with the model of a run, in the terminal or through a pipe.

The model reads the same token ids as in training: the same compiled template over the same texts. Nothing is
trained.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.cli.terminal import Terminal
from tuner.config.schema import Config, Generation
from tuner.errors import ConfigError
from tuner.files import read_json
from tuner.hardware.gpus import VISIBLE_DEVICES, choose_gpus, gpus_hidden
from tuner.hardware.nvidia_smi import list_gpus
from tuner.hardware.optional_imports import block_optional_imports
from tuner.pipeline.advice import command_on
from tuner.pipeline.run import RunDirectory
from tuner.progress import waiting
from tuner.report.answered import BITS, unlike_report
from tuner.report.printable import visible

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tuner.models.generate import CachedGenerator, Dialogue

COMMANDS = """\
/undo         forget the last question and its answer
/reset        forget the whole conversation
/system TEXT  another system prompt, from the next question on; without TEXT, show it
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer; what was said so far stays in the conversation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Where the model of a run is."""

    home: Path
    """the artifact: tokenizer, generation settings"""
    base: Path
    adapter: Path | None
    """None when `base` is the whole model"""
    called: str
    """in words"""
    quant: str = "none"
    """how the base stays, with the adapter beside it; "none" where both are one matrix"""


def chat(run: RunDirectory, config: Config, base: Path | None) -> int:
    """Chat with the model of `run` until the user leaves; returns the exit code.

    config  the run's own, with `generation` and `machine` as they are requested now
    base    the directory of the model that an adapter of this run belongs to
    Raises ConfigError when the run has made no model yet.
    """
    cards = (
        choose_gpus(config.machine.gpus, list_gpus(), os.environ)
        if config.machine.device != "cpu" and not gpus_hidden(os.environ)
        else None
    )
    found = locate(run, base, quant=config.algo.quant if cards else "none")
    terminal = Terminal()
    terminal.introduce(f"{run.dir.name}: {found.called}")
    # read when transformers is imported; nothing may be looked up
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if cards:
        os.environ[VISIBLE_DEVICES] = cards  # read when CUDA starts
    block_optional_imports(bitsandbytes=config.algo.quant != "none", deepspeed=False)
    with waiting("loading the model"):
        import torch

        from tuner.data.chat.template import compile_template
        from tuner.data.tokenizer.load import load_vocabulary
        from tuner.models.checkpoint.config_files import chat_with_system
        from tuner.models.generate import CachedGenerator, Dialogue, stop_ids
        from tuner.models.load import compute_dtype, resolve_device

        if config.machine.threads != "auto":
            torch.set_num_threads(config.machine.threads)
        device = resolve_device(config.machine.device)
        dtype = compute_dtype(config.algo.precision, device)
        template = compile_template(
            chat_with_system(config.model.chat, config.data.system), load_vocabulary(found.home)
        )
        model = load_weights(found, config, dtype=dtype, device=device)
    requested = config.generation
    stops = stop_ids(found.home, template.stops)
    speaker = CachedGenerator(
        model,
        template.tokenizer,
        stops=stops,
        temperature=requested.temperature,
        top_p=requested.top_p,
        seed=requested.seed,
    )
    known = (config.model.context, getattr(model.config.get_text_config(), "max_position_embeddings", None))
    context = min((length for length in known if length), default=None)
    computed = str(dtype).removeprefix("torch.")
    measured = (read_json(run.path("evaluate") / "manifest.json") or {}).get("facts", {})
    terminal.introduce(
        f"on {device.type} in {computed}; "
        f"{unlike_report(measured, device=device.type, dtype=computed, quant=found.quant)}"
        "/help lists the commands, /exit leaves"
    )
    with terminal:
        return converse(terminal, Dialogue(template, requested.system), speaker, requested, context)


def locate(run: RunDirectory, base: Path | None, *, quant: str = "none") -> Weights:
    """The merged model of a run, or else what it converted: a whole model, or an adapter on `base`. With
    `quant`, how the base was held in training, the adapter on a base that is held so, where they are there.
    Raises ConfigError.
    """
    merge, convert = run.path("merge"), run.path("convert")
    made, merged = (read_json(directory / "manifest.json") or {} for directory in (convert, merge))
    step = f"step {made['facts']['step']}, " if "step" in made.get("facts", {}) else ""
    adapted = (convert / "adapter_config.json").is_file()
    if quant != "none" and adapted and base is not None and base.is_dir():
        called = f"{step}the adapter on its base in {BITS[quant]} bits, as it was trained"
        return Weights(home=convert, base=base, adapter=convert, called=called, quant=quant)
    current = made.get("content")
    # only what transformers has a class for can generate
    native = merged.get("facts", {}).get("layout", "native") == "native"
    # not of a step that was converted before
    if native and merge.is_dir() and current in (None, merged.get("upstream", {}).get("convert", current)):
        return Weights(home=merge, base=merge, adapter=None, called=f"{step}the merged model")
    if not convert.is_dir():
        raise ConfigError(
            f"{run.dir} has neither a merged nor a converted model, so there is nothing to chat with. "
            f"Once it is trained, make one with: {command_on(run, 'convert')}"
        )
    if not adapted:
        return Weights(home=convert, base=convert, adapter=None, called=f"{step}the whole model")
    if base is None or not base.is_dir():
        raise ConfigError(
            f"{run.dir.name} has an adapter, but its base model is "
            f"missing{f' ({base})' if base else ''}. Put it back where the run's config says, or run the "
            "pipeline again."
        )
    return Weights(home=convert, base=base, adapter=convert, called=f"{step}the adapter on its base")


def load_weights(found: Weights, config: Config, *, dtype: Any, device: Any) -> "PreTrainedModel":
    """The model, ready to answer: the one that was evaluated, or with `found.quant` the one that was trained.

    dtype, device   of torch: that of the matmuls, and where
    """
    from tuner.models.load import PRECISIONS, load_tuned
    from tuner.models.load_adapted import load_adapted

    if found.adapter and found.quant != "none":
        return load_adapted(found.base, found.adapter, dtype=dtype, device=device, quant=found.quant)
    return load_tuned(
        found.base,
        found.adapter,
        dtype=dtype,
        device=device,
        attention="sdpa",
        rounded=PRECISIONS[config.algo.precision],
        quant=config.algo.quant if found.adapter else "none",
    )


def converse(
    terminal: Terminal,
    dialogue: "Dialogue",
    speaker: "CachedGenerator",
    requested: Generation,
    context: int | None,
) -> int:
    """Answer questions and follow commands until the lines end. `context` is the longest sequence of the
    model, in tokens.
    """
    for line in terminal.lines():
        word, _, rest = line.partition(" ")
        if not line:
            continue
        if word == "/exit":
            break
        if word == "/help":
            terminal.hint(COMMANDS)
        elif word == "/reset":
            dialogue.turns.clear()
            terminal.hint("a new conversation")
        elif word == "/undo":
            terminal.hint(
                f"forgotten: {visible(dialogue.turns.pop()[0])}"
                if dialogue.turns
                else "there is nothing to undo"
            )
        elif word == "/system":
            dialogue.system = rest.strip() or dialogue.system
            terminal.hint(
                "system prompt: "
                f"{'the one used in training' if dialogue.system is None else visible(dialogue.system)}"
            )
        elif word.startswith("/"):
            terminal.hint(f"{visible(word)} is not a command. The commands are:\n{COMMANDS}")
        else:
            _answer(line, terminal, dialogue, speaker, requested, context)
    return 0


def _answer(
    question: str,
    terminal: Terminal,
    dialogue: "Dialogue",
    speaker: "CachedGenerator",
    requested: Generation,
    context: int | None,
) -> None:
    from torch import OutOfMemoryError

    prompt = dialogue.prompt(question)
    room = sys.maxsize if context is None else context - len(prompt)
    if room < 1:
        terminal.hint(
            f"With this question the conversation has {len(prompt)} tokens, and the model's context is "
            f"{context}: /undo or /reset makes room."
        )
        return
    said, full = "", False
    try:
        for piece in speaker.answer(
            prompt, most=min(room, requested.max_new_tokens), stopped=terminal.stop_requested
        ):
            said += piece
            terminal.show(visible(piece))
    except OutOfMemoryError:
        full = True
    terminal.end_answer()
    if said or (speaker.ended != "stopped" and not full):  # else it is as if it had not been asked
        dialogue.turns.append((question, said))
    if full:
        terminal.hint(
            f"The GPU ran out of memory on a conversation of {len(prompt)} tokens: /undo or /reset makes "
            "room."
        )
    elif speaker.ended == "length" and room <= requested.max_new_tokens:
        terminal.hint(
            f"The answer ends here: the model's context is {context} tokens. /undo or /reset makes room."
        )
    elif speaker.ended == "length":
        terminal.hint(f"The answer ends here, at generation.max_new_tokens={requested.max_new_tokens}.")
