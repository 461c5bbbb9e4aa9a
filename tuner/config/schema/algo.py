"""What is trained, and how: `algo`.

The rest of the package asks `algo.uses_adapter` and `algo.method`. So another kind of adapter is an entry of
`METHODS`, a module beside tuner/models/lora that adds, reads and merges it, and a branch of `build_model` in
tuner/train/setup.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tuner.config.fields import identity
from tuner.config.schema.optim import Optim

Adapter = Literal["none", "lora"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """A way to fine-tune."""

    name: str
    """as the versions of the stage `train` have it"""
    trains: Literal["weights", "adapter"]
    """the model's own weights, or an adapter on a frozen base; a step is written as the one or the other"""
    version: int
    """of training so, bumped by hand"""
    merge_version: int
    """of the merged model, bumped by hand"""


METHODS: Mapping[Adapter, Method] = {
    # 2: the padding token's row of the embedding trains too, which ends an answer in some families
    "none": Method(name="full", trains="weights", version=2, merge_version=1),
    "lora": Method(name="lora", trains="adapter", version=1, merge_version=1),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Algo:
    """What is trained, and how."""

    adapter: Adapter = identity("train", "convert", "merge", default="lora")
    """`lora`: low-rank adapters on a frozen base (arXiv:2106.09685); `none`: full fine-tuning"""
    quant: Literal["none", "nf4", "int8"] = identity(
        "train", "merge", "evaluate", default="none", left_out="none", seen_by=("convert",)
    )
    """how the frozen base is stored: `nf4` in 4 bits, with its constants quantised too (arXiv:2305.14314);
    `int8` in 8 bits, with outlier inputs in 16 (arXiv:2208.07339)"""
    r: int = identity("train", default=16, at_least=1)
    """the rank of the adapters"""
    alpha: float | Literal["auto"] = identity("train", default="auto", more_than=0)
    """the adapters' output is scaled by alpha / r; `auto` is a scale of 2 at every rank: 2·r, or 2·√r with
    rslora
    """
    dropout: float = identity("train", default=0.0, at_least=0, less_than=1)
    """on the adapters' input"""
    dora: bool = identity("train", default=False, left_out=False)
    """DoRA: adapt direction and magnitude of the weights separately (arXiv:2402.09353)"""
    rslora: bool = identity("train", default=False, left_out=False)
    """rsLoRA: scale by alpha / sqrt(r) instead (arXiv:2312.03732)"""
    lora_init: str = identity("train", default="default", left_out="default")
    """how the adapters are initialised: `default` (A random, B zero), `gaussian`, `orthogonal`, `olora`,
    `pissa` or `pissa_niter_N`, as PEFT calls them"""
    lora_plus: float | None = identity("train", default=None, left_out=None, more_than=0)
    """LoRA+: the learning rate of B is this many times that of A (arXiv:2402.12354)"""
    targets: str | tuple[str, ...] = identity("train", default="all-linear")
    """module names that get an adapter, a regular expression of whole names, or `all-linear`: every linear
    layer of the language model except the output head and the routers of experts"""
    last_layers: int | None = identity("train", default=None, left_out=None, at_least=1)
    """full fine-tuning of only this many last layers, and of what comes after them"""
    freeze: tuple[Literal["embeddings", "norms", "head"], ...] = identity("train", default=(), left_out=())
    """what full fine-tuning keeps frozen"""
    neftune: float | None = identity("train", default=None, left_out=None, more_than=0)
    """NEFTune: uniform noise of this strength on the token embeddings while training (arXiv:2310.05914)"""
    label_smoothing: float = identity("train", default=0.0, left_out=0.0, at_least=0, less_than=1)
    """the share of the target's probability that is spread over the whole vocabulary (arXiv:1512.00567)"""
    precision: Literal["bf16", "fp32"] = identity(
        "train", "convert", "baseline", "evaluate", default="bf16", seen_by=("merge",)
    )
    """the dtype of the forward and backward passes, and of the merged model; adapters, fp32
    masters and optimizer state are always fp32"""
    epochs: float = identity("train", default=3.0, more_than=0)
    """passes over the training packs"""
    steps: int | None = identity("train", default=None, at_least=1)
    """optimizer steps, instead of epochs"""
    stop_step: int | None = identity("train", default=None, left_out=None, at_least=1)
    """stop after this step, on the learning rate schedule of the whole run; raise it later to continue from
    there
    """
    schedule_steps: int | None = identity("train", default=None, left_out=None, at_least=1)
    """the length of the learning rate schedule, in steps; that of the run when null"""
    init: Literal["on_merged", "continue"] = identity(
        "train", "baseline", default="on_merged", left_out="on_merged"
    )
    """with model=run, where that run trained an adapter: train on the merged model, or `continue`
    that adapter on its own base"""
    batch_tokens: int | Literal["auto"] = identity("train", default="auto", at_least=1)
    """tokens in an optimizer step, over all devices; `auto` takes fewer for small data, to make about 100
    steps or more
    """
    schedule: Literal["cosine", "linear", "constant", "wsd"] = identity("train", default="cosine")
    """of the learning rate, after the warm-up; `wsd` stays constant, then decays to 0 (arXiv:2404.06395)"""
    warmup: int | float = identity("train", default=0.03)
    """the share of steps over which the learning rate rises from zero; 1 or more is a number of steps"""
    decay: float = identity("train", default=0.1, left_out=0.1)
    """the share of steps over which `wsd` decays at the end"""
    early_stop: int | None = identity("train", default=None, left_out=None, at_least=1)
    """stop when the loss on held-out packs has not improved for this many measurements"""
    early_stop_every: int = identity("train", default=50, left_out=50, at_least=1)
    """steps between these measurements"""
    clip: float | None = identity("train", default=1.0, more_than=0)
    """clip the gradients to this global 2-norm; null for no clipping"""
    optim: Optim = field(default_factory=Optim)

    @property
    def method(self) -> Method:
        """What `adapter` stands for."""
        return METHODS[self.adapter]

    @property
    def uses_adapter(self) -> bool:
        """Whether an adapter trains on a frozen base, and not the model's own weights."""
        return self.method.trains == "adapter"
