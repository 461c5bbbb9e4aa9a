"""Beside the weights: the template gives the ids that were trained, generation stops, and no file tells
where it was made.
"""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig

from tests.data.conftest import ROOT, read_chat
from tests.data.tokenizer.test_convert import handmade, written
from tests.models.tiny import CHATML
from tuner.data.chat.template import compile_template
from tuner.data.conversation import Message
from tuner.data.tokenizer.load import load_vocabulary
from tuner.data.tokenizer.new_tokens import write_new_tokens
from tuner.models.checkpoint.config_files import (
    chat_with_system,
    vocabulary_rows,
    write_config,
    write_generation_config,
    write_json_object,
    write_tokenizer,
)


def test_the_exported_template_gives_the_trained_ids(tiny: Path, tmp_path: Path) -> None:
    chat = chat_with_system(CHATML, "Be brief.")
    assert chat.default_system == "Be brief."
    assert chat_with_system(CHATML, None) == CHATML
    write_tokenizer(tiny, tmp_path, chat)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    ids = exported.apply_chat_template(
        [{"role": "user", "content": "你好 there"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == compile_template(chat, load_vocabulary(tiny)).prompt(
        [Message(role="user", content="你好 there")]
    )
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_generation_stops_at_the_end_of_an_answer(tmp_path: Path) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for shipped, expected in ((None, [7]), (2, [7, 2]), ([2, 7, 3], [7, 2, 3])):
        write_json_object(
            source / "generation_config.json",
            {"eos_token_id": shipped, "pad_token_id": 9, "transformers_version": "1"},
        )
        write_generation_config(source, out, 7)
        config = GenerationConfig.from_pretrained(out)
        assert config.eos_token_id == expected
        assert config.pad_token_id == 9
    (source / "generation_config.json").unlink()
    write_generation_config(source, out, 7)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [7]


def test_what_pads_is_no_token_at_which_an_answer_ends(tmp_path: Path, tiny: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny, source)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    for own in ("<|im_end|>", "<|im_start|>", "<absent>", None):
        write_json_object(
            source / "tokenizer_config.json",
            settings | {"pad_token": own, "additional_special_tokens": ["<absent>", "<|im_end|>"]},
        )
        write_json_object(source / "special_tokens_map.json", {"pad_token": "<|im_end|>"})
        out = tmp_path / str(own).strip("<|>")
        out.mkdir()
        pad = write_tokenizer(source, out, CHATML)
        write_generation_config(source, out, 2, [2], pad)
        exported = AutoTokenizer.from_pretrained(out)
        assert exported.pad_token == "<|endoftext|>"
        assert exported.pad_token_id == pad == GenerationConfig.from_pretrained(out).pad_token_id
        assert pad not in GenerationConfig.from_pretrained(out).eos_token_id[:1]
        assert len(exported) == 6400, "no name of the settings got an id behind the vocabulary"


def test_the_rows_of_the_embedding_limit_what_pads(tmp_path: Path, tiny: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(tiny, source)
    out.mkdir()
    write_new_tokens(tiny, {"<pad>": 6400}, source)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json_object(source / "tokenizer_config.json", settings | {"pad_token": "<pad>"})
    assert vocabulary_rows(json.loads((source / "config.json").read_text(encoding="utf-8"))) == 6400
    assert write_tokenizer(source, out, CHATML) == 0
    assert vocabulary_rows({"text_config": {"vocab_size": 7}}) == 7
    assert vocabulary_rows({}) is None


def test_a_pad_token_that_ends_answers_is_not_kept(tmp_path: Path) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    write_json_object(source / "generation_config.json", {"eos_token_id": 7, "pad_token_id": 7})
    write_generation_config(source, out, 7)
    assert GenerationConfig.from_pretrained(out).pad_token_id is None
    write_generation_config(source, out, 7, (), 3)
    assert GenerationConfig.from_pretrained(out).pad_token_id == 3


def test_a_tokenizer_of_another_library_is_written_for_everybody(tmp_path: Path) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    settings = {
        "tokenizer_class": "ChatGLMTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
    }
    written(source, handmade(), **settings)
    chat = read_chat(ROOT / "conf" / "model" / "chat" / "chatglm3.yaml")
    assert write_tokenizer(source, out, chat) == 0
    exported = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    ids = exported.apply_chat_template(
        [{"role": "user", "content": "ab xab"}], add_generation_prompt=True, return_dict=False
    )
    assert ids == compile_template(chat, load_vocabulary(source)).prompt(
        [Message(role="user", content="ab xab")]
    )
    assert (exported.pad_token, exported.eos_token) == ("<unk>", "</s>")
    assert (
        compile_template(chat, load_vocabulary(out)).prompt([Message(role="user", content="ab xab")]) == ids
    )


def test_config_names_the_type_and_nothing_local(tmp_path: Path) -> None:
    write_path = tmp_path / "config.json"
    settings = {
        "model_type": "llama",
        "torch_dtype": "float32",
        "_name_or_path": str(tmp_path),
        "transformers_version": "9",
        "auto_map": {"AutoModel": "x.Y"},
    }
    write_path.write_text(json.dumps(settings), encoding="utf-8")
    (tmp_path / "out").mkdir()
    write_config(tmp_path, tmp_path / "out", "bfloat16")
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8")) == {
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "dtype": "bfloat16",
    }
