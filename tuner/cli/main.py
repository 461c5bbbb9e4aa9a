"""argv → verb → config → pipeline. Nothing heavy is imported before the verb that needs it."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from tuner.config.schema import Config
from tuner.errors import ConfigError, Interrupted, TunerError, nearest

HELP = """\
usage: python -m tuner [VERB] [RECIPE.yaml] [group=option | field=value ...] [-m]

Fine-tunes a language model: fetch → tokenize → train → convert → merge → evaluate. What is done already is
not done again; what was killed goes on; and it says which, and why.

verbs
  run (or none)     run the pipeline
  plan              what would run, and why; --check exits 3 when there is work, --json for machines
  preview [ROW]     rows as the model will see them, and what is trained: the first of each source, or 12,
                    3-17, FILE:12; --ids shows the tokens, --all leaves nothing out, --json for machines
  status            all runs under the root: stages, progress, loss, disk
  list [GROUP] [F]  models, algos, data, machines, evals and chat templates whose name or line contains F
  copy FILE         write the command's config as a recipe to edit and to run: python -m tuner FILE
  doctor            versions, GPU, disk, locks, shadowed YAML, and what mends them

verbs on a run, called by its name, its path, its digest or the start of it, or `last`; they train nothing
  chat RUN          talk with the result; /help says how
  compare RUN RUN   what differs, scores, curves and answers side by side, here and as a page; --json
  stop RUN          a running training saves and ends; later stages may go on from there
  convert RUN       a trained step as files: convert.step=N, last or best
  merge RUN         the merged model, where it was not made
  evaluate RUN      measure again: another step, other questions
  export RUN KIND   copies to take away: adapter, base, model, or original, the layout of the model's
                    publisher; a third word names the directory
  rename RUN NAME   call it otherwise; note=… and tags=[…] too
  clean [RUN]       remove one run, or what no run refers to; --dry-run only lists

groups (each with a default; `list` shows the options)
{groups}

examples
  python -m tuner                                the default: a real model, real training, on any machine
  python -m tuner algo=full algo.optim.lr=2e-5   full fine-tuning, at a lower rate
  python -m tuner -m algo=lora,full seed=1,2     a sweep; equal stages are built once
  python -m tuner plan algo.optim.lr=1e-4        what that would run, and why
  python -m tuner chat last                      talk with what came out
  python -m tuner model=local model.path=~/models/qwen data=local 'data.path=客服/2026(1).jsonl' name=support
  python -m tuner model=run model.run=support data=local data.path=week2.jsonl   go on from an earlier run

options
  -m, --multirun    a sweep over the values that commas separate
  -cd DIR           a directory of your own YAML, laid out as the groups; it wins over the shipped one
  until=STAGE       stop after fetch, tokenize, train, convert, merge or evaluate
  redo=STAGE        build again from this stage on; the old artifacts go to the store's trash
  --version, --help

exit codes: 0 done, 1 failed, 2 the config or the data is wrong, 3 work to do (plan --check),
75 interrupted: run it again
"""

VERBS = tuple(
    (
        "run plan preview status list copy doctor chat compare stop convert merge evaluate export rename "
        "clean"
    ).split()
)
ON_A_RUN = ("chat", "compare", "stop", "convert", "merge", "evaluate", "export", "rename")


@dataclass
class CommandLine:
    """A command line, taken apart."""

    verb: str = "run"
    bare: list[str] = field(default_factory=list)
    """words that are neither overrides nor recipes: what the verb is about"""
    words: list[str] = field(default_factory=list)
    """overrides: a recipe's first, then those typed"""
    flags: set[str] = field(default_factory=set)
    extra: Path | None = None
    """the -cd directory"""


FLAGS = {
    "-m": {"run", "plan"},
    "--check": {"plan"},
    "--json": {"plan", "preview", "status", "list", "compare"},
    "--ids": {"preview"},
    "--dry-run": {"clean"},
    "--all": {"clean", "preview"},
}


def parse(argv: Sequence[str]) -> CommandLine:
    """Take a command line apart. Raises ConfigError."""
    line, typed, rest = CommandLine(), [], list(argv)
    while rest:
        word = rest.pop(0)
        word = "-m" if word == "--multirun" else word
        if word in ("-h", "--help", "--version"):
            line.flags.add("--help" if word == "-h" else word)
        elif word in ("-cd", "--config-dir"):
            if not rest:
                raise ConfigError(f"{word} needs a directory behind it.")
            line.extra = Path(rest.pop(0)).expanduser()
        elif word in FLAGS:
            line.flags.add(word)
        elif word.startswith("-"):
            raise ConfigError(
                f"{word} is not an option.{nearest(word, [*FLAGS, '--help', '--version', '--config-dir'])}"
            )
        elif "=" in word or (word.startswith("~") and not word.startswith("~/")):
            typed.append(word)
        elif word in VERBS and not line.bare and "verb" not in line.flags:
            line.verb = word
            line.flags.add("verb")
        else:
            line.bare.append(word)
    for flag in line.flags & set(FLAGS):
        if line.verb not in FLAGS[flag]:
            raise ConfigError(
                f"{flag} does not go with {line.verb}, but with {' and '.join(sorted(FLAGS[flag]))}."
            )
    if line.verb in ("run", "plan", "preview", "copy"):
        _take_recipes(line)
    line.words += typed
    return line


def _take_recipes(line: CommandLine) -> None:
    from tuner.config.recipes import read_recipe

    target = 1 if line.verb == "copy" else 0  # copy's last bare word is the file it writes
    rows = []  # of preview
    while len(line.bare) > target:
        word = line.bare.pop(0)
        if not word.endswith((".yaml", ".yml")):
            if line.verb == "preview":
                rows.append(word)
                continue
            hint = nearest(word, VERBS) or " A bare word is a verb in front, or a recipe that ends in .yaml."
            raise ConfigError(f"{word!r} is not a verb.{hint}")
        line.words += read_recipe(Path(word).expanduser())
    line.bare += rows


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        return _dispatch(parse(sys.argv[1:] if argv is None else argv))
    except TunerError as error:
        print(f"tuner: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("tuner: interrupted; run the same command again to go on.", file=sys.stderr)
        return Interrupted.exit_code
    except BrokenPipeError:  # the reader of our output went away: `tuner status | head`
        sys.stderr.close()
        return 0


def _stop(_number: int, _frame: Any) -> NoReturn:
    raise Interrupted("stopped by SIGTERM; run the same command again to go on.")


def _dispatch(line: CommandLine) -> int:
    if "--version" in line.flags:
        from tuner import __version__

        print(f"tuner {__version__}")
        return 0
    if "--help" in line.flags:
        from tuner.config.options import group_lines

        print(HELP.format(groups="\n".join(group_lines(line.extra))))
        return 0
    if line.verb in ("run", "plan"):
        if "-m" not in line.flags:
            return _single(line)
        from tuner.cli.sweep import sweep

        return sweep(line.verb, line.words, line.flags, line.extra)
    if line.verb == "preview":
        from tuner.api import prepare
        from tuner.cli.verbs import preview_config

        return preview_config(prepare(line.words, line.extra), line.bare, line.flags)
    if line.verb == "list":
        from tuner.config.options import show_options

        return show_options(line.bare, line.extra, as_json="--json" in line.flags)
    if line.verb == "copy":
        from tuner.config.recipes import write_recipe

        if len(line.bare) != 1:
            raise ConfigError("copy needs the file to write: python -m tuner copy my.yaml algo=full")
        return write_recipe(Path(line.bare[0]).expanduser(), _compose(line))
    if line.verb in ON_A_RUN:
        return _on_a_run(line)
    config = _compose(line)
    if line.verb == "doctor":
        from tuner.cli.doctor import examine

        return examine(config, line.extra)
    if line.verb == "clean":
        from tuner.cli.clean import clean

        return clean(
            config, line.bare, dry_run="--dry-run" in line.flags, spare_recent="--all" not in line.flags
        )
    from tuner.cli.status import show_status

    return show_status(config, as_json="--json" in line.flags)


def _compose(line: CommandLine) -> Config:
    from tuner.config.compose import compose

    return compose(line.words, extra=line.extra)


def _on_a_run(line: CommandLine) -> int:
    """A verb on one run, or on several."""
    from tuner.config.compose import compose
    from tuner.pipeline.run import find_run

    places = [word for word in line.words if word.startswith(("root=", "store="))]
    words = [word for word in line.words if word not in places]
    root = Path(compose(places, whole=False).root)
    bare = line.bare[:1] if line.verb in ("rename", "export") else line.bare
    wanted = "two runs or more" if line.verb == "compare" else "one run"
    if len(bare) != 1 and (line.verb != "compare" or len(bare) < 2):
        raise ConfigError(
            f"{line.verb} needs {wanted}: a name, a path, a digest, or `last`. `python -m tuner status` "
            "shows them."
        )
    runs = [find_run(root, word) for word in bare]
    if line.verb == "compare":
        from tuner.cli.compare import compare

        return compare(runs, root, as_json="--json" in line.flags)
    if line.verb == "stop":
        from tuner.cli.stop import stop

        return stop(runs[0])
    if line.verb == "rename":
        from tuner.pipeline.rerun import relabel
        from tuner.stages import STAGES

        return relabel(runs[0], line.bare[1:], words, STAGES)
    from tuner.cli.verbs import after_training, export_run

    if line.verb == "export":
        if len(line.bare) not in (2, 3):
            raise ConfigError(
                "export takes a run, what of it, and where to, if not under the root: python -m tuner export "
                "RUN adapter DIR"
            )
        return export_run(
            runs[0],
            words,
            line.bare[1],
            Path(line.bare[2]).expanduser() if line.bare[2:] else None,
            line.extra,
        )
    return after_training(line.verb, runs[0], words, line.extra)


def _single(line: CommandLine) -> int:
    from tuner.api import prepare, to_stderr
    from tuner.cli.verbs import plan_config, run_config

    config = prepare(line.words, line.extra)
    return plan_config(config, line.flags) if line.verb == "plan" else run_config(config, to_stderr)
