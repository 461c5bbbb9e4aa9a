"""A conversation with the model of a run, in the terminal or through a pipe.

The model reads the same token ids as in training: the same compiled template over the same texts. Nothing is
trained.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli.terminal import Terminal
from tuner.config.schema import Config, Generation
from tuner.hardware.gpus import VISIBLE_DEVICES
from tuner.hardware.optional_imports import block_optional_imports
from tuner.pipeline.gpus import gpus_to_see
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.weights import locate_weights
from tuner.progress import waiting
from tuner.report.answered import unlike_report
from tuner.report.printable import visible
from tuner.store.manifest import facts_of

if TYPE_CHECKING:
    from tuner.models.generate import CachedGenerator, Dialogue

COMMANDS = """\
/undo         forget the last question and its answer
/reset        forget the whole conversation
/system TEXT  another system prompt, from the next question on; without TEXT, show it
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer; what was said so far stays in the conversation."""


def chat(run: RunDirectory, config: Config, base: Path | None) -> int:
    """Chat with the model of `run` until the user leaves; returns the exit code.

    config  the run's own, with `generation` and `machine` as they are requested now
    base    the directory of the model that an adapter of this run belongs to
    Raises ConfigError when the run has made no model yet.
    """
    cards = gpus_to_see(config.machine)
    found = locate_weights(run, base, quant=config.algo.quant if cards else "none")
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
        from tuner.models.generate import CachedGenerator, Dialogue, context_of, stop_ids
        from tuner.models.load import compute_dtype, resolve_device
        from tuner.models.load_adapted import load_result

        if config.machine.threads != "auto":
            torch.set_num_threads(config.machine.threads)
        device = resolve_device(config.machine.device)
        dtype = compute_dtype(config.algo.precision, device)
        template = compile_template(
            chat_with_system(config.model.chat, config.data.system), load_vocabulary(found.home)
        )
        model = load_result(
            found.base,
            found.adapter,
            precision=config.algo.precision,
            quant=config.algo.quant,
            kept=found.quant != "none",
            device=device,
        )
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
    context = context_of(model, config.model.context)
    computed = str(dtype).removeprefix("torch.")
    measured = facts_of(run.path("evaluate"))
    terminal.introduce(
        f"on {device.type} in {computed}; "
        f"{unlike_report(measured, device=device.type, dtype=computed, quant=found.quant)}"
        "/help lists the commands, /exit leaves"
    )
    with terminal:
        return converse(terminal, Dialogue(template, requested.system), speaker, requested, context)


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
