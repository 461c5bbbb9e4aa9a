"""Servers with OpenAI's protocol that others keep, and how each is started on a model: always on this machine
alone, with the model's own template and stop tokens, which lie beside the weights.

vLLM, SGLang and LMDeploy pin PyTorch and transformers, so each is looked for in an environment of its own
(serve.python).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuner.models.handover import HOST, adapter_settings, lmdeploy_template, lora_rank, takes_adapter


@dataclass(frozen=True, kw_only=True, slots=True)
class Serving:
    """What is served."""

    name: str
    """what the model is called in requests"""
    model: Path
    """the merged model, or the base of the adapter"""
    adapter: Path | None
    """in the format of PEFT, served on `model`; None where that is whole"""
    scratch: Path
    """the directory that the server is started in, for files that it reads then"""
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """How a server is started."""

    called: str
    needs: tuple[str, ...]
    """modules that must be there"""
    install: str
    """what pip is asked for"""
    arguments: Callable[[Serving], list[str]]
    """of Python"""
    gpu: bool = True
    """whether it needs one"""


def _vllm(serving: Serving) -> list[str]:
    words = ["-m", "vllm.entrypoints.openai.api_server", "--model", str(serving.model)]
    words += ["--host", HOST, "--port", str(serving.port)]
    if serving.adapter is None:
        return [*words, "--served-model-name", serving.name]
    rank = lora_rank(adapter_settings(serving.adapter))
    template = ["--chat-template", str(serving.adapter / "chat_template.jinja")]
    lora = ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules"]
    return [*words, *template, *lora, f"{serving.name}={serving.adapter}"]


def _sglang(serving: Serving) -> list[str]:
    words = ["-m", "sglang.launch_server", "--model-path", str(serving.model)]
    words += ["--host", HOST, "--port", str(serving.port)]
    if serving.adapter is None:
        return [*words, "--served-model-name", serving.name]
    template = ["--chat-template", str(serving.adapter / "chat_template.jinja")]
    return [*words, *template, "--lora-paths", f"{serving.name}={serving.adapter}"]


def _lmdeploy(serving: Serving) -> list[str]:
    template = serving.scratch / "chat_template.json"
    home = serving.adapter or serving.model
    template.write_text(json.dumps(lmdeploy_template(str(home), stops=())), encoding="utf-8")
    words = ["-m", "lmdeploy", "serve", "api_server", str(serving.model), "--chat-template", str(template)]
    words += ["--server-name", HOST, "--server-port", str(serving.port)]
    if serving.adapter is None:
        return [*words, "--model-name", serving.name]
    return [*words, "--backend", "pytorch", "--adapters", f"{serving.name}={serving.adapter}"]


def _transformers(serving: Serving) -> list[str]:
    # it answers to the very words that it was started with: a name in the directory that it is started in
    home = serving.scratch / serving.name
    if serving.adapter is None:
        home.symlink_to(serving.model, target_is_directory=True)
    else:  # the adapter and the base's files in one directory: then it looks for no base elsewhere
        home.mkdir()
        files = [*serving.model.iterdir(), *serving.adapter.iterdir()]
        for name, path in {path.name: path for path in files}.items():
            (home / name).symlink_to(path)
    start = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    return ["-c", start, "serve", serving.name, "--host", HOST, "--port", str(serving.port)]


def why_no_adapter(server: str, adapter: Path) -> str | None:
    """Why a server can't have this adapter beside its base, if so."""
    if server == "transformers" or takes_adapter(adapter_settings(adapter)):
        return None
    return f"{SERVERS[server].called} serves plain LoRA only, and this adapter is more than that"


SERVERS = {
    "vllm": Server(called="vLLM", needs=("vllm",), install="vllm", arguments=_vllm),
    "sglang": Server(called="SGLang", needs=("sglang",), install="sglang", arguments=_sglang),
    "lmdeploy": Server(called="LMDeploy", needs=("lmdeploy",), install="lmdeploy", arguments=_lmdeploy),
    "transformers": Server(
        called="transformers serve",
        needs=("transformers", "fastapi", "uvicorn"),
        install="'transformers[serving]'",
        arguments=_transformers,
        gpu=False,
    ),
}
"""by their word for serve.engine, the fastest first"""
