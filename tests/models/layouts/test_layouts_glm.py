"""ChatGLM2 and 3, GLM-4 in its first layout, Qwen and MiniCPM, rewritten: what the original code computed is
computed again, the way back gives what was there, and what can't be represented is refused.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models import fixtures
from tests.models.fixtures import (
    check_greedy,
    check_inverse,
    check_logits,
    check_long,
    check_training,
    directory,
    load,
    reference,
)
from tuner.errors import DataError
from tuner.models.checkpoint.files import checkpoint_files, weight_files
from tuner.models.checkpoint.safetensors import Checkpoint, Spec
from tuner.models.layouts import chatglm, minicpm, qwen
from tuner.models.layouts.detection import ORIGINAL
from tuner.models.layouts.mapped_tensor import NativeCheckpoint
from tuner.models.layouts.rewrite import write_native, write_original

LAYOUTS = {
    "chatglm2": "chatglm2",
    "chatglm3": "chatglm3",
    "glm4_remote": "glm4",
    "qwen": "qwen",
    "minicpm": "minicpm",
}
MODULES = {"chatglm2": chatglm, "chatglm3": chatglm, "glm4_remote": chatglm, "qwen": qwen, "minicpm": minicpm}
every = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("native")
    return {name: fixtures.native(name, layout, root / name) for name, layout in LAYOUTS.items()}


def parts(name: str) -> tuple[dict[str, Any], dict[str, Spec]]:
    """A fixture's config.json and the specs of its tensors."""
    path = directory(name)
    return json.loads((path / "config.json").read_text()), Checkpoint(weight_files(path)).specs


def native(name: str, changes: Mapping[str, Any] | None = None) -> NativeCheckpoint:
    """What the fixture becomes if its config.json says something else."""
    config, specs = parts(name)
    return MODULES[name].to_native(config | dict(changes or {}), specs, LAYOUTS[name])


@every
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_computes_what_the_original_computed(
    rewritten: dict[str, Path], name: str, attention: str
) -> None:
    model, expected = load(rewritten[name], attention), reference(name)
    check_logits(model, expected)
    check_greedy(model, expected)
    check_training(model, expected, tied=name == "minicpm")


def test_qwen_computes_beyond_its_window_what_the_original_computes_in_training(
    rewritten: dict[str, Path],
) -> None:
    check_long(load(rewritten["qwen"], "sdpa"), reference("qwen"), "logits_long_train")


@every
def test_the_way_back_gives_the_same_tensors_and_settings(
    rewritten: dict[str, Path], name: str, tmp_path: Path
) -> None:
    check_inverse(directory(name), rewritten[name], tmp_path / "back")


@every
def test_the_written_settings_name_no_code_and_no_key_of_the_old_class(
    rewritten: dict[str, Path], name: str
) -> None:
    config = json.loads((rewritten[name] / "config.json").read_text())
    assert config["model_type"] in ("glm", "qwen2", "granite")
    assert not config.keys() & {
        "auto_map",
        "tokenizer_class",
        "num_layers",
        "seq_length",
        "scale_emb",
        "torch_dtype",
        "rope_theta",
    }
    assert not any("inv_freq" in name for name in Checkpoint(weight_files(rewritten[name])).specs)


@every
def test_a_vocabulary_that_has_grown_is_carried_back(
    rewritten: dict[str, Path], name: str, tmp_path: Path
) -> None:
    weights = Checkpoint(weight_files(rewritten[name]))
    ends = {
        one: weights[one] for one in ("model.embed_tokens.weight", "lm_head.weight") if one in weights.specs
    }
    longer = {one: torch.cat([value, torch.full((3, value.shape[1]), 0.5)]) for one, value in ends.items()}
    specs = weights.specs | {
        one: Spec(name=one, dtype="F32", shape=tuple(value.shape)) for one, value in longer.items()
    }
    (back := tmp_path / "back").mkdir()
    write_original(
        specs, lambda one: longer[one] if one in longer else weights[one], rewritten[name] / ORIGINAL, back
    )

    before, after = parts(name)[0], json.loads((back / "config.json").read_text())
    key = "padded_vocab_size" if "padded_vocab_size" in before else "vocab_size"
    assert after == before | {key: before[key] + 3}
    (again := tmp_path / "again").mkdir()
    write_native(checkpoint_files(back), LAYOUTS[name], again, say=lambda _: None)
    assert Checkpoint(weight_files(again)).specs == specs
    assert torch.equal(
        Checkpoint(weight_files(again))["model.embed_tokens.weight"], longer["model.embed_tokens.weight"]
    )


def test_only_an_embedding_and_a_head_that_grew_together_go_back(
    rewritten: dict[str, Path], tmp_path: Path
) -> None:
    specs = Checkpoint(weight_files(rewritten["qwen"])).specs
    specs = specs | {
        "model.embed_tokens.weight": Spec(name="model.embed_tokens.weight", dtype="F32", shape=(323, 64))
    }
    with pytest.raises(
        DataError,
        match=(
            r"lm_head.weight of the rewritten qwen checkpoint has the shape \[320, 64\].*asks for \[323,"
            r" 64\]"
        ),
    ):
        qwen.to_original(parts("qwen")[0], specs, "qwen")


def test_a_trained_checkpoint_of_another_type_goes_back_in_that_type(
    rewritten: dict[str, Path], tmp_path: Path
) -> None:
    weights = Checkpoint(weight_files(rewritten["chatglm3"]))
    specs = {name: Spec(name=name, dtype="BF16", shape=spec.shape) for name, spec in weights.specs.items()}
    (back := tmp_path / "back").mkdir()
    write_original(
        specs, lambda name: weights[name].to(torch.bfloat16), rewritten["chatglm3"] / ORIGINAL, back
    )
    before, after = Checkpoint(weight_files(directory("chatglm3"))), Checkpoint(weight_files(back))
    assert json.loads((back / "config.json").read_text())["torch_dtype"] == "bfloat16"
    for name in before.specs:
        wanted = before[name] if name.endswith("inv_freq") else before[name].to(torch.bfloat16)
        assert torch.equal(after[name], wanted), name


def test_one_tensor_is_not_made_of_several_types(rewritten: dict[str, Path]) -> None:
    specs = Checkpoint(weight_files(rewritten["qwen"])).specs
    key = "model.layers.1.self_attn.k_proj.weight"
    with pytest.raises(DataError, match=r"k_proj.weight BF16.*should be of one type"):
        qwen.to_original(
            parts("qwen")[0], specs | {key: Spec(name=key, dtype="BF16", shape=(64, 64))}, "qwen"
        )


def test_what_ends_and_pads_is_said_for_every_family() -> None:
    assert native("chatglm2").generation == {"eos_token_id": 2, "pad_token_id": 0}
    assert native("chatglm3").generation == {"eos_token_id": 2, "pad_token_id": 0}
    assert native("glm4_remote").generation == {"eos_token_id": [335, 334, 333], "pad_token_id": 335}
    assert native("qwen").generation == {}
    assert native("minicpm").generation == {"bos_token_id": 1, "eos_token_id": 2}
    assert native("minicpm", {"eos_token_id": None, "bos_token_id": None}).generation["eos_token_id"] == 2


@pytest.mark.parametrize(
    ("layout", "rows", "said", "wanted"),
    [
        ("chatglm2", 65024, {"eos_token_id": 2}, ([2], 0)),
        ("chatglm3", 65024, {"eos_token_id": 2}, ([2, 64795, 64797], 0)),
        ("chatglm3", 65024, {"eos_token_id": 5, "pad_token_id": 7}, ([5], 7)),
        ("chatglm3", 65024, {"eos_token_id": [2, 9]}, ([2, 9], 0)),
        ("glm4", 151552, {}, ([151329, 151336, 151338], 151329)),
        ("qwen", 151936, {}, ([151643, 151645], 151643)),
    ],
)
def test_with_a_real_vocabulary_the_published_ids_are_taken(
    layout: str, rows: int, said: dict[str, Any], wanted: tuple[list[int], int]
) -> None:
    name = {"glm4": "glm4_remote"}.get(layout, layout)
    config, specs = parts(name)
    config = {
        key: value for key, value in config.items() if key not in ("eos_token_id", "pad_token_id")
    } | said
    key = "vocab_size" if layout == "qwen" else "padded_vocab_size"
    specs = {
        one: Spec(
            name=one,
            dtype="F32",
            shape=(rows, *spec.shape[1:]) if spec.shape[0] == config[key] else spec.shape,
        )
        for one, spec in specs.items()
    }
    found = MODULES[name].to_native(config | {key: rows}, specs, layout).generation
    ends = found["eos_token_id"] if isinstance(found["eos_token_id"], list) else [found["eos_token_id"]]
    assert (ends, found["pad_token_id"]) == wanted


def test_a_ratio_divides_positions_in_chatglm2_and_multiplies_the_base_in_the_later_ones() -> None:
    half = {"partial_rotary_factor": 0.5}
    assert (
        native("chatglm2", {"rope_ratio": 50}).config["rope_parameters"]
        == {"rope_type": "linear", "rope_theta": 10000.0, "factor": 50.0} | half
    )
    assert (
        native("chatglm3", {"rope_ratio": 50}).config["rope_parameters"]
        == {"rope_type": "default", "rope_theta": 500000.0} | half
    )
    assert (
        native("glm4_remote").config["rope_parameters"] == {"rope_type": "default", "rope_theta": 5e6} | half
    )
    assert (
        native("chatglm2", {"rope_ratio": 1}).config["rope_parameters"]
        == {"rope_type": "default", "rope_theta": 10000.0} | half
    )


def test_qwen_says_where_it_begins_to_differ() -> None:
    assert [text for text in native("qwen").warnings if "beyond 32 tokens" in text]
    assert native("qwen").config["max_position_embeddings"] == 32
    assert native("qwen", {"use_dynamic_ntk": False, "use_logn_attn": False}).warnings == ()
    assert native("qwen", {"emb_dropout_prob": 0.1}).warnings[1:] == (
        "the dropout of the embedding (emb_dropout_prob 0.1) is left out: Qwen2 has none",
    )
    assert "hidden_dropout 0.2" in native("chatglm2", {"hidden_dropout": 0.2}).warnings[0]


UNREPRESENTED = [
    ("chatglm2", {"quantization_bit": 4}, r"quantization_bit 4, where.*algo=qlora"),
    ("chatglm2", {"pre_seq_len": 128}, r"pre_seq_len 128, where.*without a tuned prefix"),
    ("chatglm3", {"add_bias_linear": True}, "add_bias_linear True, where.*False only"),
    ("chatglm3", {"rmsnorm": False}, "rmsnorm False, where.*True only"),
    ("chatglm3", {"post_layer_norm": False}, "post_layer_norm False, where"),
    ("chatglm3", {"original_rope": False}, "original_rope False, where"),
    (
        "chatglm3",
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm True",
    ),
    ("chatglm3", {"kv_channels": 18}, "kv_channels 18, where a multiple of 4"),
    (
        "chatglm3",
        {"multi_query_group_num": 3},
        "multi_query_group_num 3, where a divisor of num_attention_heads 4",
    ),
    ("chatglm3", {"rope_ratio": -1}, "rope_ratio -1, where a finite number above 0"),
    ("chatglm3", {"eos_token_id": 320}, "eos_token_id 320, where ids from 0 to 319"),
    (
        "glm4_remote",
        {"eos_token_id": None},
        r"no eos_token_id, and the usual 151329 is beyond its vocabulary of 336",
    ),
    ("qwen", {"kv_channels": 32}, "kv_channels 32, where 16 was expected"),
    ("qwen", {"kv_channels": None}, "kv_channels None, where 16 was expected"),
    ("qwen", {"rotary_pct": 0.5}, "rotary_pct 0.5, where"),
    ("qwen", {"no_bias": False}, "no_bias False, where"),
    ("qwen", {"scale_attn_weights": False}, "scale_attn_weights False, where"),
    ("qwen", {"intermediate_size": 191}, "intermediate_size 191, where an even number"),
    ("qwen", {"visual": {"layers": 48}}, "reads images"),
    ("minicpm", {"num_experts": 8}, "num_experts 8, where"),
    ("minicpm", {"hidden_act": "fatrelu"}, "hidden_act 'fatrelu', where"),
    ("minicpm", {"rope_scaling": {"rope_type": "longrope", "long_factor": [1.0]}}, "rope_scaling .*longrope"),
]


@pytest.mark.parametrize(("name", "changes", "match"), UNREPRESENTED)
def test_what_the_native_class_can_not_represent_is_refused(
    name: str, changes: dict[str, Any], match: str
) -> None:
    with pytest.raises(DataError, match=match) as refused:
        native(name, changes)
    assert "\n" not in str(refused.value)


SIZES = {
    "chatglm2": (
        "num_layers",
        "hidden_size",
        "num_attention_heads",
        "kv_channels",
        "ffn_hidden_size",
        "padded_vocab_size",
    ),
    "qwen": (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
        "seq_length",
    ),
    "minicpm": ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"),
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in SIZES.items() for key in keys])
@pytest.mark.parametrize("value", [None, 0, -1, 10**12, 10**400, 1.5, True, "64", [64], {}])
def test_a_size_that_is_none_is_refused_before_anything_is_made(name: str, key: str, value: Any) -> None:
    with pytest.raises(DataError, match=key) as refused:
        native(name, {key: value})
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("name", SIZES)
def test_a_config_that_says_other_sizes_than_the_tensors_have_is_refused(name: str) -> None:
    for key in SIZES[name]:
        if key != "seq_length":
            with pytest.raises(DataError, match=r"lacks \d|holds \d|has the shape|where"):
                native(name, {key: parts(name)[0][key] * 2})


@every
def test_tensors_that_are_missing_left_over_or_of_another_kind_are_refused(name: str) -> None:
    config, specs = parts(name)
    last, module, layout = (
        [one for one in specs if not one.endswith("inv_freq")][-1],
        MODULES[name],
        LAYOUTS[name],
    )
    with pytest.raises(DataError, match="lacks 1 of"):
        module.to_native(config, {one: spec for one, spec in specs.items() if one != last}, layout)
    with pytest.raises(DataError, match="holds 1 tensors that its layout does not have, first lora_A"):
        module.to_native(config, specs | {"lora_A": Spec(name="lora_A", dtype="F32", shape=(2, 2))}, layout)
    with pytest.raises(DataError, match="is of type I8"):
        module.to_native(config, specs | {last: Spec(name=last, dtype="I8", shape=specs[last].shape)}, layout)
    with pytest.raises(DataError, match="has the shape"):
        module.to_native(config, specs | {last: Spec(name=last, dtype="F32", shape=(7,))}, layout)
    if name != "minicpm":  # whose names are the native ones
        with pytest.raises(DataError, match=r"The rewritten .* checkpoint lacks"):
            module.to_original(config, specs, layout)


def test_qwen_without_its_biases_is_refused() -> None:
    config, specs = parts("qwen")
    with pytest.raises(DataError, match=r"lacks 2 of the 19 .*first transformer.h.0.attn.c_attn.bias"):
        qwen.to_native(
            config, {name: spec for name, spec in specs.items() if not name.endswith("bias")}, "qwen"
        )


def test_a_tied_head_that_is_in_the_file_stays_there(tmp_path: Path) -> None:
    config, specs = parts("minicpm")
    specs = specs | {"lm_head.weight": Spec(name="lm_head.weight", dtype="F32", shape=(288, 64))}
    found = {piece.spec.name: piece.spec for piece in minicpm.to_native(config, specs, "minicpm").tensors}
    assert found == specs
    assert {piece.spec.name for piece in minicpm.to_original(config, found, "minicpm")} == specs.keys()
