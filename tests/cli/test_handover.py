"""A run handed over to the tools that serve and score models."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Tuner, environment, linked
from tuner.errors import ConfigError
from tuner.models.handover import TOOLS, Served, check_loads, takes_adapter, write_handover

COMMANDS = {
    ("lmdeploy", "serve.sh"): (
        "lmdeploy serve api_server ./model --model-name it --chat-template ./chat_template.json "
        "--server-name 127.0.0.1 --tp 2"
    ),
    ("opencompass", "evaluate.sh"): "opencompass ./eval.py -w ./scores --tp 2",
    ("vllm", "serve.sh"): "vllm serve ./model --served-model-name it --host 127.0.0.1 --tp 2",
}


@pytest.fixture
def root(finished: Path, tmp_path: Path, tuner: Tuner) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    tuner("rename", "last", "it")
    return tmp_path / "outputs"


def test_scripts_start_the_tool_on_what_lies_beside_them(tuner: Tuner, root: Path, tmp_path: Path) -> None:
    """Wherever they are moved to, and from wherever they are called."""
    for kind in TOOLS:
        tuner("export", "it", kind, "made")
        here = (tmp_path / "made").rename(tmp_path / f"{kind}, moved away")
        check_scripts(kind, here, tmp_path)
        merged = {path.name for path in linked(root, "merge").iterdir()} - {"manifest.json"}
        assert {path.name for path in (here / "model").iterdir()} == merged
        about = json.loads((here / "handover.json").read_text(encoding="utf-8"))
        assert (about["tool"], about["architecture"]) == (TOOLS[kind].called, "LlamaForCausalLM")
        assert about["stop_words"] == ["<|im_end|>"]
        text = "".join(path.read_text(encoding="utf-8") for path in here.iterdir() if path.is_file())
        assert str(tmp_path) not in text
    source = (tmp_path / "opencompass, moved away" / "eval.py").read_text(encoding="utf-8")
    settings = json.loads((linked(root, "merge") / "config.json").read_text(encoding="utf-8"))
    assert f"max_seq_len={settings['max_position_embeddings']}," in source
    assert "stop_words=['<|im_end|>']," in source
    compile(source, "eval.py", "exec")


def check_scripts(kind: str, here: Path, tmp_path: Path) -> None:
    """Each script calls the tool in its own directory, with paths that are there."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    program = programs / kind
    program.write_text('#!/bin/sh\necho "$PWD"; echo "$(basename "$0") $*"\n', encoding="utf-8")
    program.chmod(0o755)
    scripts = sorted(path.name for path in here.glob("*.sh"))
    # its base is a directory of this machine: the adapter is not for others
    assert scripts == [script for tool, script in COMMANDS if tool == kind]
    for script in scripts:
        ran = subprocess.run(
            [here / script, "--tp", "2"],
            env={"PATH": f"{programs}:{os.environ['PATH']}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        where, command = ran.stdout.splitlines()
        assert Path(where) == here
        assert command == COMMANDS[kind, script]
        named = [word.rpartition("=")[2] for word in command.split() if "./" in word]
        assert all((here / path).exists() for path in named if path != "./scores")


def test_an_adapter_of_a_base_that_others_have_is_served_on_it(tmp_path: Path) -> None:
    adapter = {"r": 12, "base_model_name_or_path": "org/base"}
    served = Served(
        name="my support", architecture="LlamaForCausalLM", context=64, stops=("</s>",), adapter=adapter
    )
    write_handover("vllm", served, tmp_path)
    last = (tmp_path / "serve-adapter.sh").read_text(encoding="utf-8").splitlines()[-1]
    assert last == (
        "exec vllm serve org/base --enable-lora --max-lora-rank 16 --lora-modules 'my support=./adapter' "
        '--chat-template ./adapter/chat_template.jinja --host 127.0.0.1 "$@"'
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"bias": "all"},
        {"trainable_token_indices": {"embed_tokens": [1]}},
        {"r": 1024},
    ],
)
def test_only_plain_adapters_go_to_vllm(settings: dict[str, Any]) -> None:
    plain = {"r": 16, "bias": "none", "use_dora": False, "modules_to_save": None}
    assert takes_adapter(plain)
    assert not takes_adapter(plain | settings)


def test_a_family_that_a_tool_lacks_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Olmo2ForCausalLM"]}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"LMDeploy .* has no Olmo2ForCausalLM.*export RUN vllm"):
        check_loads("lmdeploy", tmp_path)
    check_loads("vllm", tmp_path)


LMDEPLOY = """
from lmdeploy.model import ChatTemplateConfig, get_chat_template
from lmdeploy.tokenizer import Tokenizer
template = get_chat_template("./model", ChatTemplateConfig.from_json("./chat_template.json"))
text = template.messages2prompt([{"role": "user", "content": "Hi 你好"}])
print(Tokenizer("./model").encode(text, add_bos=True))
"""


def test_lmdeploy_reads_the_ids_of_training(tuner: Tuner, root: Path, tmp_path: Path) -> None:
    """By its own code, where it is installed."""
    pytest.importorskip("lmdeploy")
    from transformers import AutoTokenizer

    tuner("export", "it", "lmdeploy", "made")
    read = subprocess.run(
        [sys.executable, "-c", LMDEPLOY],
        cwd=tmp_path / "made",
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(linked(root, "merge"))
    wanted = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi 你好"}], add_generation_prompt=True, return_dict=False
    )
    assert json.loads(read.stdout.splitlines()[-1]) == wanted
