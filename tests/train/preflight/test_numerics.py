"""The proofs on a tiny model: that they hold where all is well, and that each fails where what it proves
is broken.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from tests.conftest import REPO, ROWS
from tests.data.conftest import read_chat
from tests.train.lives import WORDS, make_model, make_settings
from tests.train.ranks import in_processes
from tuner.config.schema import Optim
from tuner.data.chat.template import Template, compile_template
from tuner.data.conversation import Conversation, Message
from tuner.data.packs import Pack
from tuner.data.tokenizer.load import load_vocabulary
from tuner.errors import StageError
from tuner.kernels.attention import choose_backend, using_backend
from tuner.models.attention_needs import attention_needs
from tuner.models.load import load_model
from tuner.models.lora.add import add_lora
from tuner.train.batch import Batch, collate
from tuner.train.deepspeed.engine import ZeroEngine
from tuner.train.distributed import World, single_process
from tuner.train.engine import TorchEngine, trainable_parameters
from tuner.train.loss import summed_loss
from tuner.train.noise import prepare_noise
from tuner.train.optimizers import build_optimizer
from tuner.train.preflight.documents import SAMPLED, sample_documents
from tuner.train.preflight.numerics import proofs_line, prove

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def template(tiny_model: Path) -> Template:
    return compile_template(
        read_chat(REPO / "conf" / "model" / "chat" / "chatml.yaml"), load_vocabulary(tiny_model)
    )


@pytest.fixture(scope="module")
def rows(template: Template) -> list[Pack]:
    """The conversations of the tests' data set, five in a pack."""
    conversations = [
        Conversation(
            messages=tuple(
                Message(**message, trained=message["role"] == "assistant") for message in row["messages"]
            )
        )
        for row in ROWS
    ]
    batch = template.encode(conversations)
    packs = []
    for first in range(0, len(conversations), 5):
        offsets = batch.offsets[first : first + 6]
        lengths, lines = np.diff(offsets).astype(np.int32), np.arange(first, first + 5, dtype=np.int32) + 1
        here = slice(int(offsets[0]), int(offsets[-1]))
        packs.append(
            Pack(
                ids=batch.ids[here],
                trained=batch.trained[here],
                lengths=lengths,
                files=0 * lines,
                lines=lines,
            )
        )
    return packs


def where(pack: Pack) -> list[str]:
    return [f"rows.jsonl:{line}" for line in pack.lines]


def made(directory: Path, adapter: str = "lora", dtype: torch.dtype = torch.float32, **how: Any) -> Any:
    model = load_model(
        directory,
        dtype=torch.float32 if adapter == "none" else dtype,
        device=CPU,
        quant=how.pop("quant", "none"),
    )
    if adapter == "lora":
        model = add_lora(
            model, r=4, alpha=8, dropout=how.pop("dropout", 0.0), targets="all-linear", seed=0, **how
        )
    return model.train()


def engine_of(model: Any, kind: type[TorchEngine] = TorchEngine, **how: Any) -> TorchEngine:
    return kind(
        model, build_optimizer(trainable_parameters(model), Optim(), device=CPU), loss=summed_loss, **how
    )


def proved(
    engine: TorchEngine, packs: Sequence[Pack], template: Template | None, **how: Any
) -> dict[str, float]:
    usual = {
        "whole": False,
        "compute": torch.float32,
        "autocast": None,
        "quant": "none",
        "zero_adapter": hasattr(engine.model, "peft_config"),
    }
    return prove(
        engine, engine.model, packs, single_process(CPU), where=where, template=template, **(usual | how)
    )


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_all_hold_and_nothing_is_changed(
    tiny_model: Path, rows: list[Pack], template: Template, adapter: str
) -> None:
    engine = engine_of(made(tiny_model, adapter))
    before, learns = (
        {name: p.clone() for name, p in engine.model.named_parameters()},
        set(trainable_parameters(engine.model)),
    )
    found = proved(engine, rows, template)
    assert set(found) == {"mask", "packed", "attention", "accumulated"} | (
        {"adapter"} if adapter == "lora" else set()
    )
    assert found.pop("mask") == len(ROWS) + 4  # four of them have two answers
    assert found.pop("adapter", 0.0) == 0.0
    assert max(found.values()) < 2e-6
    assert found["attention"] > 0  # two ways of computing were compared
    assert all(torch.equal(p, before[name]) for name, p in engine.model.named_parameters())
    assert set(trainable_parameters(engine.model)) == learns
    assert engine.model.training
    assert all(p.grad is None for p in engine.model.parameters())
    assert not any(moment.any() for moment in engine.state().optimizer.values())
    loss = engine.forward_backward([collate(rows[:1])], 1).item()  # it attends as it did
    with torch.no_grad():
        assert loss == summed_loss(made(tiny_model, "none"), collate(rows[:1])).item()


@pytest.mark.parametrize("how", [{"dora": True}, {"rslora": True}, {"dropout": 0.1}])
def test_they_hold_for_other_adapters(tiny: Path, packs: Sequence[Pack], how: dict[str, Any]) -> None:
    model = made(tiny, **how)
    found = proved(
        engine_of(model, noise=prepare_noise(model, seed=0, dropout=how.get("dropout", 0.0), neftune=None)),
        packs,
        None,
    )
    assert found["adapter"] < 1e-5
    assert found["accumulated"] < 1e-5


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_they_hold_in_bf16(tiny: Path, packs: Sequence[Pack], adapter: str) -> None:
    engine = engine_of(
        made(tiny, adapter, torch.bfloat16), autocast=torch.bfloat16 if adapter == "none" else None
    )
    found = proved(engine, packs, None, compute=torch.bfloat16, autocast=engine.autocast)
    assert 1e-5 < found["attention"] < 0.03
    assert found["packed"] < 0.03
    assert found["accumulated"] < 0.03


def test_they_hold_on_a_base_in_4_bits(tiny: Path, packs: Sequence[Pack]) -> None:
    pytest.importorskip("bitsandbytes")
    found = proved(engine_of(made(tiny, quant="nf4")), packs, None, quant="nf4")
    assert found["adapter"] == 0.0
    assert found["accumulated"] < 1e-5


def leaky(
    _module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    """Causal over the whole row, as a kernel that knows nothing of documents."""
    return scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2), None


def too_sharp(
    _module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, **how: Any
) -> tuple[torch.Tensor, None]:
    from tuner.kernels.attention import packed_attention

    return packed_attention(_module, 1.2 * q, k, v, mask, **how)


@pytest.mark.parametrize(("function", "name"), [(leaky, "packed"), (too_sharp, "attention")])
@pytest.mark.parametrize("fixture", ["tiny", "tiny_model"])
def test_broken_attention(
    function: Callable[..., Any], name: str, fixture: str, rows: list[Pack], request: pytest.FixtureRequest
) -> None:
    engine = engine_of(made(request.getfixturevalue(fixture)))
    AttentionInterface.register(function.__name__, function)
    engine.model.get_base_model().set_attn_implementation(function.__name__)
    with pytest.raises(
        StageError, match=rf"has failed \({name}\): .* difference is \d.*The rows: rows.jsonl:\d+\.$"
    ):
        proved(engine, rows, None)
    assert engine.model.get_base_model().config._attn_implementation == function.__name__


class MeanOfMeans(TorchEngine):
    """Divides each micro batch by its own targets, as a loop does that averages over micro batches."""

    def forward_backward(self, batches: Sequence[Batch], targets: int) -> torch.Tensor:  # noqa: ARG002
        whole = super().forward_backward
        return torch.cat([whole([batch], len(batches) * len(batch.targets_M)) for batch in batches])


class Sum(TorchEngine):
    """Forgets to divide by the targets of the whole step."""

    def forward_backward(self, batches: Sequence[Batch], targets: int) -> torch.Tensor:  # noqa: ARG002
        whole = super().forward_backward
        return torch.cat([whole([batch], len(batch.targets_M)) for batch in batches])


@pytest.mark.parametrize("kind", [MeanOfMeans, Sum])
def test_wrong_scale_of_the_loss(kind: type[TorchEngine], tiny: Path, packs: Sequence[Pack]) -> None:
    with pytest.raises(
        StageError,
        match=(
            r"has failed \(accumulated\): .*one by one.*rows.jsonl:1, rows.jsonl:2.* most of it in"
            r" base_model\."
        ),
    ):
        proved(engine_of(made(tiny), kind), packs, None)


def test_dropout_that_depends_on_the_micro_batch(tiny: Path, packs: Sequence[Pack]) -> None:
    with pytest.raises(StageError, match=r"has failed \(accumulated\)"):
        proved(engine_of(made(tiny, dropout=0.1)), packs, None)  # PEFT's own


def test_an_adapter_that_is_something(tiny: Path, packs: Sequence[Pack]) -> None:
    engine = engine_of(made(tiny))
    for name, p in engine.named.items():
        if "layers.1.mlp.down_proj.lora_B" in name:
            p.data[0, 0] = 1e-4
    with pytest.raises(
        StageError, match=r"has failed \(adapter\): the new adapter changes .*rounding explains up to 0e\+00"
    ):
        proved(engine, packs, None)


def test_a_mask_of_another_template(tiny_model: Path, rows: list[Pack], template: Template) -> None:
    shifted = [
        Pack(ids=p.ids, trained=np.roll(p.trained, 1), lengths=p.lengths, files=p.files, lines=p.lines)
        for p in rows
    ]
    with pytest.raises(
        StageError,
        match=(
            r"not what the chat template says: of 44 trained texts .* in rows\.jsonl:1 a trained text begins"
            r" where"
        ),
    ):
        proved(engine_of(made(tiny_model)), shifted, template)


def test_broken_weights_are_no_proof(tiny: Path, packs: Sequence[Pack]) -> None:
    engine = engine_of(made(tiny, "none"))
    engine.named["model.norm.weight"].data[0] = float("nan")
    with pytest.raises(
        StageError,
        match=(
            r"computes what is not finite on the rows .* It comes from model\.norm\.weight, a trained weight"
            r" whose values"
        ),
    ):
        proved(engine, packs, None)
    engine.named["model.norm.weight"].data[0] = 1.0
    engine.named["model.layers.1.mlp.down_proj.weight"].data *= 1e38
    with pytest.raises(
        StageError, match=r"All weights are finite, and the first output that is not is that of"
    ) as told:
        proved(engine, packs, None)
    assert "machine.attention" not in str(told.value)


def test_a_gradient_that_overflows_is_no_matter_of_micro_batches(tiny: Path, packs: Sequence[Pack]) -> None:
    engine = engine_of(made(tiny, "none"))
    weight = engine.named["model.layers.0.mlp.up_proj.weight"]
    weight.register_hook(lambda grad: grad * float("inf"))
    with pytest.raises(
        StageError,
        match=(
            r"The gradient of model\.layers\.0\.mlp\.up_proj\.weight on the rows rows\.jsonl:.* is not"
            r" finite, and the loss is"
        ),
    ):
        proved(engine, packs, None)


def in_one_of_two(world: World, given: dict[str, Any]) -> dict[str, Any]:
    """In a process of two: the proofs under ZeRO, and what each hears when documents leak in one of them
    only.
    """
    found: dict[str, Any] = {}
    for stage in given["stages"]:
        model: Any = make_model("lora")
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.data.zero_()
        engine = ZeroEngine(
            model, world=world, settings=make_settings(stage, world), optim=Optim(), loss=summed_loss
        )
        how = {
            "where": where,
            "template": None,
            "whole": False,
            "compute": torch.float32,
            "autocast": None,
            "quant": "none",
            "zero_adapter": True,
        }
        found[f"{stage}"] = prove(engine, model, given["packs"], world, **how)
        AttentionInterface.register("leaky", leaky)
        if world.rank == 1:
            model.get_base_model().set_attn_implementation("leaky")
        try:
            prove(engine, model, given["packs"], world, **how)
        except StageError as error:
            found[f"{stage} leaks"] = str(error)
    return found


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_they_hold_on_a_gpu(adapter: str, dtype: torch.dtype, tiny: Path, packs: Sequence[Pack]) -> None:
    """Prints what was measured, with the backend that `auto` takes there."""
    place, autocast = torch.device("cuda"), dtype if adapter == "none" and dtype != torch.float32 else None
    model: Any = load_model(tiny, dtype=torch.float32 if adapter == "none" else dtype, device=place)
    backend, _ = choose_backend("auto", attention_needs(model, dtype=dtype, device=place))
    if adapter == "lora":
        model = add_lora(model, r=4, alpha=8, dropout=0.0, targets="all-linear", seed=0)
    engine = TorchEngine(
        model.train(),
        build_optimizer(trainable_parameters(model), Optim(), device=place),
        autocast=autocast,
        loss=summed_loss,
    )
    with using_backend(backend):
        found = prove(
            engine,
            model,
            packs,
            single_process(place),
            where=where,
            template=None,
            whole=False,
            compute=dtype,
            autocast=autocast,
            quant="none",
            zero_adapter=adapter == "lora",
        )
    print(f"\n{adapter}, {dtype}, {backend}: {proofs_line(found)}")


@pytest.mark.slow
def test_they_hold_in_two_processes_and_fail_in_both(packs: Sequence[Pack], tmp_path: Path) -> None:
    small = [
        Pack(ids=p.ids % WORDS, trained=p.trained, lengths=p.lengths, files=p.files, lines=p.lines)
        for p in packs
    ]
    one, other = in_processes(
        "tests.train.preflight.test_numerics:in_one_of_two",
        {"stages": (2, 3), "packs": small},
        tmp_path / "two",
        size=2,
    )
    for stage in (2, 3):
        assert one[f"{stage}"].keys() == other[f"{stage}"].keys()
        assert one[f"{stage}"]["adapter"] == 0.0
        assert max(one[f"{stage}"].values()) < 1e-5
        assert one[f"{stage} leaks"] == other[f"{stage} leaks"]
        assert "has failed (packed)" in one[f"{stage} leaks"]


def test_the_documents_are_real_and_short(rows: list[Pack], packs: Sequence[Pack]) -> None:
    for found in (sample_documents(rows, 512), sample_documents(packs, 20), sample_documents(packs, 512)):
        assert len(found) == SAMPLED
        assert all(
            len(p.lengths) == 1 == len(p.lines) and len(p.ids) == len(p.trained) == p.lengths[0]
            for p in found
        )
        assert all(p.trained.any() and not p.trained[0] for p in found)
    assert sum(len(p.ids) for p in sample_documents(packs, 20)) <= 20
    bounds = {
        (int(line), tuple(pack.ids[b:e].tolist()))
        for pack in rows
        for line, (b, e) in zip(pack.lines, pairwise([0, *np.cumsum(pack.lengths)]), strict=True)
    }
    assert all(
        any(line == p.lines[0] and tuple(p.ids.tolist()) == ids[: len(p.ids)] for line, ids in bounds)
        for p in sample_documents(rows, 512)
    )
    assert (
        proofs_line({"mask": 12, "packed": 2e-6})
        == "proved on these rows: packed 2e-06, mask right in 12 places"
    )


def test_nothing_trained_is_no_failure(tiny: Path, packs: Sequence[Pack]) -> None:
    empty = [
        Pack(ids=p.ids, trained=np.zeros_like(p.trained), lengths=p.lengths, files=p.files, lines=p.lines)
        for p in packs
    ]
    assert proved(engine_of(made(tiny, "none")), empty, None) == {}
