"""Beside the weights: the template gives the ids that were trained, generation stops, and no file tells where it was made."""

import json
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig

from tests.models.tiny import CHATML
from tuner.data.chat import compile_template
from tuner.data.conversation import Message
from tuner.data.tokenizer import load_vocabulary
from tuner.models.sidecars import spoken, write_config, write_generation_config, write_json, write_tokenizer


def test_the_exported_template_gives_the_trained_ids(tiny: Path, tmp_path: Path) -> None:
    chat = spoken(CHATML, "Be brief.")
    assert chat.default_system == "Be brief."
    assert spoken(CHATML, None) == CHATML
    write_tokenizer(tiny, tmp_path, chat)
    exported = AutoTokenizer.from_pretrained(tmp_path)
    ids = exported.apply_chat_template([{"role": "user", "content": "你好 there"}], add_generation_prompt=True, return_dict=False)
    assert ids == compile_template(chat, load_vocabulary(tiny)).prompt([Message(role="user", content="你好 there")])
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))


def test_generation_stops_at_the_end_of_an_answer(tmp_path: Path) -> None:
    source, out = tmp_path / "base", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for shipped, expected in ((None, [7]), (2, [7, 2]), ([2, 7, 3], [7, 2, 3])):
        write_json(source / "generation_config.json", {"eos_token_id": shipped, "pad_token_id": 9, "transformers_version": "1"})
        write_generation_config(source, out, 7)
        config = GenerationConfig.from_pretrained(out)
        assert config.eos_token_id == expected
        assert config.pad_token_id == 9
    (source / "generation_config.json").unlink()
    write_generation_config(source, out, 7)
    assert GenerationConfig.from_pretrained(out).eos_token_id == [7]


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
