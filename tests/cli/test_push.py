"""A run's result in a repository of the hub: what is shown, what is sent, and what others can do with it."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest
import yaml

from tests.conftest import Tuner, environment, linked
from tests.hub.server import Hub

ADAPTER = {
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub(large=100_000) as found:
        yield found


@pytest.fixture
def env(hub: Hub) -> dict[str, str]:
    return hub.env | {"HF_TOKEN": "hf_writes"}


@pytest.fixture
def root(finished: Path, tmp_path: Path, tuner: Tuner) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    tuner("rename", "last", "it")
    return tmp_path / "outputs"


def test_the_adapter_goes_to_a_private_repository_once_it_was_seen(
    tuner: Tuner, root: Path, hub: Hub, env: dict[str, str], tmp_path: Path, tiny_model: Path
) -> None:
    shown = tuner("push", "it", "me/support", env=env, code=2)
    assert "me/support: the adapter, " in shown.err
    assert all(f"  {name}  " in shown.err for name in ADAPTER)
    assert "Add --yes to send it" in shown.err
    assert not hub.repos
    sent = tuner("push", "it", "me/support", "--yes", env=env)
    assert sent.out.strip() == f"{hub.url}/me/support"
    repo = hub.repos["models", "me/support"]
    assert repo.private
    files = repo.commits[repo.refs["main"]]
    assert files.keys() == ADAPTER
    assert (
        files["adapter_model.safetensors"]
        == (linked(root, "convert") / "adapter_model.safetensors").read_bytes()
    )
    head, card = files["README.md"].decode().removeprefix("---\n").split("---\n", 1)
    about = yaml.safe_load(head)
    assert (about["library_name"], about["tags"]) == ("peft", ["tuner", "sft", "lora"])
    loss = json.loads((linked(root, "evaluate") / "eval.json").read_text(encoding="utf-8"))["loss"]
    assert f" → {loss:.4f} over " in card
    assert "LoRA, rank 4" in card
    texts = b"".join(content for name, content in files.items() if not name.endswith(".safetensors"))
    assert str(tmp_path).encode() not in texts
    assert str(tiny_model).encode() not in texts
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == tiny_model.name


@pytest.mark.slow
def test_an_upload_that_broke_off_sends_only_what_is_missing(
    tuner: Tuner, root: Path, hub: Hub, env: dict[str, str]
) -> None:
    """And the model that was sent trains again from the hub."""
    hub.large = 20_000
    weights = (linked(root, "merge") / "model.safetensors").read_bytes()
    tuner("push", "it", "me/whole", "model", "--yes", env=env | {"HF_TOKEN": ""}, code=2)
    assert not hub.stored
    sent = tuner("push", "it", "me/whole", "model", "--public", "--yes", env=env)
    assert sent.out.strip() == f"{hub.url}/me/whole"
    repo = hub.repos["models", "me/whole"]
    assert not repo.private
    assert repo.commits[repo.refs["main"]]["model.safetensors"] == weights
    times = dict(hub.counted)
    tuner("push", "it", "me/whole", "model", "--public", "--yes", env=env)
    assert {digest: hub.counted[digest] for digest in hub.stored} == {
        digest: times[digest] for digest in hub.stored
    }
    refused = tuner("push", "it", "me/whole", "model", "--yes", env=env, code=2).err
    assert "me/whole is there already, and public. Nothing was sent." in refused


@pytest.mark.slow
def test_what_was_pushed_is_fine_tuned_again(
    tuner: Tuner, root: Path, words: list[str], hub: Hub, env: dict[str, str]
) -> None:
    tuner("push", "it", "me/whole", "model", "--yes", env=env)
    data = [word for word in words if word.startswith(("data", "algo", "machine", "eval"))]
    again = [*data, "model=hub", "model.repo=me/whole", "model/chat=chatml", "name=again"]
    tuner(*again, env=env)
    assert "again" in tuner("status", env=env).out


def test_it_asks_before_it_sends(root: Path, env: dict[str, str], hub: Hub, tmp_path: Path) -> None:
    child = pexpect.spawn(
        sys.executable,
        ["-m", "tuner", "push", "it", "me/support"],
        cwd=tmp_path,
        env={**environment(env)},
        encoding="utf-8",
        timeout=60,
        dimensions=(50, 120),
    )
    child.expect("for you alone to see\\? \\[y/N\\] ")
    child.sendline("n")
    child.expect("nothing was sent")
    child.wait()
    assert not hub.repos


def test_what_goes_wrong_is_one_paragraph(tuner: Tuner, root: Path, hub: Hub, env: dict[str, str]) -> None:
    no_token = tuner("push", "it", "me/support", "--yes", env=env | {"HF_TOKEN": ""}, code=2).err
    assert "Use a token that may write there: set HF_TOKEN, or log in with `hf auth login`." in no_token
    assert "write org/name" in tuner("push", "it", "support", "--yes", env=env, code=2).err
    kind = tuner("push", "it", "me/support", "gguf", "--yes", env=env, code=2).err
    assert "push sends the adapter or the model, not 'gguf'." in kind
