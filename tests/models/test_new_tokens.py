"""New tokens: rows that begin as the mean of their pieces, train alone, and end in the merged model."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tests.conftest import SHARED
from tests.models import fixtures
from tests.models.lora.test_merge import seer
from tests.models.tiny import write_tiny
from tuner.config.schema import Optim
from tuner.data.packs import Pack
from tuner.data.tokenizer.load import load_vocabulary
from tuner.errors import ConfigError, DataError
from tuner.models.checkpoint.config_files import write_config
from tuner.models.checkpoint.files import INDEX, checkpoint_files
from tuner.models.checkpoint.safetensors import Checkpoint, Spec
from tuner.models.checkpoint.write_safetensors import write_checkpoint
from tuner.models.load import load_model, load_tuned
from tuner.models.lora.add import trainable_rows
from tuner.models.lora.merge import merge_adapter, merge_original
from tuner.models.new_tokens import (
    ExtendedVocabulary,
    add_new_tokens,
    extended_matrix,
    padded_rows,
    resized_config,
    token_ids,
    vocabulary_tensors,
    write_rows,
)
from tuner.train.batch import collate
from tuner.train.engine import TorchEngine, trainable_parameters
from tuner.train.loss import summed_loss
from tuner.train.noise import prepare_noise
from tuner.train.optimizers import build_optimizer, vocabulary_weights

# PEFT asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def small(directory: Path, *, rows: int = 70, tied: bool = True, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A Llama with that many rows, in several files."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(directory / "whole")
    whole = Checkpoint([directory / "whole" / "model.safetensors"])
    write_checkpoint(directory, whole.specs.values(), whole.__getitem__, limit=3000)
    (directory / "config.json").write_bytes((directory / "whole" / "config.json").read_bytes())
    return directory


def files(directory: Path) -> dict[str, Path]:
    return {path.name: path for path in directory.iterdir() if path.is_file()}


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for path in sorted(directory.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def adapted(model: PreTrainedModel, ids: Sequence[int], targets: str = r".*(q_proj|down_proj)") -> PeftModel:
    """A LoRA with those rows; all of it away from where it began."""
    config = LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=targets,
        task_type="CAUSAL_LM",
        trainable_token_indices=trainable_rows(model, ids),
    )
    peft = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(1)
    for p in peft.parameters():
        if p.requires_grad:
            p.data = p.data + torch.randn(p.shape, generator=generator) * 0.2
    return peft


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("rows", "after"), [(70, 72), (64, 128)])
def test_an_embedding_without_room_grows(tmp_path: Path, tied: bool, rows: int, after: int) -> None:
    base, target = small(tmp_path / "base", rows=rows, tied=tied), out(tmp_path)
    pieces = {rows: [3, 4, 9], rows + 1: [5]}
    assert write_rows(files(base), pieces, target) == (rows, after)
    old, new = tensors(base), tensors(target)
    assert old.keys() == new.keys()
    assert json.loads((target / "config.json").read_text(encoding="utf-8"))["vocab_size"] == after
    for name in old:
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(old[name], new[name])
            continue
        assert new[name].shape == (after, 16)
        assert torch.equal(new[name][:rows], old[name])
        assert torch.equal(
            new[name][rows],
            ((old[name][3].float() + old[name][4].float() + old[name][9].float()) / 3).bfloat16(),
        )
        assert torch.equal(new[name][rows + 1], old[name][5])
        assert torch.equal(
            new[name][rows + 2 :], old[name].double().mean(0).bfloat16().expand(after - rows - 2, -1)
        )
    index = json.loads((target / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in new.values())
    model, loading = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(loading.values())
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == after


def test_free_rows_are_taken_and_nothing_grows(tmp_path: Path) -> None:
    base, target = small(tmp_path / "base", rows=70, tied=False), out(tmp_path)
    assert write_rows(files(base), {66: [1, 2]}, target) == (70, 70)
    old, new = tensors(base), tensors(target)
    for name in old:
        changed = [i for i in range(len(old[name])) if not torch.equal(old[name][i], new[name][i])]
        assert changed == ([66] if name in ("model.embed_tokens.weight", "lm_head.weight") else [])
    for name in ("config.json", INDEX):
        assert (target / name).samefile(base / name)


def test_only_shards_with_rows_of_tokens_are_written(tmp_path: Path) -> None:
    base, target = small(tmp_path / "base"), out(tmp_path)
    told: list[str] = []
    write_rows(files(base), {70: [1]}, target, tick=lambda spec: told.append(spec.name))
    written = {path.name for path in target.glob("*.safetensors") if not path.samefile(base / path.name)}
    assert written == {
        path.name for path in base.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(path)
    }
    assert len(written) == 1 < len(list(base.glob("*.safetensors")))
    assert "model.embed_tokens.weight" in told


@given(st.integers(1, 200), st.integers(1, 300))
@settings(derandomize=True, max_examples=50)
def test_rows_are_enough_and_stay_a_multiple_of_64(rows: int, needed: int) -> None:
    after = padded_rows(rows, needed)
    assert after >= max(rows, needed)
    assert after - max(rows, needed) < 64
    assert (after % 64 == 0) or (rows % 64 != 0 and after == max(rows, needed))


@given(st.integers(2, 40), st.integers(0, 30), st.data())
@settings(derandomize=True, max_examples=30)
def test_other_new_rows_take_no_more_probability_than_an_average_token(
    rows: int, more: int, data: st.DataObject
) -> None:
    seed = data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    head, hidden = (
        torch.randn(rows, 8, generator=generator, dtype=torch.float64),
        torch.randn(8, generator=generator, dtype=torch.float64),
    )
    probability = (extended_matrix(head, {rows: [0]}, rows + 1 + more) @ hidden).softmax(0)
    assert bool((probability[rows + 1 :] <= probability[:rows].mean() + 1e-12).all())


def test_the_text_part_of_a_multimodal_config_grows() -> None:
    assert resized_config({"text_config": {"hidden_size": 8}}, 9) == {
        "text_config": {"hidden_size": 8, "vocab_size": 9}
    }
    assert resized_config({"vocab_size": 7, "text_config": {"vocab_size": 7}}, 9) == {
        "vocab_size": 9,
        "text_config": {"vocab_size": 9},
    }
    assert resized_config({}, 9) == {"vocab_size": 9}


def spec(name: str, *shape: int, dtype: str = "BF16") -> dict[str, Spec]:
    return {name: Spec(name=name, dtype=dtype, shape=shape)}


def test_the_tables_are_found_by_name_and_size() -> None:
    table = spec("language_model.model.embed_tokens.weight", 70, 8)
    assert vocabulary_tensors(
        {"text_config": {"vocab_size": 70}}, table | spec("audio.embed_tokens.weight", 9, 8)
    ) == tuple(table)
    assert vocabulary_tensors({}, spec("transformer.wte.weight", 70, 8) | spec("lm_head.weight", 70, 8)) == (
        "transformer.wte.weight",
        "lm_head.weight",
    )


@pytest.mark.parametrize(
    ("specs", "match"),
    [
        (spec("model.norm.weight", 8), "finds 0 such tensors"),
        (spec("a.embed_tokens.weight", 70, 8) | spec("b.embed_tokens.weight", 70, 8), "finds 2 such tensors"),
        (
            spec("embed_tokens.weight", 70, 8) | spec("lm_head.bias", 70),
            r"lm_head\.bias, which is BF16 \(70,\)",
        ),
        (spec("embed_tokens.weight", 70, 8, dtype="F8_E4M3"), "F8_E4M3"),
    ],
)
def test_a_vocabulary_that_can_not_grow_is_refused(specs: dict[str, Spec], match: str) -> None:
    with pytest.raises(DataError, match=match):
        vocabulary_tensors({"vocab_size": 70}, specs)


def test_a_family_with_more_tables_keeps_its_size(tmp_path: Path) -> None:
    base, target = small(tmp_path / "base"), out(tmp_path)
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | {
        "vocab_size_per_layer_input": 70
    }
    (base / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"needs 71 rows of the embedding, which has 70.*vocab_size_per_layer_input"
    ):
        write_rows(files(base), {70: [1]}, target)
    assert write_rows(files(base), {69: [1]}, target) == (70, 70)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one of them 70, and the embedding has 70 rows"):
        write_rows(files(small(tmp_path / "base")), {71: [1, 70]}, out(tmp_path))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merged_model_is_the_one_with_adapter_and_rows(
    tmp_path: Path, tied: bool, dtype: torch.dtype
) -> None:
    base, target = small(tmp_path / "base", tied=tied), out(tmp_path)
    peft = adapted(LlamaForCausalLM.from_pretrained(base, dtype=dtype), [68, 69])
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge_adapter(base, tmp_path / "adapter", target)
    write_config(base, target, "bfloat16")
    # PEFT's own merge, rounded once, is what lies there, and its logits are PEFT's with the pairs apart.
    ids = torch.tensor([[1, 68, 5, 69, 69, 7]])
    apart = peft.eval()(ids).logits.float()
    whole = LlamaForCausalLM.from_pretrained(target, dtype=dtype)
    if dtype == torch.float32:
        expected = peft.merge_and_unload().state_dict()
        assert all(
            torch.equal(value, expected[name].bfloat16().float())
            for name, value in whole.state_dict().items()
        )
    table = whole.get_input_embeddings().weight
    assert not torch.equal(table[68], tensors(base)["model.embed_tokens.weight"][68].to(dtype))
    assert (table is whole.get_output_embeddings().weight) is tied
    # bf16 keeps 8 bits, a relative error of 0.4 %, of weights whose sums here are logits of up to 4.
    assert (whole(ids).logits.float() - apart).abs().max() < 0.06


@pytest.mark.parametrize("tied", [True, False])
def test_rows_beside_a_base_in_4_bits(tmp_path: Path, tied: bool) -> None:
    base, target = small(tmp_path / "base", tied=tied), out(tmp_path)
    peft = adapted(
        load_model(base, dtype=torch.bfloat16, device="cpu", quant="nf4", attention="sdpa"), [68, 69]
    )
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge_adapter(base, tmp_path / "adapter", target, quant="nf4")
    write_config(base, target, "bfloat16")
    whole = load_model(target, dtype=torch.float32, device="cpu", attention="sdpa")
    measured = load_tuned(
        base, tmp_path / "adapter", dtype=torch.float32, device="cpu", attention="sdpa", quant="nf4"
    )
    assert all(torch.equal(value, measured.state_dict()[name]) for name, value in whole.state_dict().items())
    ids = torch.tensor([[1, 68, 5, 69, 69, 7]])
    assert (whole(ids).logits - peft.eval()(ids).logits.float()).abs().max() < 0.06  # bf16 arithmetic
    other = load_tuned(base, tmp_path / "adapter", dtype=torch.float32, device="cpu", attention="sdpa")
    # a base that was not in 4 bits is another model
    assert (other(ids).logits - peft(ids).logits.float()).abs().max() > 0.12


def test_a_tied_head_that_lies_in_the_file_too_gets_the_rows(tmp_path: Path) -> None:
    base, target = small(tmp_path / "base", rows=70), out(tmp_path)
    shard = next(
        path for path in base.glob("*.safetensors") if "model.embed_tokens.weight" in load_file(path)
    )
    held = load_file(shard)
    save_file(
        held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}, shard, metadata={"format": "pt"}
    )
    peft = adapted(LlamaForCausalLM.from_pretrained(small(tmp_path / "same"), dtype=torch.float32), [69])
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge_adapter(base, tmp_path / "adapter", target)
    assert torch.equal(tensors(target)["lm_head.weight"], tensors(target)["model.embed_tokens.weight"])
    assert not torch.equal(tensors(target)["lm_head.weight"], held["model.embed_tokens.weight"])


def test_a_model_that_sees_gets_its_rows_where_its_text_is(tmp_path: Path) -> None:
    base, target = tmp_path / "base", out(tmp_path)
    seer().to(torch.bfloat16).save_pretrained(tmp_path / "narrow")
    base.mkdir()
    assert write_rows(files(tmp_path / "narrow"), {64: [1, 2], 65: [3]}, base) == (64, 128)
    peft = adapted(
        AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32),
        [64, 65],
        targets=r".*language_model.*q_proj",
    )
    peft.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    merge_adapter(base, tmp_path / "adapter", target)
    write_config(base, target, "bfloat16")
    before, after = tensors(base), tensors(target)
    changed = {
        name.rpartition(".self_attn.")[2] for name in before if not torch.equal(before[name], after[name])
    }
    assert changed == {"language_model.model.embed_tokens.weight", "q_proj.weight"}
    ids = torch.tensor([[1, 64, 5, 65]])
    apart = peft.eval()(ids).logits
    whole = AutoModelForImageTextToText.from_pretrained(target, dtype=torch.float32)
    expected = peft.merge_and_unload().state_dict()
    assert all(
        torch.equal(value, expected[name].bfloat16().float())
        for name, value in whole.state_dict().items()
        if value.is_floating_point()
    )
    torch.testing.assert_close(whole(ids).logits, apart, rtol=0.02, atol=0.05)


NEW = ["<tool>", "客服词", "[END]"]


def test_a_checkpoint_grows_with_its_tokenizer(tmp_path: Path) -> None:
    base, target = write_tiny(tmp_path / "base"), out(tmp_path)
    said: list[str] = []
    grown = add_new_tokens(checkpoint_files(base), NEW, target, say=said.append)
    assert grown == ExtendedVocabulary(
        ids={"<tool>": 6400, "客服词": 6401, "[END]": 6402}, before=6400, after=6464
    )
    assert said == [
        "<tool> to [END] are 6400 to 6402: the embedding grows from 6,400 to 6,464 rows, a multiple of 64 "
        "again"
    ]
    assert token_ids(target, NEW) == (6400, 6401, 6402)
    tokenizer, model = AutoTokenizer.from_pretrained(target), AutoModelForCausalLM.from_pretrained(target)
    assert tokenizer.convert_tokens_to_ids(NEW) == [6400, 6401, 6402]
    assert 6401 in tokenizer("我是客服词吗")["input_ids"]
    before = AutoTokenizer.from_pretrained(base)
    table = model.get_input_embeddings().weight
    for token, id_ in grown.ids.items():
        pieces = before(token, add_special_tokens=False)["input_ids"]
        assert len(pieces) > 1
        assert torch.equal(table[id_], table[pieces].float().mean(0).bfloat16())
    plain = "What is 2 plus 2? 你好"
    assert tokenizer(plain)["input_ids"] == before(plain)["input_ids"]


def test_ids_without_rows_are_taken_in_turn_and_none_is_beyond_the_embedding(tmp_path: Path) -> None:
    base, wide, again = write_tiny(tmp_path / "base"), tmp_path / "wide", out(tmp_path)
    wide.mkdir()
    add_new_tokens(checkpoint_files(base), ["<a>"], wide)
    said: list[str] = []
    assert add_new_tokens(checkpoint_files(wide), ["<b>"], again, say=said.append) == ExtendedVocabulary(
        ids={"<b>": 6401}, before=6464, after=6464
    )
    assert said == ["<b> is 6401: rows that the embedding had free (6,464 in all, as before)"]
    assert (again / "config.json").samefile(wide / "config.json")
    assert max(load_vocabulary(again).tokenizer.get_vocab(with_added_tokens=True).values()) < 6464


def test_tokens_that_are_there_are_refused(tmp_path: Path) -> None:
    base, target = write_tiny(tmp_path / "base"), out(tmp_path)
    with pytest.raises(DataError, match=r"<\|im_end\|>.*has that as the id"):
        add_new_tokens(checkpoint_files(base), ["<|im_end|>"], target)
    with pytest.raises(
        DataError, match=r"'<tool>', which the tokenizer in .* does not have\. Fetch the model again"
    ):
        token_ids(base, ["<|im_end|>", "<tool>"])


def test_a_rewritten_family_takes_its_new_tokens_back_to_its_layout(tmp_path: Path) -> None:
    base, grown, back = (
        fixtures.native("internlm2", "internlm2", tmp_path / "base"),
        tmp_path / "grown",
        out(tmp_path),
    )
    rows = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(rows)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(base / "tokenizer.json"))
    grown.mkdir()
    ids = add_new_tokens(checkpoint_files(base), ["<tool>"], grown).ids
    assert ids == {"<tool>": rows}
    merge_original(grown, None, grown / "original", back)
    written = tensors(back)
    after = json.loads((back / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert after > rows
    for name in ("model.tok_embeddings.weight", "output.weight"):
        assert written[name].shape[0] == after
        assert torch.equal(written[name][:rows], tensors(fixtures.directory("internlm2"))[name])
    added = json.loads((back / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    assert added[str(rows)]["content"] == "<tool>"
    assert added[str(rows)]["special"] is True


def test_a_sentencepiece_model_beside_it_stays_and_contradicts_nothing(tmp_path: Path) -> None:
    source = SHARED / "tokenizers" / "tinystories_tok512"
    if not source.is_dir():
        pytest.skip("the shared tokenizers are not here")
    base, target = small(tmp_path / "base", rows=512), out(tmp_path)
    for path in source.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    grown = add_new_tokens(checkpoint_files(base), ["<tool>", "客服词"], target)
    assert (grown.before, grown.after) == (512, 576)
    assert (target / "tokenizer.model").samefile(base / "tokenizer.model")
    assert token_ids(target, list(grown.ids)) == (512, 513)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_train_through_the_engine_and_nothing_else_of_the_embedding(tmp_path: Path, tied: bool) -> None:
    base = small(tmp_path / "base", tied=tied)

    def engine() -> TorchEngine:
        model = adapted(load_model(base, dtype=torch.float32, device="cpu"), [68, 69]).train()
        return TorchEngine(
            model,
            build_optimizer(
                trainable_parameters(model),
                Optim(),
                device=torch.device("cpu"),
                vocabulary=vocabulary_weights(model),
            ),
            loss=summed_loss,
        )

    ids, lengths = np.array([1, 68, 5, 69, 3, 69, 2], dtype=np.int32), np.array([4, 3], dtype=np.int32)
    pack = Pack(ids=ids, trained=np.ones(7, dtype=np.bool_), lengths=lengths, files=lengths, lines=lengths)
    batch = collate([pack])
    one, other = engine(), engine()
    for step in range(3):
        one.forward_backward([batch], 5)
        one.step(0.01, None)
        if step == 0:
            other.load(one.state())
    for _ in range(2):
        other.forward_backward([batch], 5)
        other.step(0.01, None)
    learned, again = one.state(), other.state()
    assert learned.weights.keys() == again.weights.keys()
    assert all(torch.equal(value, again.weights[name]) for name, value in learned.weights.items())
    grown = [name for name in learned.weights if "trainable_tokens" in name]
    assert [name.split(".")[-3] for name in grown] == (
        ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    )
    begun = engine().state().weights
    for name in grown:
        assert learned.weights[name].dtype == torch.float32
        assert bool((learned.weights[name] != begun[name]).any(1).all())
    whole: Any = one.model
    table = whole.get_input_embeddings().original_module.weight
    assert torch.equal(table, tensors(base)["model.embed_tokens.weight"].float())


@pytest.mark.parametrize("tied", [True, False])
def test_noise_falls_on_new_tokens_too(tmp_path: Path, tied: bool) -> None:
    model = adapted(
        load_model(small(tmp_path / "base", tied=tied), dtype=torch.float32, device="cpu"), [68, 69]
    ).train()
    table, noise = model.get_input_embeddings(), prepare_noise(model, seed=0, dropout=0.0, neftune=5.0)
    seen: list[torch.Tensor] = []
    table.register_forward_hook(lambda _module, _args, given: seen.append(given.detach()))
    ids, positions = torch.tensor([[1, 68, 69, 5]]), torch.arange(4)[None]
    assert noise
    for packs in ([(0, 4)], [(1, 4)]):
        noise.enter(0, packs)
        model(input_ids=ids, position_ids=positions)
        noise.leave()
    model(input_ids=ids, position_ids=positions)
    bound = 5.0 / (4 * seen[2].shape[-1]) ** 0.5
    for noisy in seen[:2]:
        assert ((noisy - seen[2]).abs().amax(-1) > 0.5 * bound).all()
        assert ((noisy - seen[2]).abs() <= bound * 1.0001).all()
    assert not torch.equal(seen[0], seen[1])


def test_without_new_tokens_no_rows_train() -> None:
    assert (
        trainable_rows(
            LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=8,
                    hidden_size=8,
                    intermediate_size=8,
                    num_hidden_layers=1,
                    num_attention_heads=1,
                )
            ),
            (),
        )
        is None
    )


def test_a_head_with_bias_is_refused(tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(small(tmp_path / "base", tied=False))
    model.lm_head = torch.nn.Linear(16, 70)
    with pytest.raises(ConfigError, match="needs an output head without bias"):
        trainable_rows(model, [69])
