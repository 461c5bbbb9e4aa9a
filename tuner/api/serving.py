"""A run's result behind a server with OpenAI's protocol."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tuner.config.schema import Serve
from tuner.errors import ConfigError, StageError
from tuner.hardware.nvidia_smi import list_gpus
from tuner.launch.server import free_port, running, told, wait_until_it_answers
from tuner.launch.signals import refuse_after_stop
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.models.handover import HOST
from tuner.models.servers import SERVERS, Serving, why_no_adapter
from tuner.pipeline.advice import command_on
from tuner.pipeline.rerun import prepare_result, whole_model
from tuner.pipeline.run import RunDirectory
from tuner.progress import working
from tuner.stages import STAGES
from tuner.store.manifest import facts_of

LOOK = 0.2
"""seconds between two looks at whether the server is still there"""
FINDS = "import importlib.util, sys; sys.exit(any(importlib.util.find_spec(m) is None for m in sys.argv[1:]))"


def serve_run(
    run: RunDirectory, words: Sequence[str], tell: Callable[[str], None], extra: Path | None = None
) -> None:
    """Serve until the server ends, which is an error, or this is interrupted. Makes the merged model first
    where it is asked for and not there. Raises ConfigError, StageError.
    """
    result, config, base = prepare_result(run, words, tell, STAGES, extra)
    wish = config.serve
    python = str(Path(wish.python).expanduser()) if wish.python else sys.executable
    engine = choose_engine(wish, python)
    port = free_port(HOST, wish.port)
    adapter = result.path("convert").resolve() if wish.weights == "adapter" else None
    if adapter is None:
        model = whole_model(result, config, tell, STAGES, extra)
    else:
        model = _base_of(run, adapter, base, engine)
    if facts_of(model).get("layout") == "original":
        raise ConfigError("transformers has no class for this family, and neither have these servers.")
    log = run.dir / "serve.log"
    with tempfile.TemporaryDirectory(prefix="serve-") as scratch:
        serving = Serving(name=run.name, model=model, adapter=adapter, scratch=Path(scratch), port=port)
        command = [python, *SERVERS[engine].arguments(serving)]
        tell(f"starting {SERVERS[engine].called} on {'the adapter' if adapter else model.name}: {log}")
        with running(command, log, serving.scratch) as process:
            with working("loading the model", tell):
                wait_until_it_answers(process, f"http://{HOST}:{port}/health", log, seconds=wish.timeout)
            tell(introduction(serving))
            while (code := process.poll()) is None:
                refuse_after_stop()  # where something has swallowed it
                time.sleep(LOOK)
    raise StageError(f"The server ended with code {code}. {told(log)}")


def introduction(serving: Serving) -> str:
    """Where it answers, with a line that asks it something."""
    question = {"model": serving.name, "messages": [{"role": "user", "content": "Who are you?"}]}
    url = f"http://{HOST}:{serving.port}/v1"
    return (
        f"{serving.name} answers at {url}, on this machine alone; Ctrl-C ends it\n"
        f"curl {url}/chat/completions -H 'Content-Type: application/json' -d '{json.dumps(question)}'"
    )


def choose_engine(wish: Serve, python: str) -> str:
    """The server to start. Raises ConfigError where it is not there, with the line that installs it."""
    gpu = bool(list_gpus())
    wished = [name for name, server in SERVERS.items() if wish.engine in ("auto", name)]
    wished = [name for name in wished if gpu or wish.engine == name or not SERVERS[name].gpu]
    for name in wished:
        if has_modules(python, SERVERS[name].needs):
            return name
    server = SERVERS[wished[-1]]
    place = f"~/{wished[-1]}"
    raise ConfigError(
        f"{python} has no {server.called}. Install it into an environment of its own: "
        f"python3 -m venv {place} && {place}/bin/pip install {server.install}; then add "
        f"serve.python={place}/bin/python"
    )


def has_modules(python: str, modules: Sequence[str]) -> bool:
    """Whether a Python could import all of them. Raises ConfigError where it can't be started."""
    try:
        return subprocess.run([python, "-c", FINDS, *modules], check=False).returncode == 0
    except OSError as error:
        raise ConfigError(f"serve.python={python} can't be started: {error.strerror}.") from error


def _base_of(run: RunDirectory, adapter: Path, base: Path | None, engine: str) -> Path:
    if not (adapter / ADAPTER_FILES[0]).is_file():
        raise ConfigError(
            f"{run.name} trained all weights, so there is no adapter. Leave serve.weights=merged."
        )
    if why := why_no_adapter(engine, adapter):
        raise ConfigError(f"{why}. Leave serve.weights=merged.")
    if base is None:
        raise ConfigError(
            f"The base model of {run.name} is gone. Serve the merged model: {command_on(run, 'serve')}"
        )
    return base
