"""`serve`: a server of others on a run's result. Where no GPU is, transformers' own really answers; what is
said to vLLM is looked at by a stand-in, which can be started everywhere.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Tuner, environment, linked

STAND_IN = """
import http.server, os, sys
port = int(sys.argv[sys.argv.index("--port") + 1])
print("told:", *sys.argv[1:], flush=True)
if "DIES" in os.environ:
    sys.exit("the model is too large for this GPU")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", port), Answer).serve_forever()
"""


@pytest.fixture
def root(finished: Path, tmp_path: Path, tuner: Tuner) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    tuner("rename", "last", "it")
    return tmp_path / "outputs"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A directory with a package `vllm`."""
    package = tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for directory in (package, *package.parents[:2]):
        (directory / "__init__.py").touch()
    (package / "api_server.py").write_text(STAND_IN, encoding="utf-8")
    return tmp_path / "packages"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def serving(
    words: Sequence[str], port: int, directory: Path, env: dict[str, str]
) -> Iterator["subprocess.Popen[str]"]:
    """`serve it`, once it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tuner", "serve", "it", f"serve.port={port}", *words],
        cwd=directory,
        env=environment(env),
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("curl "):
                break
        else:
            pytest.fail("it ended before it answered")
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_vllm_is_told_of_the_model_and_ends_with_the_command(
    root: Path, packages: Path, tmp_path: Path
) -> None:
    port, env = free_port(), {"PYTHONPATH": os.pathsep.join([str(packages), environment()["PYTHONPATH"]])}
    with serving(["serve.engine=vllm"], port, tmp_path, env) as process:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
    (log,) = (root / "runs").glob("it-*/serve.log")
    told = f"told: --model {linked(root, 'merge')} --host 127.0.0.1 --port {port} --served-model-name it"
    assert told in log.read_text(encoding="utf-8")


def test_an_adapter_goes_to_vllm_beside_its_base(
    root: Path, packages: Path, tmp_path: Path, tiny_model: Path
) -> None:
    port, env = free_port(), {"PYTHONPATH": os.pathsep.join([str(packages), environment()["PYTHONPATH"]])}
    with serving(["serve.engine=vllm", "serve.weights=adapter"], port, tmp_path, env):
        (log,) = (root / "runs").glob("it-*/serve.log")
        told = log.read_text(encoding="utf-8")
    adapter = linked(root, "convert")
    assert f"--model {tiny_model} " in told
    assert f"--chat-template {adapter}/chat_template.jinja" in told
    assert f"--enable-lora --max-lora-rank 8 --lora-modules it={adapter}" in told


def test_what_goes_wrong_is_one_paragraph(root: Path, packages: Path, tuner: Tuner) -> None:
    paths = {"PYTHONPATH": os.pathsep.join([str(packages), environment()["PYTHONPATH"]])}
    died = tuner("serve", "it", "serve.engine=vllm", "serve.port=0", env=paths | {"DIES": "1"}, code=1)
    assert "The server ended with code 1. Its output is in " in died.err
    assert "the model is too large for this GPU" in died.err
    lacks = tuner("serve", "it", "serve.engine=sglang", code=2).err
    assert "has no SGLang. Install it into an environment of its own: python3 -m venv ~/sglang" in lacks
    assert "serve.python=~/sglang/bin/python" in lacks
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        taken = tuner("serve", "it", "serve.engine=vllm", f"serve.port={port}", env=paths, code=2).err
    assert f"Port {port} of 127.0.0.1 can't be had" in taken
    assert "serve.port=0 takes a free one" in taken
    missing = tuner("serve", "it", "serve.python=/nowhere/python", code=2).err
    assert "serve.python=/nowhere/python can't be started: No such file or directory" in missing


@pytest.mark.slow
@pytest.mark.skipif(find_spec("fastapi") is None, reason="the extra `serve` is not installed")
@pytest.mark.parametrize("weights", ["merged", "adapter"])
def test_transformers_answers_as_chat_does(root: Path, tuner: Tuner, tmp_path: Path, weights: str) -> None:
    """Greedily, from the merged model and from the adapter on its base."""
    port = free_port()
    words = ["serve.engine=transformers", f"serve.weights={weights}"]
    question = {"role": "user", "content": "Who are you?"}
    asked = {"model": "it", "messages": [question], "max_tokens": 12, "temperature": 0}
    with serving(words, port, tmp_path, {}):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/chat/completions",
            data=json.dumps(asked).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            said = json.loads(answer.read())["choices"][0]["message"]["content"]
    chat = subprocess.run(
        [sys.executable, "-m", "tuner", "chat", "it", "generation.max_new_tokens=12"],
        input=f"{question['content']}\n",
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.strip() == chat.stdout.strip()
