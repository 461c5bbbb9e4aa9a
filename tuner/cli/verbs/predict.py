"""`predict RUN IN OUT`: every row of a file answered by a result."""

from pathlib import Path

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError

ENDPOINT = ("endpoint=", "endpoint_model=")
"""words of this verb alone: a server that answers, and what it calls the model"""


def run(line: CommandLine) -> int:
    from tuner.api import to_stderr
    from tuner.api.predictions import predict_file

    found = find_one(line, more_words=True)
    if len(line.bare) != 3:
        raise ConfigError(
            "predict takes a run, a file of rows, and the file to write: python -m tuner predict RUN IN OUT"
        )
    told = dict(word.split("=", 1) for word in line.words if word.startswith(ENDPOINT))
    rows, out = (Path(word).expanduser() for word in line.bare[1:])
    predict_file(
        found,
        rows,
        out,
        [word for word in fields_of_run(line) if not word.startswith(ENDPOINT)],
        to_stderr,
        base="--base" in line.flags,
        logprobs="--logprobs" in line.flags,
        endpoint=told.get("endpoint"),
        endpoint_model=told.get("endpoint_model"),
        extra=line.extra,
    )
    print(out)
    return 0


VERB = Verb(
    name="predict",
    words="RUN IN OUT",
    help=(
        "answer every row of a file of JSONL, JSON, CSV, Parquet …, in the format of OUT's ending; killed, "
        "the same command goes on; endpoint=http://… asks a server that speaks OpenAI's API"
    ),
    run=run,
    flags={
        "--base": "the model that was trained on answers too",
        "--logprobs": "with the log-probabilities of the answers",
    },
    examples={
        "predict last questions.jsonl answers.jsonl": "greedily; `generation` has other ways",
        "predict support week.csv answers.csv data.columns.instruction=question --base": "other columns",
    },
    on_a_run=True,
)
