"""The config of a run: one tree of frozen dataclasses. Each leaf is declared as identity, place or neutral
(tuner.config.fields).

The string under a field is its documentation; `tuner copy` writes it beside the field.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from tuner.config.fields import UNSET, identity, neutral, place
from tuner.config.methods import METHODS, Adapter, Method

TEXT_STAGES = ("tokenize", "convert", "baseline", "evaluate")
HUBS = {"hub": "main", "modelscope": "master"}
"""values of model.source and data.source that are hubs, and the branch that each takes where none is named"""
BITSANDBYTES = frozenset({"adamw_8bit", "paged_adamw", "paged_adamw_8bit"})
"""values of algo.optim.name that bitsandbytes computes"""


def of_text(*, default: Any, left_out: Any = UNSET) -> Any:
    """A field that decides how a conversation is written. Training sees it to prove that its masks are
    those of the template.
    """
    return identity(*TEXT_STAGES, default=default, left_out=left_out, seen_by=("train",))


@dataclass(frozen=True, kw_only=True, slots=True)
class Chat:
    """How a conversation is written for the model.

    `{text}` stands for what a turn says, `{bos}` for the token that the tokenizer begins a text with (nothing
    where there is none), and `{eos}` for the one that ends it; these two are special tokens without being
    listed. Braces around anything else are text.
    """

    special: tuple[str, ...] = of_text(default=())
    """the special tokens in the texts below; each must be one id of the tokenizer, and enters by that id"""
    ids: dict[str, int] = of_text(default=dict, left_out={})
    """the ids of special tokens that the tokenizer's vocabulary calls otherwise"""
    begin: str = of_text(default="")
    """written once, before the first turn"""
    system: str = of_text(default="{text}\n\n")
    """a system turn; where `system_in` names a user's turn, what stands in front of that turn's text"""
    system_in: Literal["turn", "first_user", "last_user", "refused"] = of_text(
        default="turn", left_out="turn"
    )
    """where a system prompt is written: as a turn of its own, or inside the first or the last user turn;
    `refused`: the model has no place for one
    """
    system_with_tools: str = of_text(default="", left_out="")
    """the system turn of a conversation with tools, where it is another than `system`"""
    user: str = of_text(default="{text}\n\n")
    """a user turn"""
    assistant: str = of_text(default="{text}\n\n")
    """an assistant turn, with `end` somewhere after `{text}`; trained is all from `{text}` to `end`"""
    prompt: str | None = of_text(default=None, left_out=None)
    """how the assistant is made to speak, where that isn't all before `{text}` in `assistant`: more, such as
    an open thought, or less. What comes after it is trained"""
    end: str = of_text(default="")
    """the special token that ends an assistant turn: it is trained, and generation stops at it"""
    end_in: Literal["turn", "next"] = of_text(default="turn", left_out="turn")
    """`next`: `assistant` has no end; the first token of the next turn, which is special, ends it and is
    trained; after the last turn it is `end`
    """
    stops: tuple[str, ...] = of_text(default=(), left_out=())
    """more special tokens at which generation stops"""
    finish: str = of_text(default="", left_out="")
    """written once, after the last turn"""
    default_system: str | None = of_text(default=None)
    """a system prompt for conversations that do not begin with one"""
    trim: tuple[str, ...] = of_text(default=(), left_out=())
    """whose texts lose the white space at both ends: system, user, assistant, tool. A system prompt inside a
    user's turn is trimmed with that turn's text, as one, unless `system` is named too"""
    tools: str = of_text(default="", left_out="")
    """how the tools of a conversation are written, with `{tools}`; empty where the model knows none"""
    tools_in: Literal["system", "after_system", "first", "first_user", "last_user"] = of_text(
        default="system", left_out="system"
    )
    """where: in the system turn after its text; as a turn of its own behind the system turn, or before all
    turns; inside the first user turn before its text; or in front of the last user turn"""
    tools_gap: str = of_text(default="\n\n", left_out="\n\n")
    """between a system prompt and the tools, for tools_in=system"""
    tool: str = of_text(default="{tool}", left_out="{tool}")
    """one tool: `{tool}` is JSON of all of it, `{function}` of its function alone, `{parameters}` of that
    one's parameters; `{name}` and `{description}` are texts; `{raw}` is `{function}` with its own texts
    unescaped, as Mistral's templates write it"""
    tool_indent: int | None = of_text(default=None, left_out=None)
    """JSON of tools goes over several lines, indented by so many spaces; on one line when null"""
    tool_join: str = of_text(default="\n", left_out="\n")
    """between two tools"""
    calls: str = of_text(default="", left_out="")
    """what the assistant calls, with `{calls}`; empty where the model knows none"""
    calls_in: Literal["turn", "apart", "refused"] = of_text(default="turn", left_out="turn")
    """calls that come with a text: in the same turn, after it; `apart`, in a turn of their own; or
    `refused`, where the model writes one or the other
    """
    calls_gap: str = of_text(default="", left_out="")
    """between the text and the calls"""
    calls_turn: str = of_text(default="", left_out="")
    """an assistant turn that calls, where it is another than `assistant`; its `{text}` stands for text and
    calls
    """
    calls_end: str = of_text(default="", left_out="")
    """the special token that ends an assistant turn that calls, where it is another than `end`"""
    call: str = of_text(default="", left_out="")
    """one call, with `{name}`, `{arguments}` as JSON, and `{id}`"""
    call_join: str = of_text(default="\n", left_out="\n")
    """between two calls"""
    id_length: int | None = of_text(default=None, left_out=None)
    """ids of calls must be so many letters and digits: others, and missing ones, are replaced"""
    results: str = of_text(default="", left_out="")
    """a turn of what tools answered one after the other, with `{results}`; empty where the model knows
    none
    """
    result: str = of_text(default="{text}", left_out="{text}")
    """one answer of a tool: `{text}`, or `{json}`, the same as a JSON string; with `{name}` and `{id}` of
    the call
    """
    result_join: str = of_text(default="\n", left_out="\n")
    """between two answers of tools"""
    reasoning: str = of_text(default="", left_out="")
    """what the assistant thought, before its text, with `{text}`; empty where the model does not think"""
    reasoning_in: Literal["every_turn", "last_turns"] = of_text(default="last_turns", left_out="last_turns")
    """which turns show it: all, or only those after the last user turn"""
    no_reasoning: str = of_text(default="", left_out="")
    """what is written instead where the assistant did not think, such as an empty thought; never trained"""
    no_reasoning_in: Literal["every_turn", "last_turns", "last_turn"] = of_text(
        default="last_turn", left_out="last_turn"
    )
    """which turns show that: all, those after the last user turn, or only the last turn of a conversation"""
    jinja: bool = of_text(default=False, left_out=False)
    """take the tokenizer's own Jinja template, and of all above only `default_system`"""
    auto: bool = of_text(default=False, left_out=False)
    """take what the tokenizer says (tuner.data.chat.choice), and of all above only `default_system`;
    stages see what that was found to be
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Which model, where it comes from, and how it is talked to."""

    source: Literal["path", "package", "run", "hub", "modelscope"] = place(
        "fetch_model", "tokenize", default="path"
    )
    """`path`: a Hugging Face directory or a GGUF file; `package`: a file that an installed Python package
    carries; `run`: what an earlier run made; `hub`, `modelscope`: a repository of a hub"""
    path: str | None = place("fetch_model", "tokenize", default=None)
    """the directory or file, for source=path"""
    package: str | None = place("fetch_model", default=None)
    """the name to import, for source=package"""
    file: str | None = place("fetch_model", default=None)
    """the file inside the package"""
    install: str | None = neutral("fetch_model", default=None)
    """the line that installs the package"""
    run: str | None = place("fetch_model", default=None, left_out=None)
    """the earlier run, for source=run: its name, path, digest prefix or `last`"""
    dir: str | None = neutral("fetch_model", "tokenize", default=None)
    """where that run's model lies: filled by the tool"""
    adapter: str | None = neutral("train", "baseline", default=None)
    """where the adapter lies that algo.init=continue goes on from: filled by the tool"""
    repo: str | None = identity("convert", default=None, seen_by=("fetch_model",))
    """the public name, such as org/name: where a hub has it, and what adapters call their base model"""
    modelscope: str | None = neutral("fetch_model", default=None)
    """the name on ModelScope, where that is another"""
    revision: str | None = place("fetch_model", default=None, left_out=None)
    """a branch, a tag or a commit of the repository; the hub's default when null"""
    layout: str = neutral("fetch_model", default="auto")
    """how the checkpoint's tensors are laid out: `native` to transformers, or a family that is rewritten,
    such as internlm2; `auto` reads it off config.json
    """
    new_tokens: tuple[str, ...] = identity("fetch_model", "train", default=(), left_out=())
    """tokens that the vocabulary gets besides, each with a row of the embedding; those in brackets, such
    as <tool>, are special
    """
    context: int | None = neutral("tokenize", default=None)
    """the longest sequence the model was made for, in tokens; a longer data.length is refused"""
    licence: str | None = neutral(default=None)
    """under which its weights are published"""
    parameters: int | None = neutral(default=None)
    """how many there are, as a file of the repository holds them: a tied head counts once"""
    targets: tuple[str, ...] = neutral(default=())
    """its linear layers, as algo.targets=all-linear finds them: for estimates before anything is
    downloaded
    """
    geometry: dict[str, int | float | bool | str | None] = neutral(default=dict)
    """the keys of the native config.json that decide the shapes, with model_type: for estimates before
    anything is downloaded
    """
    chat: Chat = field(default_factory=Chat)


@dataclass(frozen=True, kw_only=True, slots=True)
class Optim:
    """The optimizer."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "muon"] = identity(
        "train", default="adamw", left_out="adamw"
    )
    """`adamw` (arXiv:1711.05101); with its moments in 8 bits (arXiv:2110.02861) or in memory that a full GPU
    pages out, by bitsandbytes; `adafactor` (arXiv:1804.04235); `muon`: orthogonalised momentum on the
    matrices of the layers, AdamW on everything else"""
    lr: float = identity("train", default=2e-4)
    """the highest learning rate, reached after the warm-up"""
    betas: tuple[float, float] = identity("train", default=(0.9, 0.999))
    """decay of the running means of the gradient and of its square; `adafactor` uses neither"""
    eps: float = identity("train", default=1e-8)
    """added to the denominator, but for `adafactor`"""
    weight_decay: float = identity("train", default=0.0)
    """decoupled weight decay, on matrices only"""
    momentum: float = identity("train", default=0.95, left_out=0.95)
    """of `muon`"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Algo:
    """What is trained, and by which rule."""

    adapter: Adapter = identity("train", "convert", "merge", default="lora")
    """`lora`: low-rank adapters on a frozen base (arXiv:2106.09685); `none`: full fine-tuning"""
    quant: Literal["none", "nf4", "int8"] = identity(
        "train", "merge", "evaluate", default="none", left_out="none", seen_by=("convert",)
    )
    """how the frozen base is held: `nf4` in 4 bits, with its constants quantised too (arXiv:2305.14314);
    `int8` in 8 bits, with outlying inputs multiplied in 16 (arXiv:2208.07339)"""
    r: int = identity("train", default=16)
    """the rank of the adapters"""
    alpha: float | Literal["auto"] = identity("train", default="auto")
    """the adapters' output is scaled by alpha / r; `auto` is a scale of 2 at every rank: 2·r, or 2·√r with
    rslora
    """
    dropout: float = identity("train", default=0.0)
    """on the adapters' input"""
    dora: bool = identity("train", default=False, left_out=False)
    """adapt direction and magnitude of the weights apart (arXiv:2402.09353)"""
    rslora: bool = identity("train", default=False, left_out=False)
    """scale by alpha / sqrt(r) instead (arXiv:2312.03732)"""
    lora_init: str = identity("train", default="default", left_out="default")
    """how the adapters begin: `default` (A random, B zero), `gaussian`, `orthogonal`, `olora`, `pissa` or
    `pissa_niter_N`, as PEFT calls them
    """
    lora_plus: float | None = identity("train", default=None, left_out=None)
    """B learns this many times as fast as A (arXiv:2402.12354)"""
    targets: str | tuple[str, ...] = identity("train", default="all-linear")
    """module names that get an adapter, a regular expression of whole names, or `all-linear`: every linear
    layer of the language model but its head and the routers of experts"""
    last_layers: int | None = identity("train", default=None, left_out=None)
    """full fine-tuning of the last so many layers only, and of what comes after them"""
    freeze: tuple[Literal["embeddings", "norms", "head"], ...] = identity("train", default=(), left_out=())
    """what full fine-tuning leaves as it is"""
    neftune: float | None = identity("train", default=None, left_out=None)
    """uniform noise on the embedded tokens while training, of this strength (arXiv:2310.05914)"""
    label_smoothing: float = identity("train", default=0.0, left_out=0.0)
    """the share of the target's probability that is spread over the whole vocabulary (arXiv:1512.00567)"""
    precision: Literal["bf16", "fp32"] = identity(
        "train", "convert", "baseline", "evaluate", default="bf16", seen_by=("merge",)
    )
    """of the forward and backward pass, and of what is merged; adapters, fp32 masters and optimizer state
    are always fp32
    """
    epochs: float = identity("train", default=3.0)
    """passes over the training packs"""
    steps: int | None = identity("train", default=None)
    """optimizer steps, instead of epochs"""
    stop_step: int | None = identity("train", default=None, left_out=None)
    """end after this step, with the schedule of the whole training; raised later, the training goes on
    from there
    """
    schedule_steps: int | None = identity("train", default=None, left_out=None)
    """the steps over which the learning rate runs its course; those of the training when null"""
    init: Literal["on_merged", "continue"] = identity(
        "train", "baseline", default="on_merged", left_out="on_merged"
    )
    """with model=run and an adapter there: train on the merged model, or `continue` that adapter on its
    own base
    """
    batch_tokens: int | Literal["auto"] = identity("train", default="auto")
    """tokens that an optimizer step sees, over all devices; `auto` keeps small data at about 100 steps or
    more
    """
    schedule: Literal["cosine", "linear", "constant", "wsd"] = identity("train", default="cosine")
    """of the learning rate, after the warm-up; `wsd` stays and then falls to zero (arXiv:2404.06395)"""
    warmup: int | float = identity("train", default=0.03)
    """the share of steps over which the learning rate rises from zero; from 1 on, their number"""
    decay: float = identity("train", default=0.1, left_out=0.1)
    """the share of steps over which `wsd` falls at the end"""
    early_stop: int | None = identity("train", default=None, left_out=None)
    """end when the loss on held-out packs has not fallen in so many measurements"""
    early_stop_every: int = identity("train", default=50, left_out=50)
    """steps between these measurements"""
    clip: float | None = identity("train", default=1.0)
    """the largest 2-norm of all gradients together; null for none"""
    optim: Optim = field(default_factory=Optim)

    @property
    def method(self) -> Method:
        """What `adapter` stands for."""
        return METHODS[self.adapter]

    @property
    def uses_adapter(self) -> bool:
        """Whether an adapter trains on a frozen base, and not the model's own weights."""
        return self.method.trains == "adapter"


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """Where rows come from, and how they are read: one source of a mixture."""

    label: str = identity("tokenize", default="", left_out="", seen_by=("fetch_data",))
    """what the ledger calls it: filled by the tool in a mixture"""
    source: Literal["path", "package", "hub", "modelscope"] = place("fetch_data", "tokenize", default="path")
    """`path`: local files; `package`: files that an installed Python package carries; `hub`, `modelscope`:
    a data set of a hub
    """
    path: str | tuple[str, ...] | None = place("fetch_data", default=None)
    """a file, a pattern or a list of them; inside the package for source=package"""
    package: str | None = place("fetch_data", default=None)
    """the name to import, for source=package"""
    repo: str | None = identity("fetch_data", default=None, left_out=None)
    """the data set's name on its hub, such as OpenAssistant/oasst1"""
    revision: str | None = identity("fetch_data", default=None, left_out=None)
    """a branch, a tag or a commit; the hub's default when null"""
    files: str | tuple[str, ...] | None = identity("fetch_data", default=None, left_out=None)
    """patterns of the files wanted of it; those of the training split when null"""
    encoding: str = identity("tokenize", default="auto", left_out="auto", seen_by=("fetch_data",))
    """of text files; `auto` is UTF-8, or UTF-16 with a byte order mark"""
    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "xtuner",
        "alpaca",
        "prompt",
        "text",
        "templated",
        "guanaco",
        "oasst",
        "preference",
        "label",
        "chosen",
    ] = identity("tokenize", default="auto", seen_by=("fetch_data",))
    """how a row is read; `auto` looks at its keys, and so does `chosen`, which takes the better answer of
    rows that compare answers
    """
    columns: dict[str, str] = identity("tokenize", default=dict, left_out={}, seen_by=("fetch_data",))
    """where a format's columns are found in a row: another name, a path such as `instances.0.input`, or a
    text with {names} in it
    """
    roles: dict[str, str | tuple[str, ...]] = identity(
        "tokenize", default=dict, left_out={}, seen_by=("fetch_data",)
    )
    """other words for system, user, assistant and tool"""
    paths: Literal["best", "all"] = identity(
        "tokenize", default="best", left_out="best", seen_by=("fetch_data",)
    )
    """of a tree of messages: the path of the best-ranked replies, or every path"""
    split: str = identity("tokenize", default="auto", left_out="auto", seen_by=("fetch_data",))
    """of rows that say in a column `split` of which one they are: `auto` reads those for training, where
    there are others; `all`, or the name of one
    """
    fill: dict[str, str] = identity("tokenize", default=dict)
    """words for the `{{name}}` places in the rows"""
    system: str | None = of_text(default=None)
    """a system prompt for conversations that bring none, before model.chat.default_system"""
    leave: str | tuple[str, ...] = identity("tokenize", default=(), left_out=())
    """what no format reads of the rows and is to be left, such as [id,messages.timestamp]; `*` is all. The
    ledger counts it, and no line names it
    """
    unread: Literal["name", "error"] = identity("tokenize", default="name", left_out="name")
    """what happens where something else is not read of a row, a column with text or a key of a turn: it is
    named once, or the row is an error
    """
    take: int | float | None = identity("tokenize", default=None, left_out=None)
    """how many rows are drawn (by data.seed), or as which share; 2.0 takes each twice"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data(DataSource):
    """Which rows, and how they become packs of tokens."""

    of: dict[str, int | float] = neutral(default=dict)
    """the sources of a mixture (data=mix): an option of `data` or a file → `take`"""
    parts: tuple[DataSource, ...] = field(default=())
    """what `of` names: filled by the tool"""
    length: int = identity("tokenize", "train", default=2048)
    """the length of a pack, in tokens"""
    overlong: Literal["auto", "truncate", "split", "drop", "error"] = identity("tokenize", default="auto")
    """what happens to a row longer than a pack; `auto` splits a plain text and truncates a conversation,
    where possible between two turns
    """
    loss: Literal["assistant", "last", "all"] = identity(
        "tokenize", default="assistant", left_out="assistant", seen_by=("train",)
    )
    """on what the assistant writes, on its last turn only, or on everything"""
    reasoning: Literal["last", "every_turn", "keep", "strip"] = identity(
        "tokenize", default="last", left_out="last"
    )
    """`last` shows the thoughts that the template shows and trains no answer whose thoughts it hides;
    `every_turn` makes one sample of each turn; `keep` shows all; `strip` none"""
    bad_rows: Literal["error", "skip"] = identity("tokenize", default="error", left_out="error")
    """what happens to rows that can't be read; the ledger counts those that were skipped"""
    duplicates: Literal["keep", "drop"] = identity("tokenize", default="keep", left_out="keep")
    """what happens to rows that give the same tokens again"""
    held_out: float | Literal["auto"] = identity("tokenize", default="auto")
    """the share of rows kept out of training, to measure the loss on, drawn by distinct content; `auto` is
    5 %, at most 1,000 rows and 500,000 tokens
    """
    held_out_path: str | tuple[str, ...] | None = place("fetch_data", default=None, left_out=None)
    """a file of its own for that, instead of a share; read as the rest is"""
    max_dropped: int | float | None = identity("tokenize", default=None, left_out=None)
    """fail when more rows than this, or a larger share of them, are left out"""
    min_trained_tokens: int | None = identity("tokenize", default=None, left_out=None)
    """fail when fewer tokens than this are trained"""
    seed: int = identity("tokenize", default=0)
    """of the draws, the held-out share and the packing; the top `seed` enters training only"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """How a run is computed, never what."""

    device: Literal["auto", "cpu", "cuda"] = neutral("train", "baseline", "evaluate", default="auto")
    """`auto` takes the GPU where there is one"""
    gpus: int | Literal["auto"] | tuple[int, ...] = neutral(default="auto")
    """how many GPUs, the emptiest of those that are visible, never a busy one; a list such as [0,3] takes
    just those; `auto` is 1. A training has a process for each"""
    processes: int | Literal["auto"] = neutral("train", default="auto")
    """processes of a training on this node; `auto` is one for each GPU, and one on the processor"""
    nodes: int = neutral("train", default=1)
    """machines that train together; each has as many processes and GPUs, and sees the store at the same
    path
    """
    hostfile: str | None = neutral(default=None)
    """a file that names them, one a line as DeepSpeed reads it (`host slots=8`), this one first; under
    Slurm they are known
    """
    launcher: Literal["auto", "local", "ssh", "slurm"] = neutral(default="auto")
    """how processes are started on other nodes; `auto` is srun inside a Slurm allocation, else ssh"""
    timeout: float = neutral("train", default=600.0)
    """seconds after which processes that wait for each other, in a training of several, count as hanging"""
    engine: Literal["auto", "torch", "deepspeed"] = neutral("train", default="auto")
    """what computes the steps; `auto` is DeepSpeed for several processes, and where ZeRO or offload is
    asked for
    """
    zero: int | Literal["auto"] = neutral("train", default="auto")
    """the ZeRO stage (arXiv:1910.02054): 1 shards the optimizer's state over the processes, 2 gradients too,
    3 weights too; `auto` is 0 in one process and 2 in several"""
    offload: Literal["none", "optimizer", "all"] = neutral("train", default="none")
    """what lies outside of the GPU's memory between uses: the optimizer's state (ZeRO 1 to 3), or with it
    the weights (ZeRO 3)
    """
    offload_path: str | None = neutral("train", default=None)
    """a directory on a fast disk (NVMe) for what is offloaded (ZeRO 3); the host's memory when null"""
    deepspeed: str | None = neutral("train", default=None)
    """a JSON file of one's own, merged over the DeepSpeed settings that follow from the fields above"""
    sequence_parallel: int = neutral("train", default=1)
    """processes that share each pack (Ulysses, arXiv:2309.14509), for packs that one GPU can't hold"""
    threads: int | Literal["auto"] = neutral("train", "merge", "baseline", "evaluate", default="auto")
    """CPU threads; `auto` is the number of cores this process may use"""
    workers: int | Literal["auto"] = neutral("tokenize", default="auto")
    """processes that tokenize; `auto` is one for each core, or one where there is little to do"""
    micro_batch: int | Literal["auto"] = neutral("train", default="auto")
    """packs in one forward pass; `auto` is the most that fit into the GPU's memory, and 1 on the processor"""
    recompute: Literal["auto", "none", "blocks"] = neutral("train", default="auto")
    """activations: `blocks` keeps the input of each layer and computes the rest again in the backward pass
    (arXiv:1604.06174); `auto` does where they would not fit otherwise"""
    attention: Literal["auto", "flash", "varlen", "flex", "sdpa"] = neutral(
        "train", "baseline", "evaluate", default="auto"
    )
    """what computes attention: the flash-attn package, PyTorch's own flash kernel for documents of varying
    length, FlexAttention with a block mask, or SDPA document by document; `auto` takes the first that runs
    here"""
    deterministic: bool = neutral("train", "baseline", "evaluate", default=False)
    """only algorithms that give the same bits on each run, which may be slower"""
    preflight: bool = neutral("train", default=True)
    """before the first step, try the longest pack and the save, and prove on the run's own data that
    packing, accumulation and adapters change nothing
    """
    save_every: int = neutral("train", default=50)
    """optimizer steps between checkpoints; the last step is always saved"""
    keep: int = neutral("train", default=2)
    """newest steps that stay, beside the best one and that of convert.step"""
    measure_every: int | None = neutral("train", default=None)
    """optimizer steps between measurements of the loss on held-out packs; with each checkpoint when null"""
    samples: bool = neutral("train", default=False)
    """answer eval.prompts whenever the held-out loss is measured"""
    trackers: tuple[Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio"], ...] = neutral(
        "train", default=("tensorboard",)
    )
    """where the curves go besides metrics.jsonl"""
    project: str = neutral("train", default="tuner")
    """what trackers file the run under"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """What a training leaves."""

    keep: Literal["auto", "resume", "weights"] = neutral("train", default="auto")
    """`resume` keeps the optimizer's state, so that a longer training can go on; `auto` does where
    algo.stop_step ended it early
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Convert:
    """Which step of the training is handed on."""

    step: int | Literal["last", "best"] = identity(
        "convert", default="last", left_out="last", seen_by=("train",)
    )
    """a step's number, the `last` one, or the `best` by convert.best_by"""
    best_by: Literal["held_out", "loss"] = neutral("convert", "train", default="held_out")
    """the lowest value decides: the loss on held-out conversations, or the training loss"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Merge:
    """The merged model: base and adapter in one."""

    when: Literal["auto", "always", "never"] = neutral("merge", default="auto")
    """`auto` builds it, except in a sweep; evaluation does not need it"""
    layout: Literal["native", "original"] = identity(
        "merge", default="native", left_out="native", seen_by=("train",)
    )
    """`native` to transformers, or the `original` one of a family that was rewritten"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Eval:
    """How the result is measured."""

    prompts: tuple[str, ...] = identity("baseline", "evaluate", default=(), seen_by=("train",))
    """questions that the base and the tuned model answer, greedily"""
    max_new_tokens: int = identity("baseline", "evaluate", default=48, seen_by=("train",))
    """the longest answer, in tokens"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """How a finished run answers, in `chat`."""

    system: str | None = neutral(default=None)
    """a system prompt for the conversation, before the one that was trained"""
    temperature: float = neutral(default=0.0)
    """0 always takes the likeliest token; higher values draw, and 1 draws as the model says"""
    top_p: float = neutral(default=1.0)
    """draw among the likeliest tokens that have this probability together"""
    max_new_tokens: int = neutral(default=512)
    """the longest answer, in tokens"""
    seed: int | None = neutral(default=None)
    """of the draws; null for a new one each time"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """One run."""

    model: Model = field(default_factory=Model)
    algo: Algo = field(default_factory=Algo)
    data: Data = field(default_factory=Data)
    machine: Machine = field(default_factory=Machine)
    eval: Eval = field(default_factory=Eval)
    train: Train = field(default_factory=Train)
    convert: Convert = field(default_factory=Convert)
    merge: Merge = field(default_factory=Merge)
    generation: Generation = field(default_factory=Generation)
    seed: int = identity("train", default=0)
    """of the initial adapters, the order of the data and dropout"""
    variant: str = identity("train", default="", left_out="")
    """a free word in the identity, for training the same thing again"""
    root: str = neutral(default="outputs")
    """the output root: the store and the views of the runs"""
    store: str | None = neutral(default=None)
    """where the artifacts lie; `root`/store when null"""
    lock: str = neutral("fetch_data", "fetch_model", default="tuner.lock")
    """the file that says which commit a branch of a hub means, and what its files hold; meant to be
    committed
    """
    locked: bool = neutral("fetch_data", "fetch_model", default=False)
    """refuse what is not in `lock`: for runs that must be the same everywhere"""
    until: str | None = neutral(default=None)
    """stop after this stage: fetch, tokenize, train, convert, merge or evaluate"""
    redo: str | None = neutral(default=None)
    """build again from this stage on; what was there goes to the trash"""
    name: str | None = neutral(default=None)
    """the run's directory is called so, instead of model-algo-data"""
    note: str | None = neutral(default=None)
    """a line of your own, shown by `status`"""
    tags: tuple[str, ...] = neutral(default=())
    """words of your own, shown by `status`"""
    choices: dict[str, str] = neutral(default=dict)
    """the options that were composed: filled by the tool"""
