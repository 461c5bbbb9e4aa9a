"""Every model of the catalogue: what its file says of it, against the model that transformers builds and
against published counts.
"""

import json
import re
import time
import warnings
from dataclasses import replace
from functools import cache
from math import prod
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.conftest import ROWS, write_rows
from tuner.cli.main import main
from tuner.cli.verbs.plan import plan_config
from tuner.config.compose import compose, conf_dir
from tuner.config.schema import Algo, Config, Model
from tuner.estimate import model_size as sizes
from tuner.models.geometry import active_parameter_count, linear_shapes, parameter_count, tensor_shapes
from tuner.models.layouts import detection
from tuner.pipeline.plan import plan
from tuner.pipeline.run import RunDirectory, store_of
from tuner.stages import STAGES

NAMES = sorted(
    path.stem
    for path in (conf_dir() / "model").glob("*.yaml")
    if "\ngeometry:" in path.read_text(encoding="utf-8")
)

BUILT = 3
"""layers that are built of each model: the first may be dense where later ones have experts, and all from
the second on are alike
"""

PUBLISHED = {
    "baichuan2_13b_base": 13_896_668_160,
    "baichuan2_7b_base": 7_505_973_248,
    "chatglm3_6b": 6_243_584_000,
    "deepseek_coder_1_3b_base": 1_346_471_936,
    "deepseek_r1_distill_llama_8b": 8_030_261_248,
    "deepseek_r1_distill_qwen_1_5b": 1_777_088_000,
    "deepseek_v2_lite": 15_706_484_224,
    "gemma2_27b": 27_227_128_320,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma3_1b": 999_885_952,
    "gemma3_270m": 268_098_176,
    "glm4_9b": 9_399_951_360,
    "internlm2_1_8b": 1_889_110_016,
    "internlm2_20b": 19_861_149_696,
    "internlm2_7b": 7_737_708_544,
    "llama2_13b": 13_015_864_320,
    "llama2_70b": 68_976_648_192,
    "llama2_7b": 6_738_415_616,
    "llama3_2_1b": 1_235_814_400,
    "llama3_2_3b": 3_212_749_824,
    "llama3_70b": 70_553_706_496,
    "llama3_8b": 8_030_261_248,
    "minicpm_2b_sft": 2_724_880_896,
    "mistral_7b_v0_1": 7_241_732_096,
    "mistral_7b_v0_3": 7_248_023_552,
    "mistral_nemo_base": 12_247_782_400,
    "mixtral_8x7b": 46_702_792_704,
    "phi3_mini_4k_instruct": 3_821_079_552,
    "phi4": 14_659_507_200,
    "phi4_mini_instruct": 3_836_021_760,
    "qwen1_5_moe_a2_7b": 14_315_784_192,
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_14b": 14_770_033_664,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_32b": 32_763_876_352,
    "qwen2_5_3b": 3_085_938_688,
    "qwen2_5_72b": 72_706_203_648,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_8b": 8_190_735_360,
    "qwen_7b": 7_721_324_544,
    "smollm2_135m": 134_515_008,
    "smollm2_1_7b": 1_711_376_384,
    "smollm2_360m": 361_821_120,
    "smollm3_3b": 3_075_098_624,
    "starcoder2_15b": 15_957_889_024,
    "starcoder2_3b": 3_030_371_328,
    "starcoder2_7b": 7_173_923_840,
    "yi_34b": 34_388_917_248,
    "yi_6b": 6_061_035_520,
}
"""parameters, as the pages of the models give them"""

GENEROUS = {
    "deepseek_r1_distill_qwen_1_5b": "the head of the model it comes from is tied, and its own is not",
    **dict.fromkeys(("gemma2_2b", "minicpm_1b", "minicpm_2b"), "the embedding is not counted"),
    **dict.fromkeys(
        (
            "granite3_0_2b",
            "internlm2_7b",
            "internlm2_5_7b",
            "internlm2_chat_7b",
            "internlm3_8b",
            "llama3_2_1b",
            "olmo2_1b",
            "qwen1_5_7b",
            "qwen_7b",
        ),
        "it is called after its class of sizes",
    ),
}
"""families' names that say more than a tenth less than there is, and why; they are also the beginnings of
their variants' names
"""

ACTIVE = {
    "mixtral_8x7b": 12.9e9,
    "qwen3_30b_a3b": 3.3e9,
    "deepseek_v2_lite": 2.4e9,
    "qwen1_5_moe_a2_7b": 2.7e9,
    "qwen2_57b_a14b": 14e9,
}
"""parameters that a token uses, as published"""


@cache
def config(name: str) -> Config:
    return compose([f"model={name}", "data=local", "data.path=rows.jsonl"])


def model(name: str) -> Model:
    return config(name).model


def on_meta(name: str) -> PreTrainedModel:
    """The first layers of the model, without memory."""
    return _on_meta(json.dumps(model(name).geometry | {"num_hidden_layers": BUILT}))


@cache
def _on_meta(geometry: str) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**json.loads(geometry)))


def held(built: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Name → shape of all that a file of the model holds: a tied head is there once."""
    tied = built.get_output_embeddings().weight is built.get_input_embeddings().weight
    return {
        name: tuple(value.shape)
        for name, value in built.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def count(of: dict[str, tuple[int, ...]], part: str = "") -> int:
    return sum(prod(shape) for name, shape in of.items() if part in name)


def title(name: str) -> str:
    return (
        (conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    )


def of_each_family() -> list[str]:
    """The first model of each model_type, by name: read off the files, since tests are collected more
    often than they run.
    """
    found: dict[str, str] = {}
    for name in NAMES:
        kind = re.search(
            r"model_type: (\w+)", (conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8")
        )
        assert kind
        found.setdefault(kind[1], name)
    return list(found.values())


def test_there_is_a_catalogue() -> None:
    assert len(NAMES) > 80
    assert set(NAMES) >= {
        "internlm2_1_8b",
        "internlm2_chat_1_8b",
        "internlm2_5_7b_chat",
        "internlm3_8b_instruct",
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_all_that_a_plan_and_a_person_need(name: str) -> None:
    said, chat = model(name), model(name).chat
    assert said.source == "hub"
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", said.repo or "")
    assert said.modelscope is None or (
        re.fullmatch(r"[\w.-]+/[\w.-]+", said.modelscope) and said.modelscope != said.repo
    )
    assert said.revision is None
    assert said.licence
    assert said.context is not None
    assert 1024 <= said.context <= 1 << 20
    assert said.layout in {detection.NATIVE, *detection.VERSIONS}
    assert chat.jinja or ("{text}" in chat.user and "{text}" in chat.assistant and chat.end)
    assert re.search(r", (base|chat)$", title(name))


@pytest.mark.parametrize("name", NAMES)
def test_a_geometry_is_a_model_of_transformers_with_the_published_number_of_parameters(name: str) -> None:
    geometry, built = model(name).geometry, held(on_meta(name))
    assert tensor_shapes(geometry | {"num_hidden_layers": BUILT}) == built
    layers = geometry["num_hidden_layers"]
    assert isinstance(layers, int)
    whole = count(built) + (layers - BUILT) * count(built, f".layers.{BUILT - 1}.")
    assert (parameter_count(geometry), model(name).parameters) == (whole, whole)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_is_called_is_what_there_is(name: str) -> None:
    """Its first line to the digit that it gives, and its name to a tenth."""
    said = re.search(r", ([\d.]+)([BM]) parameters", title(name))
    assert said
    unit, digits = {"B": 1e9, "M": 1e6}[said[2]], len(said[1].partition(".")[2])
    assert round(parameter_count(model(name).geometry) / unit, digits) == float(said[1])
    called = re.search(r"-(\d+(?:[._]\d+)?)([bm])\b", (model(name).repo or "").lower())
    generous = any(name == known or name.startswith(f"{known}_") for known in GENEROUS)
    if called:
        size = float(called[1].replace("_", ".")) * {"b": 1e9, "m": 1e6}[called[2]]
        assert (parameter_count(model(name).geometry) == pytest.approx(size, rel=0.1)) is not generous


@pytest.mark.parametrize(("name", "published"), PUBLISHED.items())
def test_well_known_models_have_the_count_on_their_pages(name: str, published: int) -> None:
    assert model(name).parameters == published


@pytest.mark.parametrize(("name", "published"), ACTIVE.items())
def test_models_with_experts_use_the_published_part_of_them(name: str, published: float) -> None:
    assert active_parameter_count(model(name).geometry) == pytest.approx(published, rel=0.12)


@pytest.mark.parametrize("name", NAMES)
def test_the_targets_are_linear_layers_and_neither_head_nor_routers(name: str) -> None:
    targets, built = set(model(name).targets), on_meta(name)
    layers = {
        path.rpartition(".")[2]: module
        for path, module in built.named_modules()
        if isinstance(module, nn.Linear)
    }
    assert targets <= set(layers)
    assert built.get_output_embeddings() not in [layers[target] for target in targets]
    assert not [target for target in targets if target.endswith(("gate", "router"))]
    assert targets == {path.rpartition(".")[2] for path in linear_shapes(model(name).geometry)}


@pytest.mark.parametrize("name", of_each_family())
def test_the_targets_by_name_are_the_layers_that_peft_adapts(name: str) -> None:
    said = model(name)
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        built = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**said.geometry | {"num_hidden_layers": BUILT})
        )
        peft = get_peft_model(
            built, LoraConfig(r=1, target_modules=list(said.targets), task_type="CAUSAL_LM")
        )
    adapted = {
        path.removeprefix("base_model.model."): module
        for path, module in peft.named_modules()
        if isinstance(module, LoraLayer)
    }
    layers = linear_shapes(said.geometry | {"num_hidden_layers": BUILT})
    assert set(adapted) == set(layers)
    assert sum(p.numel() for p in peft.parameters() if p.requires_grad) == sum(
        map(sum, layers.values())
    )  # r = 1: a row for the inputs, one for the outputs


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh directory with data, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def gigabytes(estimate: dict[str, str]) -> float:
    said = re.fullmatch(r"~([\d.,]+) (kB|MB|GB)", estimate["of disk"])
    assert said
    return float(said[1].replace(",", "")) * {"kB": 1e-6, "MB": 1e-3, "GB": 1}[said[2]]


def test_every_model_is_planned_in_a_moment_with_its_sizes_and_without_a_network(
    offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        known = config(name)
        began = time.monotonic()
        assert plan_config(known, {"--json"}) == 0
        assert time.monotonic() - began < 1, name
        weights = 2e-9 * (known.model.parameters or 0)
        assert weights < gigabytes(json.loads(capsys.readouterr().out)["estimate"]) < 4 * weights + 1, name
    assert not (offline / "outputs").exists()


def shapes_of(known: Config) -> sizes.ModelSize:
    (step,) = (
        step
        for step in plan(known, STAGES, store_of(known), RunDirectory.of(known))
        if step.stage.name == "fetch_model"
    )
    return sizes.measure_model(step)


def test_the_sizes_of_what_was_not_downloaded_are_those_of_what_will_be(offline: Path) -> None:
    known = shapes_of(config("smollm2_135m"))
    # as PEFT counts them
    assert (known.parameters, sizes.trainable_size(known, Algo(r=16))[0]) == (134_515_008, 4_884_480)
    assert sizes.trainable_size(known, Algo(adapter="none")) == (134_515_008, 272)
    assert sizes.trainable_size(known, Algo(r=16, targets=("q_proj", "v_proj")))[0] == 16 * 30 * (
        576 + 576 + 576 + 192
    )
    assert 1e6 < known.tokenizer < 5e6


def test_without_a_known_geometry_only_the_number_of_parameters_is_known(offline: Path) -> None:
    known = config("smollm2_135m")
    foreign = replace(known, model=replace(known.model, geometry={"model_type": "nothing of ours"}))
    unknown = replace(known, model=replace(known.model, geometry={}, parameters=None))
    assert (shapes_of(foreign).parameters, shapes_of(foreign).widths) == (134_515_008, {})
    assert (shapes_of(unknown).parameters, shapes_of(unknown).widths) == (0, {})


def test_of_a_file_with_experts_and_a_vision_tower_only_the_language_model_s_linear_layers_count(
    offline: Path,
) -> None:
    layer, file = "model.layers.0", offline / "model.safetensors"
    adapted = {f"{layer}.mlp.shared_expert.gate_proj.weight": 5, f"{layer}.self_attn.q_proj.weight": 6}
    others = (
        "mlp.experts.0.gate_proj",
        "mlp.gate",
        "mlp.shared_expert_gate",
        "block_sparse_moe.experts.0.w1",
        "mlp.router",
    )
    left = [
        *(f"{layer}.{name}.weight" for name in others),
        "vision_tower.layers.0.q_proj.weight",
        "multi_modal_projector.linear_1.weight",
    ]
    save_file({name: torch.zeros(rows, 8) for name, rows in (adapted | dict.fromkeys(left, 3)).items()}, file)
    step = next(
        step
        for step in plan(config("qwen1_5_moe_a2_7b"), STAGES, store_of(Config()), RunDirectory.of(Config()))
        if step.stage.name == "fetch_model"
    )
    assert sizes.measure_model(replace(step, sources={file.name: file})).widths == {
        name: rows + 8 for name, rows in adapted.items()
    }


@pytest.mark.parametrize("name", of_each_family())
def test_a_plan_by_the_command_line_takes_less_than_a_second(
    name: str, offline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", f"model={name}", "data=local", "data.path=rows.jsonl"]
    took = []
    for _ in range(3):  # what is imported once does not count, nor what else the machine does meanwhile
        began = time.monotonic()
        assert main(words) == 0
        took.append(time.monotonic() - began)
    assert min(took) < 1
    assert re.search(r"~[\d.]+ (MB|GB) of disk", capsys.readouterr().out)
