"""`--help`, made from the table of verbs and the groups of the config."""

import textwrap
from collections.abc import Iterable
from pathlib import Path

from tuner.cli.verb import Verb
from tuner.cli.verbs import VERBS
from tuner.config.options import group_lines
from tuner.pipeline.selection import stop_words
from tuner.stages import STAGES

TEXT = """\
usage: python -m tuner [VERB] [RECIPE.yaml] [group=option | field=value ...] [-m]

Fine-tunes a language model: {way}. What is done already is
not done again; what was killed continues; and it says which, and why.

verbs
{verbs}

verbs on a run, called by its name, its path, its digest or the start of it, or `last`; only reproduce trains
{on_a_run}

groups (each with a default; `list` shows the options)
{groups}

examples
  python -m tuner                                the default: a real model, real training, on any machine
  python -m tuner algo=full algo.optim.lr=2e-5   full fine-tuning, at a lower learning rate
  python -m tuner -m algo=lora,full seed=1,2     a sweep; equal stages are built once
  python -m tuner plan algo.optim.lr=1e-4        what that would run, and why
  python -m tuner chat last                      chat with the result
  python -m tuner model=local model.path=~/models/qwen data=local 'data.path=客服/2026(1).jsonl' name=support
  python -m tuner model=run model.run=support data=local data.path=week2.jsonl   start from an earlier run

options
  -m, --multirun    {sweep}
  -cd DIR           a directory of your own YAML, laid out as the groups; it wins over the shipped one
  until=STAGE       stop after {stages}
  redo=STAGE        build again from this stage on; the old artifacts go to the store's trash
  -q, --quiet       only errors, and what comes of it
  -v, --verbose     all that goes into the log, and where an error comes from
  --completion SH   completion for your shell: eval "$(tuner --completion bash)", or zsh;
                    tuner --completion fish | source
  -h, --help        VERB --help is about a verb, with examples
  -V, --version

exit codes: 0 done, 1 failed, 2 the config or the data is wrong, 3 work to do (plan --check),
4 not the same again (reproduce), 75 interrupted: run it again
"""
COLUMN = 20
"""where what a verb does begins"""


def help_text(extra: Path | None) -> str:
    """The whole of it; `extra` is a directory of the user's own options."""
    *words, last = stop_words(STAGES)
    return TEXT.format(
        verbs=_entries(verb for verb in VERBS.values() if not verb.on_a_run),
        on_a_run=_entries(verb for verb in VERBS.values() if verb.on_a_run),
        groups="\n".join(group_lines(extra)),
        sweep=VERBS["run"].flags["-m"],
        way=" → ".join([*words, last]),
        stages=f"{', '.join(words)} or {last}",
    )


def verb_help(verb: Verb) -> str:
    """The page of a verb."""
    words = ["[RECIPE.yaml]"] if verb.recipes else []
    if verb.fields:
        words.append("[field=value ...]" if verb.on_a_run else "[group=option | field=value ...]")
    options = [*verb.flags.items(), ("-q, -v, -cd DIR", "as with every verb: python -m tuner --help")]
    lines = {f"python -m tuner {line}": use for line, use in verb.examples.items()}
    return "\n\n".join(
        (
            " ".join(["usage: python -m tuner", verb.usage, *words, *(f"[{flag}]" for flag in verb.flags)]),
            textwrap.fill(f"{verb.help[0].upper()}{verb.help[1:]}.", width=108, break_on_hyphens=False),
            "\n".join(["options", *(f"  {flag:<{COLUMN - 2}}{does}" for flag, does in options)]),
            "\n".join(
                ["examples", *(f"  {line:<{max(map(len, lines))}}   {use}" for line, use in lines.items())]
            ),
        )
    )


def _entries(verbs: Iterable[Verb]) -> str:
    return "\n".join(
        textwrap.fill(
            verb.about,
            width=108,
            initial_indent=f"  {verb.usage}".ljust(COLUMN),
            subsequent_indent=" " * COLUMN,
            break_on_hyphens=False,
        )
        for verb in verbs
    )
