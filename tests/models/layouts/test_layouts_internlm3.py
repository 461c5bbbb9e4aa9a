"""InternLM3, rewritten: what transformers' own class computes, where the installed version has it, is
computed bit for bit, and by Llama's everywhere.

That its heads, rope and biases are what the original code makes of them is in test_layouts_property.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoTokenizer, LlamaForCausalLM

from tests.conftest import SHARED
from tests.models.fixtures import check_inverse, greedy, load
from tests.stages.support import run
from tuner.config.schema import Config, Model
from tuner.errors import DataError
from tuner.models.checkpoint.files import checkpoint_files
from tuner.models.geometry import tensor_shapes
from tuner.models.layouts.rewrite import write_native
from tuner.stages.fetch_model import STAGE

WINDOW = 32
TINY: dict[str, Any] = {
    "architectures": ["InternLM3ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_internlm3.InternLM3Config",
        "AutoModelForCausalLM": "modeling_internlm3.InternLM3ForCausalLM",
    },
    "attention_dropout": 0.0,
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "hidden_size": 96,
    "initializer_range": 0.02,
    "intermediate_size": 160,
    "max_position_embeddings": WINDOW,
    "model_type": "internlm3",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "qkv_bias": False,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 6.0, "rope_type": "dynamic"},
    "rope_theta": 50000000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.47.1",
    "use_cache": True,
    "vocab_size": 320,
}
"""a config.json with the keys of the published one"""
BIASED = {"qkv_bias": True, "bias": True}
OF_TRANSFORMERS = {
    key: value
    for key, value in TINY.items()
    if key not in ("auto_map", "bias", "qkv_bias", "rope_scaling", "rope_theta")
} | {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": True,
    "mlp_bias": True,
    "transformers_version": "5.23.0",
    "rope_parameters": {"factor": 6.0, "rope_theta": 50000000.0, "rope_type": "dynamic"},
}
"""a config.json with the keys that transformers 5.23 writes"""

CONFIGS = {
    "published": TINY,
    "biased": TINY | BIASED,
    "plain": TINY | {"rope_scaling": None, "head_dim": None},
    "linear_and_tied": TINY
    | BIASED
    | {"rope_scaling": {"type": "linear", "factor": 2.0}, "tie_word_embeddings": True},
    "written_by_transformers": OF_TRANSFORMERS,
}


def checkpoint(config: dict[str, Any], out: Path) -> Path:
    """A random one, in a directory that is made."""
    out.mkdir()
    draw = torch.Generator().manual_seed(3)
    tensors = {
        name: torch.randn(shape, generator=draw) / shape[-1] ** 0.5 + (len(shape) == 1)
        for name, shape in tensor_shapes(config).items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(config))
    return out


def rewritten(source: Path, out: Path, config: dict[str, Any] | None = None) -> tuple[Path, list[str]]:
    """The checkpoint in Llama's layout, by another config.json if there is one, and what was said."""
    out.mkdir()
    said: list[str] = []
    files = checkpoint_files(source)
    if config is not None:
        (out.parent / "other.json").write_text(json.dumps(config))
        files = files | {"config.json": out.parent / "other.json"}
    write_native(files, "internlm3", out, say=said.append)
    return out, said


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(CONFIGS[request.param])


@torch.no_grad()
def logits(path: Path, ids: Tensor) -> Tensor:
    return load(path, "sdpa")(input_ids=ids).logits


@pytest.mark.skipif(
    "internlm3" not in CONFIG_MAPPING, reason="the installed transformers has no internlm3: it came with 5.23"
)
def test_it_computes_what_the_class_of_transformers_computes(config: dict[str, Any], tmp_path: Path) -> None:
    source = checkpoint(config, tmp_path / "source")
    native, _ = rewritten(source, tmp_path / "native")
    draw = torch.Generator().manual_seed(0)
    for length in (WINDOW - 5, 2 * WINDOW):  # within the window and beyond, where dynamic rope grows
        ids = torch.randint(3, 320, (2, length), generator=draw)
        assert torch.equal(logits(native, ids), logits(source, ids))
        assert torch.equal(greedy(load(native), ids), greedy(load(source), ids))


def test_what_is_written_is_llama_and_says_so(config: dict[str, Any], tmp_path: Path) -> None:
    native, said = rewritten(checkpoint(config, tmp_path / "source"), tmp_path / "native")
    assert isinstance(load(native), LlamaForCausalLM)
    bias = config.get("bias", config.get("attention_bias"))
    scaling = config.get("rope_scaling", config.get("rope_parameters"))
    assert json.loads((native / "config.json").read_text()) == {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": bias,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "float32",
        "eos_token_id": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 96,
        "intermediate_size": 160,
        "max_position_embeddings": WINDOW,
        "mlp_bias": bias,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": config["tie_word_embeddings"],
        "use_cache": True,
        "vocab_size": 320,
        "rope_parameters": {"rope_type": "default", "rope_theta": 50000000}
        if scaling is None
        else {
            "rope_type": scaling.get("type", scaling.get("rope_type")),
            "rope_theta": 50000000,
            "factor": scaling["factor"],
        },
    }
    assert said == []


def test_the_way_back_gives_the_same_tensors_and_settings(config: dict[str, Any], tmp_path: Path) -> None:
    source = checkpoint(config, tmp_path / "source")
    native, _ = rewritten(source, tmp_path / "native")
    check_inverse(source, native, tmp_path / "back")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"qkv_bias": True},
            (
                "says qkv_bias True, where False was expected, as bias is: Llama has a bias on q, k, v and "
                "o, or on none"
            ),
        ),
        ({"bias": True}, "says qkv_bias False, where True was expected"),
        ({"mlp_bias": True, "bias": None}, "says qkv_bias False, where True was expected"),
        (BIASED, "lacks 21 of the 51 tensors"),
        ({"qkv_bias": "no"}, "says qkv_bias 'no', where true or false"),
        (
            {"head_dim": 32},
            (
                "says head_dim 32, where hidden_size / num_attention_heads, 16, was "
                "expected.*model.layout=native"
            ),
        ),
        ({"head_dim": "16"}, "says head_dim '16', where a whole number"),
        (
            {"num_key_value_heads": 3},
            (
                r"k_proj.weight of the internlm3 checkpoint has the shape \[32, 96\], where its config.json"
                r" asks for \[48, 96\]"
            ),
        ),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
            "says rope_scaling .*a type linear or dynamic",
        ),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}},
            "says rope_parameters .*a type linear or dynamic",
        ),
        ({"rope_parameters": "dynamic"}, "says rope_parameters 'dynamic'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 0, "factor": 2.0}}, "says rope_theta 0"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 0.5}}, "a factor from 1 on"),
        ({"hidden_act": "gelu"}, "says hidden_act 'gelu'"),
    ],
    ids=str,
)
def test_what_llama_can_not_say_is_refused_before_anything_is_written(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    source = checkpoint(TINY, tmp_path / "source")
    with pytest.raises(DataError, match=message) as caught:
        rewritten(source, tmp_path / "native", TINY | change)
    assert not list((tmp_path / "native").iterdir())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_directory_of_it_is_fetched_as_llama_with_its_tokenizer_and_no_code(tmp_path: Path) -> None:
    """The tokenizer comes as SentencePiece with a class in code; its special tokens lie in places that the
    model file keeps free.
    """
    given = SHARED / "tokenizers" / "internlm2"
    if not given.is_dir():
        pytest.skip("the shared tokenizers are not here")
    source = checkpoint(
        TINY
        | {
            "vocab_size": 92544,
            "hidden_size": 12,
            "head_dim": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
        },
        tmp_path / "m",
    )
    (source / "tokenizer.model").write_bytes((given / "tokenizer.model").read_bytes())
    settings = json.loads((given / "tokenizer_config.json").read_text(encoding="utf-8")) | {
        "auto_map": {"AutoTokenizer": ["tokenization_internlm3.InternLM3Tokenizer", None]},
        "tokenizer_class": "InternLM3Tokenizer",
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    for name in ("configuration", "modeling", "tokenization"):
        (source / f"{name}_internlm3.py").write_text("raise SystemExit('it ran')")

    facts = run(STAGE, Config(model=Model(path=str(source), layout="auto")), tmp_path / "out")
    assert (facts["architecture"], facts["rewritten"]) == ("LlamaForCausalLM", ["layout.internlm3"])
    assert not list((tmp_path / "out").rglob("*.py"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    text = "<|im_start|>user\nHello, 世界<|im_end|>\n"
    ids = tokenizer(text).input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:2] == ["<s>", "<|im_start|>"]
    assert ids[1] == 92543
    assert ids.count(92542) == 1
    assert tokenizer.decode(ids[1:]) == text
    load(tmp_path / "out")
