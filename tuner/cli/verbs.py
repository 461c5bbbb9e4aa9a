"""What the verbs do with a config or a run, and what they print."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from tuner.api import execute_config, to_stderr
from tuner.cli.plan_text import plan_json, plan_text, summary
from tuner.config.schema import Config
from tuner.config.view import View
from tuner.data.sources import sources_of
from tuner.models.locate import refuse_quantised_name
from tuner.pipeline.plan import plan
from tuner.pipeline.rerun import prepare_result, rerun
from tuner.pipeline.run import RunDirectory, store_of
from tuner.stages import STAGES, fetch_model
from tuner.stages.fetch_data import notes


def run_config(config: Config, tell: Callable[[str], None], redone: set[str] | None = None) -> int:
    """Run the pipeline; its end goes to standard output."""
    print(summary(execute_config(config, tell, redone)))
    return 0


def plan_config(config: Config, flags: Collection[str]) -> int:
    """Print what would run; with --check, 3 says that something would."""
    run = RunDirectory.of(config)
    refuse_quantised_name(View(config, "fetch_model"))
    steps = plan(config, STAGES, store_of(config), run, redo=config.redo)
    print(plan_json(steps, config, run) if "--json" in flags else plan_text(steps, config, run))
    return 3 if "--check" in flags and any(step.to_do for step in steps) else 0


def preview_config(config: Config, words: Sequence[str], flags: Collection[str]) -> int:
    """Fetch what is not here yet, and show rows as the model will see them: those that the words name, or
    the first.
    """
    from tuner.cli.preview import parse_row_ranges, preview
    from tuner.data.tokenize.settings import listed_files, settings_of

    wished, config = parse_row_ranges(words), replace(config, until="fetch")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line.strip())
        to_stderr(line)

    steps = {
        step.stage.name: step for step in plan(config, STAGES, store_of(config), execute_config(config, say))
    }
    settled = fetch_model.settle(config, steps["fetch_model"].input().dir)
    for line in [*notes(View(config, "fetch_data")), *([settled.told] if settled.told else [])]:
        if line not in said:
            to_stderr(f"  {line}")
    view = View(settled.config, "tokenize")
    return preview(
        settings_of(view, steps["fetch_model"].input().dir),
        listed_files(view, steps["fetch_data"].input().files),
        wished,
        takes=[part.take for part in sources_of(view)],
        seed=view.data.seed,
        skip=view.data.bad_rows == "skip",
        flags=flags,
    )


def export_run(
    run: RunDirectory, words: Sequence[str], kind: str, out: Path | None, extra: Path | None
) -> int:
    """Copies of what a run made, as files to take away; what is missing for it is made first, which trains
    nothing.
    """
    from tuner.cli.export import ExportSource, check_kind, export

    check_kind(kind)
    source, config, base = prepare_result(run, words, to_stderr, STAGES, extra)
    merge = (
        rerun(source, [], "merge", to_stderr, STAGES, extra).path("merge")
        if kind == "model" and config.algo.uses_adapter
        else None
    )
    made = ExportSource(
        called=run.name,
        base=base,
        convert=source.path("convert").resolve(),
        merge=merge,
        quant=config.algo.quant,
        precision=config.algo.precision,
    )
    export(made, kind, out or run.dir.parent.parent / "exports" / f"{source.name}-{kind}", to_stderr)
    return 0


def after_training(verb: str, run: RunDirectory, words: Sequence[str], extra: Path | None) -> int:
    """convert, merge, evaluate and chat: from what was trained."""
    if verb == "chat":
        from tuner.cli.chat import chat

        return chat(*prepare_result(run, words, to_stderr, STAGES, extra))
    print(summary(rerun(run, words, verb, to_stderr, STAGES, extra)))
    return 0
