import json
import select
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tests.conftest import REPO, environment
from tests.models.tiny import SIZES, tiny_adapter, write_tiny
from tuner.errors import ConfigError, DataError, StageError
from tuner.hardware.nvidia_smi import GpuProblem
from tuner.models import load
from tuner.models.checkpoint.config_files import write_config
from tuner.models.lora.merge import merge_adapter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny-llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6400,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_dtype_and_rounding(tiny: Path) -> None:
    exact = load.load_model(tiny, dtype=torch.float32, device="cpu")
    half = load.load_model(tiny, dtype=torch.bfloat16, device="cpu")
    rounded = load.load_model(tiny, dtype=torch.float32, device="cpu", rounded=torch.bfloat16)
    for a, b, c in zip(exact.parameters(), half.parameters(), rounded.parameters(), strict=True):
        assert (a.dtype, b.dtype, c.dtype) == (torch.float32, torch.bfloat16, torch.float32)
        assert torch.equal(c, a.bfloat16().float())
        assert torch.equal(c, b.float())
    assert exact.config._attn_implementation == "tuner"
    assert not exact.config.use_cache
    assert not exact.training


def test_sdpa_generates(tiny: Path) -> None:
    model = load.load_model(tiny, dtype=torch.float32, device="cpu", attention="sdpa")
    assert model.config.use_cache
    assert model.generate(
        torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False, pad_token_id=0
    ).shape == (1, 4)


def test_no_model_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="can't be loaded"):
        load.load_model(tmp_path, dtype=torch.float32, device="cpu")


def test_code_beside_the_weights_never_runs(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}',
        encoding="utf-8",
    )
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    with pytest.raises(DataError, match="can't be loaded"):
        load.load_model(tmp_path, dtype=torch.float32, device="cpu")
    assert not (tmp_path / "ran").exists()


def test_a_family_that_is_known_is_loaded_without_its_code_and_without_a_question(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    edit(
        tmp_path / "model",
        auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"},
        attn_implementation="someone/kernel",
    )
    for name in ("mine.py", "custom_generate/generate.py"):
        (tmp_path / "model" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    for attention in ("tuner", "sdpa"):
        model = load.load_model(tmp_path / "model", dtype=torch.float32, device="cpu", attention=attention)
        assert type(model) is LlamaForCausalLM
    assert not (tmp_path / "ran").exists()


def edit(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | fields), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_size": -8}, "no model can be built from its config.json"),
        ({"num_attention_heads": 0}, "no model can be built from its config.json"),
        ({"hidden_size": "many"}, "config.json"),
        (
            {"num_hidden_layers": 3},
            r"9 of its \d+ parameters aren't in its weights, first model\.layers\.2\.",
        ),
        (
            {"intermediate_size": 10**9},
            r"gate_proj\.weight is \(160, 64\), and its config\.json asks for \(1000000000, 64\)",
        ),
        ({"vocab_size": 10**11}, r"embed_tokens\.weight is \(6400, 64\), and its config\.json asks for"),
        ({"attention_bias": True}, r"8 of its \d+ parameters aren't in its weights"),
    ],
)
def test_a_config_that_is_another_model_s_is_refused_before_anything_is_allocated(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, object], says: str
) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    edit(tmp_path / "model", **fields)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(DataError, match=f"can't be loaded: .*{says}"):
        load.load_model(tmp_path / "model", dtype=torch.float32, device="cpu")


def test_the_weights_are_those_beside_the_config_whatever_it_names(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    edit(tmp_path / "model", transformers_weights="../other.safetensors")
    load.load_model(tmp_path / "model", dtype=torch.float32, device="cpu")


def test_an_adapter_beside_a_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "base_model_name_or_path": "elsewhere"}', encoding="utf-8"
    )
    with pytest.raises(DataError, match="holds a model and an adapter"):
        load.load_model(tmp_path / "model", dtype=torch.float32, device="cpu")


def capped() -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(**SIZES, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )


def sinking() -> PreTrainedModel:
    return GptOssForCausalLM(
        GptOssConfig(
            **SIZES, head_dim=8, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0, eos_token_id=2
        )
    )


@pytest.mark.parametrize("make", [capped, sinking])
def test_caps_and_sinks_are_computed_in_packs_as_the_family_does_and_generation_works(
    tmp_path: Path, make: Callable[[], PreTrainedModel]
) -> None:
    torch.manual_seed(0)
    theirs = make().eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith(("sinks", "q_proj.weight", "k_proj.weight")):
            parameter.data.normal_(0.0, 3.0)  # wide enough that a cap of 50 and a sink matter
    theirs.save_pretrained(tmp_path)
    theirs.set_attn_implementation("eager")
    ours = load.load_model(tmp_path, dtype=torch.float32, device="cpu")
    lengths, ids = (5, 9), torch.randint(64, (1, 14))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    with torch.inference_mode():
        packed = ours(input_ids=ids, position_ids=positions, use_cache=False).logits[0].split(lengths)
        alone = [theirs(input_ids=part).logits[0] for part in ids.split(lengths, dim=1)]
    for a, b in zip(packed, alone, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    model = load.load_model(tmp_path, dtype=torch.float32, device="cpu", attention="sdpa")
    assert model.config._attn_implementation == "eager"
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, do_sample=False).shape == (1, 4)


def test_rounding_spares_what_a_family_keeps_in_fp32(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", {"input_layernorm"})
    half = load.load_model(tiny, dtype=torch.bfloat16, device="cpu")
    rounded = load.load_model(tiny, dtype=torch.float32, device="cpu", rounded=torch.bfloat16)
    for (name, a), b in zip(half.named_parameters(), rounded.parameters(), strict=True):
        assert (a.dtype == torch.float32) == ("input_layernorm" in name)
        assert torch.equal(a.float(), b), name


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32, torch.float16])
def test_base_and_adapter_are_the_merged_model_bit_for_bit(
    tmp_path: Path, stored: torch.dtype, tied: bool
) -> None:
    base = write_tiny(tmp_path / "base", dtype=stored, tied=tied)
    tiny_adapter(base).save_pretrained(tmp_path / "adapter")
    (tmp_path / "merged").mkdir()
    merge_adapter(base, tmp_path / "adapter", tmp_path / "merged", limit=400_000)
    write_config(base, tmp_path / "merged", "bfloat16")
    for dtype in (torch.bfloat16, torch.float32):
        tuned = load.load_tuned(base, tmp_path / "adapter", dtype=dtype, device="cpu")
        written = load.load_model(tmp_path / "merged", dtype=dtype, device="cpu")
        assert type(tuned) is type(written)
        assert tuned.config._attn_implementation == written.config._attn_implementation
        assert (tuned.lm_head.weight.data_ptr() == tuned.model.embed_tokens.weight.data_ptr()) == tied
        ours, theirs = tuned.state_dict(), written.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert ours[name].dtype == tensor.dtype == dtype, name
            assert torch.equal(ours[name], tensor), name


def test_without_an_adapter_it_is_the_model_as_it_lies_there(tmp_path: Path) -> None:
    base = write_tiny(tmp_path, dtype=torch.float32)
    tuned, plain = (
        load.load_tuned(base, None, dtype=torch.float32, device="cpu"),
        load.load_model(base, dtype=torch.float32, device="cpu"),
    )
    assert all(torch.equal(a, b) for a, b in zip(tuned.parameters(), plain.parameters(), strict=True))


def test_an_adapter_of_another_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    other = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(other).save_pretrained(tmp_path / "deeper")
    tiny_adapter(tmp_path / "deeper").save_pretrained(tmp_path / "adapter")
    with pytest.raises(StageError, match=r"layers\.2\..*, and the base has no such tensor"):
        load.load_tuned(tiny, tmp_path / "adapter", dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, each in fp32 and in bf16 and with an adapter: one of 27 million weights in shards
    of 16 MB, and a small one to begin with.
    """
    root = tmp_path_factory.mktemp("sharded")
    for name, layers, width in (("warm", 1, 64), ("model", 8, 512)):
        torch.manual_seed(0)
        config = SIZES | {
            "hidden_size": width,
            "intermediate_size": width * 11 // 4,
            "num_hidden_layers": layers,
            "vocab_size": 1000,
        }
        model = LlamaForCausalLM(LlamaConfig(**config))
        for dtype in (torch.float32, torch.bfloat16):
            model.to(dtype).save_pretrained(root / f"{name}-{dtype}", max_shard_size="16MB")
        tiny_adapter(root / f"{name}-{dtype}").save_pretrained(root / f"{name}-adapter")
    return root


def job(root: Path, name: str, stored: torch.dtype, tuned: bool, dtype: str, rounded: str | None) -> str:
    adapter = str(root / f"{name}-adapter") if tuned else None
    return (
        json.dumps(
            {
                "directory": str(root / f"{name}-{stored}"),
                "adapter": adapter,
                "dtype": dtype,
                "rounded": rounded,
            }
        )
        + "\n"
    )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what a process holds")
@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
            ],
        ),
    ],
)
def test_beside_the_model_there_is_never_more_than_its_largest_shard(sharded: Path, device: str) -> None:
    kinds = [
        (torch.float32, False, "float32", "bfloat16"),
        (torch.bfloat16, False, "float32", None),
        (torch.bfloat16, True, "bfloat16", None),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.models.memory", device],
        env=environment(),
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdin
        assert child.stdout
        for kind in kinds:
            for name in ("warm", "model"):
                child.stdin.write(job(sharded, name, *kind))
                child.stdin.flush()
                before = peak = int(child.stdout.readline())
                child.stdin.write("\n")
                child.stdin.flush()
                while not select.select([child.stdout], [], [], 0.002)[0]:
                    peak = max(peak, anonymous(child.pid))
                size = int(child.stdout.readline())
            shard = max(path.stat().st_size for path in (sharded / f"model-{kind[0]}").glob("*.safetensors"))
            spare = 8_000_000  # what an allocator keeps
            assert peak - before <= (size if device == "cpu" else 0) + shard + spare, kind
        child.stdin.close()


def anonymous(pid: int) -> int:
    """Bytes that no file backs: what is mapped from a checkpoint can be dropped and read again."""
    return (
        int(
            next(
                line
                for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("RssAnon")
            ).split()[1]
        )
        * 1024
    )


@pytest.mark.parametrize(
    ("text", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f\n", False),
        ("flags\t\t: fpu avx512_bf16\n", True),
        ("flags : amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("", False),
    ],
)
def test_bf16_only_where_the_processor_has_it(monkeypatch: pytest.MonkeyPatch, text: str, has: bool) -> None:
    monkeypatch.setattr(Path, "read_text", lambda _, **__: text)
    assert load.compute_dtype("bf16", "cpu") == (torch.bfloat16 if has else torch.float32)
    assert load.compute_dtype("bf16", "cuda") == torch.bfloat16
    assert load.compute_dtype("fp32", "cpu") == torch.float32


def test_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(load, "cuda_problem", lambda *_: None)
    assert load.resolve_device("auto").type == "cpu"
    with pytest.raises(ConfigError, match=r"machine\.device=cuda needs an NVIDIA GPU"):
        load.resolve_device("cuda")
    monkeypatch.setattr(load, "cuda_problem", lambda *_: GpuProblem("the driver is too old", "update it"))
    assert load.resolve_device("cpu").type == "cpu"
    with pytest.raises(
        ConfigError,
        match=r"machine\.device=auto finds a GPU that can't be used\. the driver is too old: update it",
    ):
        load.resolve_device("auto")
