"""What the verbs do with a config or a run, and what they print."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from tuner.api import execute_config, to_stderr
from tuner.plan import plan
from tuner.rerun import rerun, to_talk_with
from tuner.runs import Run, store_of
from tuner.schema import Config
from tuner.show import plan_json, plan_text, summary
from tuner.stages import STAGES


def run_one(config: Config, tell: Callable[[str], None], redone: set[str] | None = None) -> int:
    """Run the pipeline; its end goes to standard output."""
    print(summary(execute_config(config, tell, redone)))
    return 0


def plan_one(config: Config, flags: Collection[str]) -> int:
    """Print what would run; with --check, 3 says that something would."""
    run = Run.of(config)
    steps = plan(config, STAGES, store_of(config), run, redo=config.redo)
    print(plan_json(steps, config, run) if "--json" in flags else plan_text(steps, config, run))
    return 3 if "--check" in flags and any(step.to_do for step in steps) else 0


def after_training(verb: str, run: Run, words: Sequence[str], extra: Path | None) -> int:
    """convert, merge, evaluate and chat: from what was trained."""
    if verb == "chat":
        from tuner.chat import chat

        return chat(*to_talk_with(run, words, to_stderr, extra))
    print(summary(rerun(run, words, verb, to_stderr, extra)))
    return 0
