"""`run`, which is also what happens without a verb."""

from tuner.cli.verb import CommandLine, Verb
from tuner.errors import ConfigError


def run(line: CommandLine) -> int:
    if "-m" in line.flags:
        from tuner.cli.sweep import sweep

        if "--json" in line.flags:
            raise ConfigError("run --json tells the facts of one run, and -m makes several: leave one out.")
        return sweep(line.words, extra=line.extra)
    from tuner.api import execute_config, prepare, to_stderr
    from tuner.cli.plan_text import summary, summary_json

    done = execute_config(prepare(line.words, line.extra), to_stderr)
    print(summary_json(done) if "--json" in line.flags else summary(done))
    return 0


VERB = Verb(
    name="run",
    help="run the pipeline; the same as no verb",
    run=run,
    examples={
        "run algo=full algo.optim.lr=2e-5": "full fine-tuning, at a lower learning rate",
        "run -m algo=lora,full seed=1,2": "a sweep; equal stages are built once",
    },
    flags={
        "-m": "a sweep over the values that commas separate",
        "--json": "ends with a line of facts for machines",
    },
    recipes=True,
    own_words=0,
)
