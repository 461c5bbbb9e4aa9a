"""`serve RUN`: the result behind a server with OpenAI's protocol, until Ctrl-C."""

from tuner.cli.on_a_run import fields_of_run, find_one
from tuner.cli.verb import CommandLine, Verb
from tuner.errors import Interrupted


def run(line: CommandLine) -> int:
    from tuner.api import to_stderr
    from tuner.api.serving import serve_run
    from tuner.launch.signals import answered

    try:
        serve_run(find_one(line), fields_of_run(line), to_stderr, line.extra)
    except Interrupted:
        answered()
        to_stderr("the server has ended")
    return 0


VERB = Verb(
    name="serve",
    words="RUN",
    help=(
        "serve the result on this machine with OpenAI's protocol, by vLLM, SGLang, LMDeploy or transformers "
        "(serve.engine, serve.python), until Ctrl-C"
    ),
    run=run,
    examples={
        "serve last": "with the first server that is installed here",
        "serve support serve.python=~/vllm/bin/python": "with the one of that environment",
    },
    on_a_run=True,
)
