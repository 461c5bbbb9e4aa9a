"""`run`, which is also what happens without a verb."""

from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    if "-m" in line.flags:
        from tuner.cli.sweep import sweep

        return sweep(line.words, extra=line.extra)
    from tuner.api import execute_config, prepare, to_stderr
    from tuner.cli.plan_text import summary

    print(summary(execute_config(prepare(line.words, line.extra), to_stderr)))
    return 0


VERB = Verb(
    name="run",
    help="run the pipeline; the same as no verb",
    run=run,
    examples={
        "run algo=full algo.optim.lr=2e-5": "full fine-tuning, at a lower learning rate",
        "run -m algo=lora,full seed=1,2": "a sweep; equal stages are built once",
    },
    flags={"-m": "a sweep over the values that commas separate"},
    recipes=True,
    own_words=0,
)
