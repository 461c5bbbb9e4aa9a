"""`predict RUN IN OUT`: every row of a file answered by a result."""

from pathlib import Path

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError


def run(line: CommandLine) -> int:
    from tuner.api import to_stderr
    from tuner.api.predictions import predict_file

    found = find_one(line, more_words=True)
    if len(line.bare) != 3:
        raise ConfigError(
            "predict takes a run, a file of rows, and the file to write: python -m tuner predict RUN IN OUT"
        )
    rows, out = (Path(word).expanduser() for word in line.bare[1:])
    predict_file(
        found,
        rows,
        out,
        fields_of_run(line),
        to_stderr,
        base="--base" in line.flags,
        logprobs="--logprobs" in line.flags,
        extra=line.extra,
    )
    print(out)
    return 0


VERB = Verb(
    name="predict",
    words="RUN IN OUT",
    help=(
        "answer every row of a file of JSONL, JSON, CSV, Parquet …, in the format of OUT's ending; killed, "
        "the same command goes on; predict.endpoint=http://… asks a server with OpenAI's protocol"
    ),
    run=run,
    flags={
        "--base": "the model that was trained on answers too",
        "--logprobs": "with the log-probabilities of the answers",
    },
    examples={
        "predict last questions.jsonl answers.jsonl": "greedily",
        "predict support week.csv answers.csv --base --logprobs": "and what the base answers",
    },
    on_a_run=True,
)
