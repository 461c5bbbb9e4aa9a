"""The command on the card, end to end: an InternLM2 repository in its own layout and the OASST1 data set,
from a hub to a tuned model and back.

The checkpoint is tiny and random; its tensor names, its config, its tokenizer and the rows are the real ones.
"""

import io
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import SHARED, Done, environment, linked, reasons, states
from tests.hub.server import Hub

MODEL, ROWS = "internlm/internlm2-1_8b", "OpenAssistant/oasst1"
CARD = ["model=internlm2_1_8b", "data=oasst1"]
SHORT = [
    "data.length=256",
    "algo.steps=2",
    "algo.r=4",
    "machine=cpu",
    "machine.threads=2",
    "machine.workers=1",
    "machine.trackers=[]",
    "data.max_dropped=null",
    "eval.prompts=[What is a lock?]",
    "eval.max_new_tokens=4",
]
BOMB = "import pathlib; pathlib.Path('BOOM').touch()\n"


def repository(directory: Path) -> dict[str, bytes]:
    """The files of a tiny InternLM2 repository, code and all."""
    import torch
    from safetensors.torch import save_file

    hidden, heads, kv, ffn, vocab = 64, 4, 2, 96, 92544
    head = hidden // heads
    shapes = {
        "model.tok_embeddings.weight": (vocab, hidden),
        "model.norm.weight": (hidden,),
        "output.weight": (vocab, hidden),
    }
    for layer in range(2):
        name = f"model.layers.{layer}"
        shapes |= {
            f"{name}.attention.wqkv.weight": ((heads + 2 * kv) * head, hidden),
            f"{name}.attention.wo.weight": (hidden, hidden),
            f"{name}.feed_forward.w1.weight": (ffn, hidden),
            f"{name}.feed_forward.w3.weight": (ffn, hidden),
            f"{name}.feed_forward.w2.weight": (hidden, ffn),
            f"{name}.attention_norm.weight": (hidden,),
            f"{name}.ffn_norm.weight": (hidden,),
        }
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: (
            torch.randn(shape, generator=generator) / shape[-1] ** 0.5
            if len(shape) > 1
            else torch.ones(shape)
        ).to(torch.bfloat16)
        for name, shape in shapes.items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(
        (SHARED / "fixtures" / "models" / "internlm2" / "config.json").read_text(encoding="utf-8")
    ) | {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "num_hidden_layers": 2,
        "max_position_embeddings": 32768,
        "torch_dtype": "bfloat16",
    }
    tokenizer = SHARED / "tokenizers" / "internlm2"
    files = {
        name: (tokenizer / name).read_bytes()
        for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")
    }
    code = {
        "modeling_internlm2.py": BOMB.encode(),
        "configuration_internlm2.py": BOMB.encode(),
        "tokenization_internlm2_fast.py": BOMB.encode(),
    }
    settings = {
        "config.json": json.dumps(config).encode(),
        "generation_config.json": b'{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}',
    }
    weights = {
        "model.safetensors": (directory / "model.safetensors").read_bytes(),
        "README.md": b"# InternLM2",
    }
    return files | code | settings | weights


def rows() -> dict[str, bytes]:
    """The data set as its repository holds it: one row a message, in Parquet."""
    from pyarrow import Table, parquet

    lines = SHARED / "data" / "oasst" / "oasst_en_messages.jsonl"
    messages = [json.loads(line) for line in lines.read_text(encoding="utf-8").splitlines()[:300]]
    columns = (
        "message_id",
        "parent_id",
        "text",
        "role",
        "lang",
        "review_count",
        "review_result",
        "deleted",
        "rank",
        "synthetic",
        "message_tree_id",
        "tree_state",
    )
    buffer = io.BytesIO()
    parquet.write_table(
        Table.from_pylist([{name: message[name] for name in columns} for message in messages]), buffer
    )
    return {"data/train-00000-of-00001-b42a775f407cee45.parquet": buffer.getvalue(), "README.md": b"# OASST1"}


@dataclass(frozen=True)
class Card:
    """What the card's command left, with LoRA and with QLoRA."""

    home: Path
    """where it was typed"""
    hub: Hub
    original: Path

    @property
    def root(self) -> Path:
        return self.home / "outputs"

    def tuner(self, *words: str, code: int = 0, cwd: Path | None = None, lines: str = "") -> Done:
        import subprocess
        import sys

        variables = environment(self.hub.env)
        del variables["HF_HUB_OFFLINE"]  # as in a person's shell: who says nothing is online
        done = subprocess.run(
            [sys.executable, "-m", "tuner", *words],
            cwd=cwd or self.home,
            env=variables,
            capture_output=True,
            text=True,
            input=lines,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, f"{words} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        return Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Card]:
    if not (SHARED / "tokenizers" / "internlm2").is_dir():
        pytest.skip("the shared tokenizers are not here")
    original, home = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("home")
    with Hub() as hub:
        files = repository(original)
        hub.add(MODEL, files, kind="models")
        for name, content in files.items():
            (original / name).write_bytes(content)
        hub.add(ROWS, rows())
        done = Card(home=home, hub=hub, original=original)
        done.tuner(*CARD, "algo=lora", "name=lora", *SHORT)
        done.tuner(*CARD, "algo=qlora", "name=qlora", *SHORT)
        yield done


def artifact(card: Card, name: str, stage: str) -> Path:
    (run,) = (card.root / "runs").glob(f"{name}-*")
    return (run / stage).resolve()


def test_six_stages_ran_and_run_again_do_nothing(card: Card) -> None:
    for algo in ("lora", "qlora"):
        plan = card.tuner("plan", *CARD, f"algo={algo}", *SHORT, "--json")
        assert set(states(plan).values()) == {"done"}
        asked = len(card.hub.asked)
        card.tuner(*CARD, f"algo={algo}", *SHORT)
        assert len(card.hub.asked) == asked


def test_two_algorithms_share_model_data_and_baseline(card: Card) -> None:
    for stage in ("fetch_model", "fetch_data", "tokenize", "baseline"):
        assert artifact(card, "lora", stage) == artifact(card, "qlora", stage)
    assert artifact(card, "lora", "train") != artifact(card, "qlora", "train")


def test_no_code_of_the_repository_was_asked_for_or_run(card: Card) -> None:
    assert not [path for path in card.hub.sent if path.endswith(".py")]
    assert not list(card.home.rglob("BOOM"))
    assert not [path for path in card.root.rglob("*.py")]


@pytest.mark.parametrize("algo", ["lora", "qlora"])
def test_the_result_is_a_plain_llama_for_transformers(card: Card, algo: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = artifact(card, algo, "merge")
    model = AutoModelForCausalLM.from_pretrained(merged, trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained(merged, trust_remote_code=False)
    assert type(model).__name__ == "LlamaForCausalLM"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_dict=False
    )
    assert ids[1] == 92543
    assert max(ids) < model.get_input_embeddings().num_embeddings
    with torch.inference_mode():
        assert model(input_ids=torch.tensor([ids])).logits.isfinite().all()


def test_the_adapter_opens_in_plain_peft(card: Card, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for kind in ("base", "adapter"):
        card.tuner("export", "lora", kind, str(tmp_path / kind))
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", trust_remote_code=False)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert model.peft_config["default"].base_model_name_or_path == MODEL
    targets = {name.rpartition(".")[2] for name in model.peft_config["default"].target_modules}
    assert targets == {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"}


def test_it_talks(card: Card) -> None:
    assert card.tuner("chat", "lora", "generation.max_new_tokens=4", "machine=cpu", lines="Hello\n").out


def test_the_original_layout_comes_back_with_the_adapter_in_it(card: Card, tmp_path: Path) -> None:
    import torch

    from tuner.models.checkpoint.files import checkpoint_files, weight_files
    from tuner.models.checkpoint.safetensors import Checkpoint
    from tuner.models.layouts import detection, rewrite

    out = tmp_path / "back"
    card.tuner("export", "lora", "original", str(out))
    ours, theirs = Checkpoint(weight_files(out)), Checkpoint(weight_files(card.original))
    assert ours.specs == theirs.specs
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config == json.loads((card.original / "config.json").read_text(encoding="utf-8"))
    assert (out / "tokenizer.model").read_bytes() == (card.original / "tokenizer.model").read_bytes()
    assert detection.detect_layout(config) == "internlm2"
    again = tmp_path / "again"
    again.mkdir()
    rewrite.write_native(checkpoint_files(out), "internlm2", again, say=lambda _: None)
    merged, read = Checkpoint(weight_files(artifact(card, "lora", "merge"))), Checkpoint(weight_files(again))
    assert read.specs == merged.specs
    assert all(torch.equal(read[name], merged[name]) for name in merged.specs)
    assert not all(torch.equal(ours[name], theirs[name]) for name in theirs.specs), "nothing was trained"


def test_a_committed_lock_is_enough_in_a_fresh_checkout(card: Card, tmp_path: Path) -> None:
    shutil.copy(card.home / "tuner.lock", tmp_path)
    plan = card.tuner("plan", *CARD, "algo=lora", *SHORT, "locked=true", "--json", cwd=tmp_path)
    known = {stage["name"]: stage["fingerprint"] for stage in json.loads(plan.out)["stages"]}
    here = card.tuner("plan", *CARD, "algo=lora", *SHORT, "--json")
    assert known == {stage["name"]: stage["fingerprint"] for stage in json.loads(here.out)["stages"]}, (
        "the lock says what everything is made from"
    )
    card.tuner(*CARD, "algo=lora", *SHORT, "locked=true", "until=fetch", cwd=tmp_path)
    assert linked(tmp_path / "outputs", "fetch_model").name == artifact(card, "lora", "fetch_model").name


def test_locked_refuses_what_the_lock_does_not_have(card: Card, tmp_path: Path) -> None:
    done = card.tuner(*CARD, "algo=lora", *SHORT, "locked=true", "until=fetch", cwd=tmp_path, code=2)
    assert "tuner.lock has no entry" in done.err
    assert not (tmp_path / "tuner.lock").exists()


def test_a_branch_that_moved_changes_nothing_until_its_entry_goes(card: Card, tmp_path: Path) -> None:
    shutil.copy(card.home / "tuner.lock", tmp_path)
    shutil.copytree(card.root, tmp_path / "outputs", symlinks=True)
    commits = card.hub.repos["models", MODEL].commits
    before = next(reversed(commits))
    card.hub.add(
        MODEL, {**commits[before], "generation_config.json": b'{"eos_token_id": [2, 92542]}'}, kind="models"
    )
    try:
        plan = ["plan", *CARD, "algo=lora", *SHORT, "--json"]
        assert set(states(card.tuner(*plan, cwd=tmp_path)).values()) == {"done"}
        lock = json.loads((tmp_path / "tuner.lock").read_text(encoding="utf-8"))
        del lock["pins"][f"model hub {MODEL}@main"]
        (tmp_path / "tuner.lock").write_text(json.dumps(lock), encoding="utf-8")
        assert reasons(card.tuner(*plan, cwd=tmp_path))["fetch_model"] == f"hub {MODEL}@main unresolved"
        done = card.tuner(*CARD, "algo=lora", *SHORT, "until=fetch", cwd=tmp_path)
        assert before[:12] in done.err, "it says which commit it was before"
    finally:
        card.hub.repos["models", MODEL].refs |= dict.fromkeys(("main", "master"), before)


def test_merging_into_the_original_layout_is_a_result_of_its_own(card: Card) -> None:
    from tuner.models.checkpoint.files import weight_files
    from tuner.models.checkpoint.safetensors import Checkpoint

    card.tuner("merge", "lora", "merge.layout=original", "name=theirs")
    assert (
        Checkpoint(weight_files(artifact(card, "theirs", "merge"))).specs
        == Checkpoint(weight_files(card.original)).specs
    )
    assert artifact(card, "theirs", "train") == artifact(card, "lora", "train")
    refused = card.tuner("export", "theirs", "model", code=2)
    assert re.search(r"python -m tuner export \w+ original", refused.err)
