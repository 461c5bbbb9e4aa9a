"""What the tools that serve and score models read beside a model: start scripts, and a config that names the
model, its chat template and what ends an answer. All paths in them begin at their own directory, so it can
be moved.

What was read of each tool is its release named in TOOLS. Stop tokens stand in the model's own generation
settings too, where every one of these tools looks for them.
"""

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.errors import ConfigError
from tuner.files import decode_json

MODEL, ADAPTER = "model", "adapter"
"""directories beside the files"""
ANSWER = 1024
"""tokens of an answer that OpenCompass asks for, at most"""
HOST = "127.0.0.1"
"""where a model is served: on its machine alone"""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""that vLLM's --max-lora-rank takes"""
LMDEPLOY = frozenset(
    "BaiChuanForCausalLM BaichuanForCausalLM ChatGLMForConditionalGeneration DeepseekForCausalLM "
    "DeepseekV2ForCausalLM DeepseekV3ForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM GemmaForCausalLM "
    "Glm4ForCausalLM Glm4MoeForCausalLM GptOssForCausalLM InternLM2ForCausalLM InternLM3ForCausalLM "
    "InternLMForCausalLM LlamaForCausalLM MiniCPM3ForCausalLM MistralForCausalLM MixtralForCausalLM "
    "Phi3ForCausalLM PhiMoEForCausalLM QWenLMHeadModel Qwen2ForCausalLM Qwen2MoeForCausalLM "
    "Qwen3ForCausalLM Qwen3MoeForCausalLM Qwen3NextForCausalLM Starcoder2ForCausalLM".split()
)
"""architectures of language models that LMDeploy loads, by either of its engines"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A model as a tool is told of it."""

    name: str
    """what it is called there"""
    architecture: str
    context: int | None
    """tokens of a conversation at most"""
    stops: tuple[str, ...]
    """special tokens that end an answer"""
    adapter: Mapping[str, Any] | None = None
    """adapter_config.json of an adapter that lies beside the model, for a base that it was trained on as it
    is; its `base_model_name_or_path` is that base
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A tool that takes a model over."""

    called: str
    release: str
    """that was read"""
    files: Callable[[Served], dict[str, str]]
    """name → text; scripts end in .sh"""
    trouble: Callable[[str], str | None] = lambda _: None
    """of an architecture: why it can't load such a model, if so"""


def served_model(model: Path, name: str, adapter: Path | None) -> Served:
    """What the files of a model in the layout of transformers tell of it."""
    config, settings, tokens = (
        _read(model / name) for name in ("config.json", "generation_config.json", "tokenizer.json")
    )
    ends = settings.get("eos_token_id") or []
    called = {token["id"]: token["content"] for token in tokens.get("added_tokens", ())}
    text = config.get("text_config", config)
    return Served(
        name=name,
        architecture=architecture_of(config),
        context=text.get("max_position_embeddings"),
        stops=tuple(called[end] for end in ([ends] if isinstance(ends, int) else ends) if end in called),
        adapter=None if adapter is None else adapter_settings(adapter),
    )


def adapter_settings(adapter: Path) -> dict[str, Any]:
    """What PEFT's adapter_config.json says."""
    return _read(adapter / "adapter_config.json")


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = decode_json(file.read_text(encoding="utf-8"))
    return found


def architecture_of(config: Mapping[str, Any]) -> str:
    """The class that a config.json names."""
    return str((config.get("architectures") or ["an unnamed class"])[0])


def check_loads(kind: str, base: Path) -> None:
    """Raise ConfigError where the tool can't load models like this one."""
    if why := TOOLS[kind].trouble(architecture_of(_read(base / "config.json"))):
        raise ConfigError(f"{TOOLS[kind].called} ({TOOLS[kind].release} was read) {why}")


def write_handover(kind: str, served: Served, out: Path) -> None:
    """Write the tool's files into `out`, beside the model, and handover.json, which says what is there."""
    tool = TOOLS[kind]
    about = {
        "tool": tool.called,
        "release": tool.release,
        "name": served.name,
        "architecture": served.architecture,
        "context": served.context,
        "stop_words": served.stops,
    }
    files = tool.files(served) | {"handover.json": json.dumps(about, indent=2, ensure_ascii=False) + "\n"}
    for name, text in files.items():
        path = out / name
        path.write_text(text, encoding="utf-8")
        if path.suffix == ".sh":
            path.chmod(0o755)


def takes_adapter(adapter: Mapping[str, Any]) -> bool:
    """Whether vLLM serves this adapter: plain LoRA on linear layers."""
    plain = not any(
        adapter.get(key)
        for key in (
            "use_dora",
            "lora_bias",
            "modules_to_save",
            "trainable_token_indices",
            "target_parameters",
        )
    )
    return plain and adapter.get("bias", "none") == "none" and adapter["r"] <= RANKS[-1]


def lora_rank(adapter: Mapping[str, Any]) -> int:
    """The least of vLLM's ranks that holds an adapter."""
    return next(rank for rank in RANKS if rank >= adapter["r"])


def _script(tool: str, package: str, command: str) -> str:
    return (
        f"#!/bin/sh\n# Made for {tool} {TOOLS[package].release}, from an environment of its own: "
        f'pip install {package}\ncd "$(dirname "$0")" || exit\nexec {command} "$@"\n'
    )


def lmdeploy_template(model: str, stops: Sequence[str]) -> dict[str, Any]:
    """What LMDeploy's --chat-template reads: the Jinja template of the model in a directory, which it would
    else choose by the directory's name.
    """
    return {"model_name": "hf", "model_path": model, "stop_words": [*stops]}


def _lmdeploy(served: Served) -> dict[str, str]:
    template = lmdeploy_template(f"./{MODEL}", served.stops)
    command = (
        f"lmdeploy serve api_server ./{MODEL} --model-name {shlex.quote(served.name)} "
        f"--chat-template ./chat_template.json --server-name {HOST}"
    )
    return {
        "chat_template.json": json.dumps(template, indent=2, ensure_ascii=False) + "\n",
        "serve.sh": _script("LMDeploy", "lmdeploy", command),
    }


def _lmdeploy_trouble(architecture: str) -> str | None:
    if architecture in LMDEPLOY:
        return None
    return (
        f"has no {architecture}, so it can't load this model. `export RUN vllm` is for vLLM, which "
        "has more of them."
    )


def _opencompass(served: Served) -> dict[str, str]:
    model = {
        "abbr": served.name,
        "path": f"./{MODEL}",
        "stop_words": [*served.stops],
        "max_seq_len": served.context,
        "max_out_len": min(ANSWER, served.context or ANSWER),
        "batch_size": 8,
        "run_cfg": {"num_gpus": 1},
    }
    fields = "".join(f"        {key}={value!r},\n" for key, value in model.items())
    config = (
        f"# An evaluation by OpenCompass ({TOOLS['opencompass'].release}), whose chat datasets are asked in "
        "the model's own template.\n"
        "# Other datasets: import them from opencompass.configs.datasets, and add them to the list.\n"
        "# ./evaluate.sh -a lmdeploy answers with LMDeploy.\n"
        "from mmengine.config import read_base\n"
        "from opencompass.models import HuggingFacewithChatTemplate\n\n"
        "with read_base():\n"
        "    from opencompass.configs.datasets.demo.demo_gsm8k_chat_gen import gsm8k_datasets\n\n"
        "datasets = gsm8k_datasets\n"
        "models = [\n    dict(\n        type=HuggingFacewithChatTemplate,\n"
        f"{fields}    )\n]\n"
    )
    return {
        "eval.py": config,
        "evaluate.sh": _script("OpenCompass", "opencompass", "opencompass ./eval.py -w ./scores"),
    }


def _vllm(served: Served) -> dict[str, str]:
    name = shlex.quote(served.name)
    whole = f"vllm serve ./{MODEL} --served-model-name {name} --host {HOST}"
    files = {"serve.sh": _script("vLLM", "vllm", whole)}
    if served.adapter is None:
        return files
    base = shlex.quote(str(served.adapter["base_model_name_or_path"]))
    command = (
        f"vllm serve {base} --enable-lora --max-lora-rank {lora_rank(served.adapter)} "
        f"--lora-modules {shlex.quote(f'{served.name}=./{ADAPTER}')} "
        f"--chat-template ./{ADAPTER}/chat_template.jinja --host {HOST}"
    )
    return files | {"serve-adapter.sh": _script("vLLM", "vllm", command)}


TOOLS = {
    "lmdeploy": Tool(called="LMDeploy", release="0.18", files=_lmdeploy, trouble=_lmdeploy_trouble),
    "opencompass": Tool(called="OpenCompass", release="0.5.4", files=_opencompass),
    "vllm": Tool(called="vLLM", release="0.33", files=_vllm),
}
"""by their word for `export`"""
