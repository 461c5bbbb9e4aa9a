"""model/chat=auto: the catalogue's template by the digest of the vendor's text, else the tokenizer's own,
else ChatML; never by architecture.
"""

import base64
import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import SHARED
from tuner.config.compose import compose, conf_dir
from tuner.config.options import catalogue_template, vendor_templates
from tuner.config.schema import Chat
from tuner.data.chat import choice
from tuner.data.tokenizer.load import load_vocabulary
from tuner.errors import ConfigError
from tuner.hub.lockfile import Pin, Pinned, entry_name, write_pin
from tuner.stages.fetch_model import settle

TOKENIZERS = SHARED / "tokenizers"
REAL = {"smollm2": "smollm2", "qwen2_5": "qwen2_5", "minimind": "minimind", "mistral_nemo": "mistral_nemo"}


def directory(
    at: Path, template: object = None, *, jinja: str | None = None, tokens: tuple[str, ...] = choice.TOKENS
) -> Path:
    at.mkdir()
    (at / "config.json").write_text(
        json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}), encoding="utf-8"
    )
    added = [{"id": i, "content": token, "special": True} for i, token in enumerate(tokens)]
    (at / "tokenizer.json").write_text(
        json.dumps({"added_tokens": added, "model": {"vocab": {}}}), encoding="utf-8"
    )
    settings = {"eos_token": "<|im_end|>"} | ({} if template is None else {"chat_template": template})
    (at / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    if jinja is not None:
        (at / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    return at


def test_the_table_names_templates_of_the_catalogue() -> None:
    options = {path.stem for path in (conf_dir() / "model" / "chat").glob("*.yaml")}
    assert len(vendor_templates()) > 30
    for digest, option in vendor_templates().items():
        assert len(digest) == 64
        assert int(digest, 16)
        assert option in options - {"auto", "tokenizer"}
        assert catalogue_template(option) == compose([f"model/chat={option}"], whole=False).model.chat


def test_every_line_of_the_table_says_whose_text_it_is() -> None:
    lines = (conf_dir() / "vendors.yaml").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    assert len(entries) == len(vendor_templates())
    assert all("/" in line.partition("  # ")[2] for line in entries)


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="the shared tokenizers are not here")
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name: str) -> None:
    assert choice.choose_template(TOKENIZERS / name).option == REAL[name]
    assert choice.own_template(TOKENIZERS / name) == load_vocabulary(TOKENIZERS / name).template


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="the shared tokenizers are not here")
def test_a_text_that_differs_by_one_letter_is_the_tokenizers_own(tmp_path: Path) -> None:
    text = choice.own_template(TOKENIZERS / "qwen2_5")
    assert text is not None
    assert choice.choose_template(directory(tmp_path / "a", text)).option == "qwen2_5"
    assert (
        choice.choose_template(directory(tmp_path / "b", text.replace("helpful", "kind"))).option
        == "tokenizer"
    )
    assert (
        choice.choose_template(directory(tmp_path / "c", text.replace("\n", "\r\n") + "\n")).option
        == "qwen2_5"
    )


def test_where_a_template_stands(tmp_path: Path) -> None:
    hermes = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% "
        "endif %}"
    )
    # a Qwen2 or a Llama by its config, and ChatML by its text
    assert choice.choose_template(directory(tmp_path / "a", hermes)).option == "chatml"
    assert choice.choose_template(directory(tmp_path / "b", hermes.replace("\n", "\\n"))).option == "chatml"
    # the file counts
    assert choice.choose_template(directory(tmp_path / "c", "{{ other }}", jinja=hermes)).option == "chatml"
    named = [{"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": hermes}]
    assert choice.choose_template(directory(tmp_path / "d", named)).option == "chatml"
    assert choice.choose_template(directory(tmp_path / "e", "{{ other }}")).option == "tokenizer"
    assert choice.choose_template(directory(tmp_path / "f", "")).option == "chatml"
    assert (
        choice.choose_template(directory(tmp_path / "g")).words
        == "chat template chatml: the tokenizer has none, and knows ChatML's tokens"
    )


def test_without_template_and_tokens_it_is_refused_with_what_to_type(tmp_path: Path) -> None:
    base = directory(tmp_path / "base", tokens=("<|im_start|>", "<s>"))
    with pytest.raises(
        ConfigError,
        match=(
            r"has no chat template, and <\|im_end\|> of ChatML.* is not in its"
            r" vocabulary.*model\.new_tokens=\[<\|im_end\|>\]'$"
        ),
    ):
        choice.choose_template(base)
    assert choice.choose_template(base, ("<|im_end|>",)).option == "chatml"


@pytest.mark.skipif(not TOKENIZERS.is_dir(), reason="the shared tokenizers are not here")
def test_a_file_of_another_library_is_asked_as_it_is_converted(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    shutil.copyfile(TOKENIZERS / "tinystories_tok512" / "tokenizer.model", tmp_path / "tokenizer.model")
    with pytest.raises(ConfigError, match=r"<\|im_start\|> and <\|im_end\|> of ChatML"):
        choice.choose_template(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    ranks = "".join(
        f"{base64.b64encode(bytes([i])).decode()} {i}\n" for i in range(256)
    )  # a tiny one of the first Qwen, whose code adds ChatML's tokens
    (tmp_path / "qwen.tiktoken").write_text(ranks, encoding="utf-8")
    (tmp_path / "config.json").write_text('{"model_type": "qwen"}', encoding="utf-8")
    assert choice.choose_template(tmp_path).option == "chatml"


def test_what_was_found_is_what_later_stages_see(tmp_path: Path) -> None:
    """The same config as if the template had been named; a system prompt of the config stands in for the
    template's own.
    """
    words = [
        "model=local",
        f"model.path={directory(tmp_path / 'm', '{{ own }}')}",
        "data=local",
        "data.path=rows.jsonl",
    ]
    found = settle(compose(words), None)
    assert found.config.model.chat == compose([*words, "model/chat=tokenizer"]).model.chat == Chat(jinja=True)
    asked = settle(compose([*words, "model.chat.default_system=Be brief."]), None)
    assert asked.config.model.chat == Chat(jinja=True, default_system="Be brief.")
    named = settle(compose([*words, "model/chat=llama3"]), None)
    assert (named.config.model.chat, named.told) == (catalogue_template("llama3"), "")


def test_other_fields_are_not_set_beside_auto() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.chat\.user is set, but model/chat=auto takes the template"
    ):
        compose(
            ["model=local", "model.path=m", "data=local", "data.path=rows.jsonl", "model.chat.user=Q: {text}"]
        )


def test_a_gguf_files_template_is_known_once_it_was_rewritten(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    config = compose(
        ["model=local", f"model.path={tmp_path / 'm.gguf'}", "data=local", "data.path=rows.jsonl"]
    )
    before = settle(config, None)
    assert before.config.model.chat.auto
    assert before.told == "chat template: the file's own, once fetched"
    assert settle(config, directory(tmp_path / "made", "{{ own }}")).config.model.chat == Chat(jinja=True)


def test_a_hubs_is_known_by_the_lock_and_stays_what_it_was(tmp_path: Path) -> None:
    lock = tmp_path / "tuner.lock"
    config = compose(
        ["model=hub", "model.repo=org/name", f"lock={lock}", "data=local", "data.path=rows.jsonl"]
    )
    assert settle(config, None).told == "chat template: the tokenizer's own, once fetched"
    name, files = entry_name("model", "hub", "org/name", None), {"config.json": Pinned(size=2)}
    write_pin(lock, name, Pin(commit="0" * 40, files=files, template="qwen2_5"))
    found = settle(config, directory(tmp_path / "made", "{{ own }}"))
    assert found.config.model.chat == catalogue_template("qwen2_5")
    assert found.told == f"chat template qwen2_5: as {lock} says of its tokenizer"
    write_pin(lock, name, Pin(commit="0" * 40, files=files))  # written before the lock said it
    assert settle(config, tmp_path / "made").config.model.chat == Chat(jinja=True)
