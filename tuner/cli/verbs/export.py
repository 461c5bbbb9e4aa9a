"""`export RUN KIND [DIR]`: copies of what a run made. What is missing for them is made first, which trains
nothing.
"""

from pathlib import Path

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError


def run(line: CommandLine) -> int:
    from tuner.api import to_stderr
    from tuner.api.exports import export_run

    found = find_one(line, more_words=True)
    if len(line.bare) not in (2, 3):
        raise ConfigError(
            "export takes a run, what of it, and where to, if not under the root: python -m tuner export "
            "RUN adapter DIR"
        )
    out = Path(line.bare[2]).expanduser() if line.bare[2:] else None
    print(export_run(found, line.bare[1], out, fields_of_run(line), to_stderr, line.extra))
    return 0


VERB = Verb(
    name="export",
    words="RUN KIND",
    help=(
        "copies to take away: adapter, base, model, or original, the layout of the model's publisher; or for "
        "lmdeploy, opencompass, vllm, with what starts them; a third word names the directory"
    ),
    run=run,
    examples={
        "export last adapter": "the adapter, for PEFT",
        "export support lmdeploy ~/served/support": "the merged model, chat template and start script",
    },
    on_a_run=True,
)
