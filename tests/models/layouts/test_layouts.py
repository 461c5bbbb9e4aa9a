"""InternLM, InternLM2 and Baichuan, rewritten: what the original code computed is computed again, and the way
back gives what was there.

What every family has in common, the driver and telling them apart, is tested here too.
"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.models import fixtures
from tests.models.fixtures import (
    check_greedy,
    check_inverse,
    check_logits,
    check_long,
    check_packed,
    check_same,
    check_training,
    directory,
    greedy,
    load,
    reference,
)
from tuner.errors import DataError
from tuner.kernels import alibi
from tuner.models.checkpoint.files import INDEX, checkpoint_files, weight_files
from tuner.models.checkpoint.safetensors import Checkpoint, Spec, specs_in_dtype
from tuner.models.checkpoint.write_safetensors import write_checkpoint
from tuner.models.layouts.baichuan import normalised
from tuner.models.layouts.detection import MODULES, ORIGINAL, VERSIONS, WITHOUT_CLASS, detect_layout
from tuner.models.layouts.rewrite import KEPT, layout_module, original_tensors, write_native, write_original

LAYOUTS = {
    "internlm2": "internlm2",
    "internlm2_dynamic": "internlm2",
    "internlm": "internlm",
    "baichuan_7b": "baichuan",
    "baichuan2_7b": "baichuan2",
    "baichuan_13b": "baichuan_13b",
    "baichuan2_13b": "baichuan2_13b",
}
every = pytest.mark.parametrize("name", LAYOUTS)


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("native")
    return {name: fixtures.native(name, layout, root / name) for name, layout in LAYOUTS.items()}


@every
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_it_computes_what_the_original_computed(
    rewritten: dict[str, Path], name: str, attention: str
) -> None:
    model, expected = load(rewritten[name], attention), reference(name)
    check_logits(model, expected)
    check_greedy(model, expected)
    check_training(model, expected)


@every
def test_packed_rows_compute_what_the_original_computed(rewritten: dict[str, Path], name: str) -> None:
    check_packed(load(rewritten[name], "tuner"), reference(name))


@pytest.mark.parametrize("name", ["internlm2_dynamic", "internlm"])
def test_it_computes_what_the_original_computed_beyond_its_window(
    rewritten: dict[str, Path], name: str
) -> None:
    expected = reference(name)
    check_long(load(rewritten[name], "sdpa"), expected)
    # The first InternLM turns its cached keys again at each step: without a cache the two decode alike.
    decoded = greedy(load(rewritten[name]), expected["greedy_input_ids_long"], cache=name != "internlm")
    assert torch.equal(decoded, expected["greedy_ids_long"])


@every
def test_the_way_back_gives_the_same_tensors_and_settings(
    rewritten: dict[str, Path], name: str, tmp_path: Path
) -> None:
    check_inverse(directory(name), rewritten[name], tmp_path / "back")


@every
def test_what_is_written_names_no_code_and_has_native_settings(rewritten: dict[str, Path], name: str) -> None:
    config, before = (
        json.loads((path / "config.json").read_text()) for path in (rewritten[name], directory(name))
    )
    assert (
        not {"auto_map", "tokenizer_class", "rope_theta", "rope_scaling", "rotary", "torch_dtype"}
        & config.keys()
    )
    assert config["model_type"] == (alibi.MODEL_TYPE if LAYOUTS[name] in WITHOUT_CLASS else "llama")
    generation, said = (
        json.loads((path / "generation_config.json").read_text())
        for path in (rewritten[name], directory(name))
    )
    assert {key: generation[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")} == {
        key: before[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")
    }
    assert (
        said.items()
        <= generation.items()
        | {key: said[key] for key in ("transformers_version", "_from_model_config") if key in said}.items()
    )


def test_rope_is_what_the_original_had(rewritten: dict[str, Path]) -> None:
    rope = {
        name: json.loads((path / "config.json").read_text())["rope_parameters"]
        for name, path in rewritten.items()
    }
    assert rope["internlm2"] == {"rope_type": "default", "rope_theta": 1000000}
    assert rope["internlm2_dynamic"] == {"rope_type": "dynamic", "rope_theta": 1000000, "factor": 2.0}
    assert rope["internlm"] == {"rope_type": "dynamic", "rope_theta": 10000, "factor": 1.0}
    assert rope["baichuan_7b"] == {"rope_type": "default", "rope_theta": 10000.0}


def test_only_the_first_internlm_warns_of_its_window(tmp_path: Path) -> None:
    said: dict[str, list[str]] = {}
    for name in ("internlm", "internlm2_dynamic"):
        (tmp_path / name).mkdir()
        said[name] = []
        write_native(checkpoint_files(directory(name)), LAYOUTS[name], tmp_path / name, say=said[name].append)
    assert "beyond its window of 32 tokens" in said["internlm"][0]
    assert said["internlm2_dynamic"] == []


def test_shards_a_tokenizer_and_code_beside_the_weights(tmp_path: Path) -> None:
    source, out, back = tmp_path / "source", tmp_path / "out", tmp_path / "back"
    for path in (source, out, back):
        path.mkdir()
    whole = Checkpoint(weight_files(directory("internlm2")))
    write_checkpoint(source, whole.specs.values(), whole.__getitem__, limit=200_000)
    assert (source / INDEX).is_file()
    shutil.copyfile(directory("internlm2") / "config.json", source / "config.json")
    for name in ("tokenizer.model", "tokenizer_config.json", "modeling_internlm2.py"):
        (source / name).write_text(name)
    written: list[Spec] = []
    write_native(
        {path.name: path for path in source.iterdir()},
        "internlm2",
        out,
        say=lambda _: None,
        tick=written.append,
    )
    assert sum(spec.nbytes for spec in written) == sum(spec.nbytes for spec in whole.specs.values())
    assert {path.name for path in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
        ORIGINAL,
    }
    native = Checkpoint(weight_files(out))
    assert write_original(native.specs, native.__getitem__, out / ORIGINAL, back) == ["model.safetensors"]
    check_same(source, back)
    assert (back / "tokenizer.model").read_text() == "tokenizer.model"
    assert (back / "config.json").read_bytes() == json_bytes(source / "config.json")
    assert not (back / "modeling_internlm2.py").exists()


def json_bytes(path: Path) -> bytes:
    return (json.dumps(json.loads(path.read_text()), indent=2, ensure_ascii=False) + "\n").encode()


def back(
    native: Path, out: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """A native checkpoint, changed as training and merging change it, in its original layout."""
    out.mkdir()
    values = change(load_file(native / "model.safetensors"))
    names = {torch.float32: "F32", torch.bfloat16: "BF16"}
    specs = {
        name: Spec(name=name, dtype=names[value.dtype], shape=tuple(value.shape))
        for name, value in values.items()
    }
    write_original(specs, values.__getitem__, native / ORIGINAL, out)
    return load_file(out / "model.safetensors")


def test_a_merged_model_goes_back_in_its_new_type(rewritten: dict[str, Path], tmp_path: Path) -> None:
    native = rewritten["baichuan2_7b"]
    found = back(
        native, tmp_path / "back", lambda values: {name: value.bfloat16() for name, value in values.items()}
    )
    before = load_file(directory("baichuan2_7b") / "model.safetensors")
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name].bfloat16()) for name in before)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_buffers_keep_their_type_on_the_way_back(rewritten: dict[str, Path]) -> None:
    specs = specs_in_dtype(Checkpoint(weight_files(rewritten["baichuan_7b"])).specs, "BF16")
    types = {
        piece.spec.name: piece.spec.dtype
        for piece in original_tensors(rewritten["baichuan_7b"] / ORIGINAL, specs)
    }
    assert {dtype for name, dtype in types.items() if name.endswith("inv_freq")} == {"F32"}
    assert {dtype for name, dtype in types.items() if not name.endswith("inv_freq")} == {"BF16"}


@pytest.mark.parametrize("name", ["internlm2", "internlm", "baichuan_7b", "baichuan_13b"])
def test_new_tokens_go_back_with_a_larger_vocabulary(
    rewritten: dict[str, Path], name: str, tmp_path: Path
) -> None:
    def grow(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: torch.cat([value, value[:5]])
            if key in ("model.embed_tokens.weight", "lm_head.weight")
            else value
            for key, value in values.items()
        }

    back(rewritten[name], tmp_path / "back", grow)
    rows = json.loads((directory(name) / "config.json").read_text())["vocab_size"] + 5
    assert json.loads((tmp_path / "back" / "config.json").read_text())["vocab_size"] == rows
    again = tmp_path / "again"
    again.mkdir()
    write_native(checkpoint_files(tmp_path / "back"), LAYOUTS[name], again, say=lambda _: None)
    assert Checkpoint(weight_files(again)).specs["model.embed_tokens.weight"].shape[0] == rows


@pytest.mark.parametrize(
    ("name", "mend"), [("baichuan2_7b", "merge.layout=native"), ("baichuan2_13b", r"model.new_tokens\.$")]
)
def test_a_trained_head_has_no_place_in_baichuan2(
    rewritten: dict[str, Path], name: str, mend: str, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError,
        match=f"lm_head.weight has trained, and the {LAYOUTS[name]} layout has no place for that.*{mend}",
    ):
        back(
            rewritten[name],
            tmp_path / "a",
            lambda values: values | {"lm_head.weight": values["lm_head.weight"] * 1.0001},
        )
    with pytest.raises(
        DataError, match=f"has 321 tokens, where this {LAYOUTS[name]} checkpoint had 320.*{mend}"
    ):
        back(
            rewritten[name],
            tmp_path / "b",
            lambda values: {
                key: torch.cat([value, value[:1]]) if value.shape[0] == 320 else value
                for key, value in values.items()
            },
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_head_is_normalised_as_the_original_does_it(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = torch.randn(5000, 48).to(dtype)
    found, expected = normalised(head), torch.nn.functional.normalize(head)
    assert found.dtype == dtype
    assert (found == expected).float().mean() > (0.75 if dtype == torch.float32 else 0.999)
    torch.testing.assert_close(found, expected, atol=0, rtol=2 * torch.finfo(dtype).eps)
    assert not normalised(torch.zeros(2, 4, dtype=dtype)).any()


def test_a_trained_tensor_arrives_in_its_place(rewritten: dict[str, Path], tmp_path: Path) -> None:
    key = "model.layers.1.self_attn.k_proj.weight"
    found = back(rewritten["internlm2"], tmp_path / "back", lambda values: values | {key: values[key] + 1})
    before = load_file(directory("internlm2") / "model.safetensors")
    changed = found["model.layers.1.attention.wqkv.weight"] != before["model.layers.1.attention.wqkv.weight"]
    # Two groups of three query heads, a key and a value, 16 rows each.
    assert changed.all(dim=1).nonzero().flatten().tolist() == [*range(48, 64), *range(128, 144)]
    assert changed.sum() == 32 * 96


def test_a_directory_that_is_not_ours_is_no_way_back(rewritten: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"has no layout.json: it is not what was put beside a rewritten checkpoint"
    ):
        original_tensors(tmp_path, Checkpoint(weight_files(rewritten["internlm"])).specs)
    assert not (rewritten["internlm"] / ORIGINAL / KEPT).exists()


HOSTILE: list[tuple[str, dict[str, Any], str]] = [
    ("internlm2", {"num_attention_heads": -6}, "says num_attention_heads -6, where a whole number from 1"),
    ("internlm2", {"num_attention_heads": True}, "says num_attention_heads True, where a whole number"),
    ("internlm2", {"num_attention_heads": 5}, "says num_attention_heads 5, where heads of an even width"),
    (
        "internlm2",
        {"num_key_value_heads": 4},
        "says num_key_value_heads 4, where a divisor of num_attention_heads 6",
    ),
    (
        "internlm2",
        {"num_key_value_heads": 3},
        (
            r"wqkv.weight of the internlm2 checkpoint has the shape \[160, 96\], where its config.json asks"
            r" for \[192, 96\]"
        ),
    ),
    ("internlm2", {"hidden_size": 10**30}, "says hidden_size 1000000"),
    ("internlm2", {"hidden_size": None}, "has no hidden_size, which should be a whole number"),
    (
        "internlm2",
        {"num_hidden_layers": 4096},
        "lacks 28658 of the 28675 tensors that its config.json asks for, first model.layers.2",
    ),
    ("internlm2", {"num_hidden_layers": 10**9}, "says num_hidden_layers 1000000000"),
    ("internlm2", {"num_hidden_layers": 1}, "holds 7 tensors that its layout does not have"),
    (
        "internlm2",
        {"vocab_size": 321},
        r"tok_embeddings.weight of the internlm2 checkpoint has the shape \[320, 96\]",
    ),
    ("internlm2", {"bias": True}, "lacks 4 of the"),
    ("internlm2", {"bias": "no"}, "says bias 'no', where true or false"),
    (
        "internlm2",
        {"rope_scaling": {"type": "yarn", "factor": 2}},
        "rope_scaling .*a type linear or dynamic with a factor",
    ),
    ("internlm2", {"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "a factor from 1 on"),
    ("internlm2", {"rope_scaling": {"type": "dynamic"}}, "has no factor"),
    ("internlm2", {"rope_scaling": "dynamic"}, "a type linear or dynamic"),
    ("internlm2", {"rope_theta": float("nan")}, "says rope_theta nan, where a finite number above 0"),
    ("internlm2", {"rms_norm_eps": 0}, "says rms_norm_eps 0"),
    ("internlm2", {"hidden_act": "gelu"}, "says hidden_act 'gelu'"),
    ("internlm2", {"pad_token_id": 320}, "says pad_token_id 320, where ids from 0 to 319"),
    ("internlm2", {"eos_token_id": "2"}, "says eos_token_id '2'"),
    ("internlm", {"rotary": {"type": "yarn"}}, "a base and a type, dynamic or origin"),
    ("internlm", {"rotary": {"type": "dynamic", "scaling_factor": 0.1}}, "a scaling_factor from 1 on"),
    ("internlm", {"rotary": {"base": -1}}, "says base -1"),
    (
        "internlm",
        {"bias": False},
        "holds 8 tensors that its layout does not have, first model.layers.0.self_attn",
    ),
    ("baichuan_7b", {"rope_scaling": {"type": "linear", "factor": 2}}, "says rope_scaling"),
    ("baichuan_7b", {"num_key_value_heads": 2}, "says num_key_value_heads 2"),
    ("baichuan2_7b", {"tie_word_embeddings": True}, "says tie_word_embeddings True"),
    ("baichuan2_13b", {"model_max_length": "long"}, "says model_max_length 'long'"),
]


@pytest.mark.parametrize(
    ("name", "change", "message"), HOSTILE, ids=[f"{name}-{change}"[:60] for name, change, _ in HOSTILE]
)
def test_a_config_that_can_not_be_is_refused_before_anything_is_written(
    name: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = json.loads((directory(name) / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(DataError, match=message) as caught:
        write_native(
            checkpoint_files(directory(name)) | {"config.json": tmp_path / "config.json"},
            LAYOUTS[name],
            out,
            say=lambda _: None,
        )
    assert not list(out.iterdir())
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_tensors_that_the_layout_does_not_have_are_refused(tmp_path: Path) -> None:
    values = load_file(directory("internlm2") / "model.safetensors")
    for change, message in (
        (
            {"v_head.weight": torch.zeros(2)},
            "holds 1 tensors that its layout does not have, first v_head.weight",
        ),
        (
            {"output.weight": torch.zeros(320, 96, dtype=torch.int8)},
            "output.weight of the internlm2 checkpoint is of type I8",
        ),
        ({"output.weight": torch.zeros(96, 320)}, r"has the shape \[96, 320\]"),
    ):
        save_file(values | change, tmp_path / "model.safetensors")
        files = {
            "config.json": directory("internlm2") / "config.json",
            "model.safetensors": tmp_path / "model.safetensors",
        }
        (tmp_path / "out").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            write_native(files, "internlm2", tmp_path / "out", say=lambda _: None)


FIRST_7B = {
    "model_type": "baichuan",
    "architectures": ["BaiChuanForCausalLM"],
    "max_position_embeddings": 4096,
    "vocab_size": 64000,
}
SECOND_7B = {
    "model_type": "baichuan",
    "architectures": ["BaichuanForCausalLM"],
    "max_position_embeddings": 4096,
    "vocab_size": 125696,
}
FIRST_13B = {
    "model_type": "baichuan",
    "architectures": ["BaichuanForCausalLM"],
    "model_max_length": 4096,
    "vocab_size": 64000,
}
GLM = {"model_type": "chatglm", "padded_vocab_size": 65024, "layernorm_epsilon": 1e-5}


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        ({"model_type": "internlm"}, "internlm"),
        ({"model_type": "internlm2", "architectures": ["InternLM2ForCausalLM"]}, "internlm2"),
        ({"model_type": "internlm3", "architectures": ["InternLM3ForCausalLM"]}, "internlm3"),
        ({"model_type": "llama", "auto_map": {"AutoModel": "evil.Model"}}, "native"),
        ({}, "native"),
        ({"model_type": ["llama"]}, "native"),
        ({"model_type": "qwen"}, "qwen"),
        ({"model_type": "minicpm"}, "minicpm"),
        (FIRST_7B, "baichuan"),
        (SECOND_7B, "baichuan2"),
        (FIRST_13B, "baichuan_13b"),
        (FIRST_13B | {"vocab_size": 125696}, "baichuan2_13b"),
        (GLM | {"_name_or_path": "THUDM/chatglm2-6b"}, "chatglm2"),
        (GLM | {"_name_or_path": "THUDM/chatglm2-6b-32k", "rope_ratio": 50}, "chatglm2"),
        (GLM | {"_name_or_path": "THUDM/chatglm3-6b-32k", "rope_ratio": 50}, "chatglm3"),
        (GLM | {"_name_or_path": "/home/chatglm2/tuned", "rope_ratio": 1}, "chatglm3"),
        (GLM, "chatglm3"),
        (GLM | {"padded_vocab_size": 151552, "rope_ratio": 500}, "glm4"),
        (GLM | {"layernorm_epsilon": 1.5625e-07, "rope_ratio": 500}, "glm4"),
    ],
)
def test_the_layout_is_read_off_the_config(config: dict[str, Any], layout: str) -> None:
    assert detect_layout(config) == layout


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            FIRST_13B | {"vocab_size": 272},
            "Say which it is: model.layout=baichuan_13b or model.layout=baichuan2_13b",
        ),
        (FIRST_7B | {"vocab_size": 125696}, "together are none of the published Baichuans"),
        (SECOND_7B | {"vocab_size": 64000}, "together are none of the published Baichuans"),
        ({"model_type": "baichuan"}, "architecture unknown and vocab_size None"),
        ({"model_type": "baichuan", "architectures": {"a": 1}, "vocab_size": [1]}, "architecture unknown"),
        (GLM | {"rope_ratio": 50}, "model.layout=chatglm2 or model.layout=chatglm3"),
        (GLM | {"rope_ratio": "50", "_name_or_path": 3}, "model.layout=chatglm2 or model.layout=chatglm3"),
        (
            {"model_type": "chatglm", "inner_hidden_size": 16384, "position_encoding_2d": True},
            "ChatGLM-6B, the first",
        ),
    ],
)
def test_a_config_that_does_not_tell_its_layout_asks_for_it(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        detect_layout(config)


@pytest.mark.parametrize(
    "name",
    [
        "internlm2",
        "internlm2_dynamic",
        "internlm",
        "baichuan_7b",
        "baichuan2_7b",
        "chatglm2",
        "chatglm3",
        "glm4_remote",
    ],
)
def test_the_layout_of_a_fixture_is_read_off_its_config(name: str) -> None:
    expected = LAYOUTS.get(name, name.removesuffix("_remote"))
    assert detect_layout(json.loads((directory(name) / "config.json").read_text())) == expected


def test_every_layout_has_a_version_and_a_module() -> None:
    assert VERSIONS.keys() == MODULES.keys()
    for layout in VERSIONS:
        assert callable(layout_module(layout).to_native)
        assert callable(layout_module(layout).to_original)
    with pytest.raises(
        DataError,
        match=r"model.layout=llama is not a layout that is rewritten\. There are: internlm, internlm2",
    ):
        layout_module("llama")
