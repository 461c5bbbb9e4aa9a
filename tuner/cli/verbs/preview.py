"""`preview`: rows as the model will see them. It fetches what is not here yet, trains nothing, and leaves no
run behind.
"""

from dataclasses import replace

from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.api import execute_config, prepare, to_stderr
    from tuner.cli.answer import answer_under_limits
    from tuner.cli.row_ranges import parse_row_ranges
    from tuner.config.view import View
    from tuner.data.sources import sources_of
    from tuner.pipeline.passing_run import passing_run
    from tuner.pipeline.plan import plan
    from tuner.pipeline.run import store_of
    from tuner.stages import STAGES, fetch_model
    from tuner.stages.fetch_data import notes

    requested = parse_row_ranges(line.bare)
    config = replace(prepare(line.words, line.extra), until="fetch", name=None)
    said: list[str] = []

    def tell(text: str) -> None:
        said.append(text.strip())
        to_stderr(text)

    with passing_run(store_of(config)) as directory:
        execute_config(config, tell, directory=directory)
        steps = {step.stage.name: step for step in plan(config, STAGES, store_of(config), directory)}
        settled = fetch_model.settle(config, steps["fetch_model"].input().dir)
        fetched = any(
            text.startswith("fetch_data") and "done in" in text for text in said
        )  # it has said them
        view = View(settled.config, "tokenize")

        def show() -> int:
            from tuner.cli.preview_rows import preview
            from tuner.data.tokenize.settings import listed_files, settings_of

            fetched_data = steps["fetch_data"].input()
            for note in [*(() if fetched else notes(View(config, "fetch_data"))), settled.told]:
                if note and note not in said:
                    to_stderr(f"  {note}")
            return preview(
                settings_of(view, steps["fetch_model"].input().dir),
                listed_files(view, fetched_data.files, fetched_data.facts),
                requested,
                takes=[part.take for part in sources_of(view)],
                seed=view.data.seed,
                skip=view.data.bad_rows == "skip",
                flags=line.flags,
            )

        return answer_under_limits(show, config.machine)


VERB = Verb(
    name="preview",
    words="[ROW]",
    help=(
        "rows as the model will see them, and what is trained: the first of each source, or 12, 3-17, FILE:12"
    ),
    run=run,
    examples={
        "preview": "the first row of the data, with what is trained",
        "preview 3-5 --ids": "three rows with their tokens",
    },
    flags={"--ids": "shows the tokens", "--all": "leaves nothing out", "--json": "for machines"},
    recipes=True,
)
