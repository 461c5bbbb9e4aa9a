"""`chat RUN`: a conversation with the result."""

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb


def run(line: CommandLine) -> int:
    from tuner.api import to_stderr
    from tuner.cli.answer import answer_under_limits
    from tuner.cli.chat_session import chat
    from tuner.pipeline.rerun import prepare_result
    from tuner.stages import STAGES

    run, config, base = prepare_result(find_one(line), fields_of_run(line), to_stderr, STAGES, line.extra)
    return answer_under_limits(lambda: chat(run, config, base), config.machine)


VERB = Verb(
    name="chat",
    words="RUN",
    help="chat with the result; /help lists the commands",
    run=run,
    examples={
        "chat last": "with the run that trained last",
        "chat support generation.temperature=0.7": "with one of that name, less soberly",
    },
    on_a_run=True,
)
