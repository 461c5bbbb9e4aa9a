"""How a run is computed: `machine`."""

from dataclasses import dataclass
from typing import Literal

from tuner.config.fields import neutral


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """How a run is computed, never what it computes."""

    device: Literal["auto", "cpu", "cuda"] = neutral("train", "baseline", "evaluate", default="auto")
    """`auto` is the GPU where there is one"""
    gpus: int | Literal["auto"] | tuple[int, ...] = neutral(default="auto")
    """how many GPUs, the emptiest of those that are visible, never a busy one; a list such as [0,3] takes
    just those; `auto` is 1. Training has a process for each"""
    processes: int | Literal["auto"] = neutral("train", default="auto", at_least=1)
    """training processes on this node; `auto` is one for each GPU, and one on the CPU"""
    nodes: int = neutral("train", default=1, at_least=1)
    """machines that train together; each has as many processes and GPUs, and sees the store at the same
    path
    """
    hostfile: str | None = neutral(default=None)
    """a file that names them, one a line as DeepSpeed reads it (`host slots=8`), this one first; under
    Slurm they are known
    """
    launcher: Literal["auto", "local", "ssh", "slurm"] = neutral(default="auto")
    """how processes are started on other nodes; `auto` is srun inside a Slurm allocation, else ssh"""
    timeout: float = neutral("train", default=600.0, more_than=0)
    """seconds after which training processes that wait for each other count as hanging"""
    engine: Literal["auto", "torch", "deepspeed"] = neutral("train", default="auto")
    """what computes the steps; `auto` is DeepSpeed for several processes, and with ZeRO or offload
    """
    zero: int | Literal["auto"] = neutral("train", default="auto")
    """the ZeRO stage (arXiv:1910.02054): 1 shards the optimizer state over the processes, 2 gradients too,
    3 weights too; `auto` is 0 in one process and 2 in several"""
    offload: Literal["none", "optimizer", "all"] = neutral("train", default="none")
    """what is kept outside the GPU's memory between uses: the optimizer state (ZeRO 1 to 3), or the weights
    too (ZeRO 3)
    """
    offload_path: str | None = neutral("train", default=None)
    """a directory on a fast disk (NVMe) to offload to (ZeRO 3); the host's memory when null"""
    deepspeed: str | None = neutral("train", default=None)
    """a JSON file of your own, merged over the DeepSpeed settings that follow from the fields above"""
    sequence_parallel: int = neutral("train", default=1, at_least=1)
    """processes that share each pack (Ulysses, arXiv:2309.14509), for packs that one GPU can't hold"""
    threads: int | Literal["auto"] = neutral(
        "train", "merge", "baseline", "evaluate", default="auto", at_least=1, less_than=1025
    )
    """CPU threads; `auto` is the number of cores this process may use"""
    workers: int | Literal["auto"] = neutral("tokenize", default="auto", at_least=1, less_than=1025)
    """processes that tokenize; `auto` is one for each core, or one where there is little to do"""
    row_limit: float = neutral(default=64.0, more_than=0)
    """MiB that one row of a file, or one cell of a table, may have"""
    parse_memory: float = neutral(default=4.0, more_than=0)
    """GiB of memory that may be taken to read one record of what strangers wrote (a row, a tokenizer, a chat
    template), beyond what is held already"""
    parse_timeout: float = neutral(default=120.0, more_than=0)
    """seconds of CPU time that one such record may take"""
    micro_batch: int | Literal["auto"] = neutral("train", default="auto", at_least=1)
    """packs in one forward pass; `auto` follows from machine.memory, up to 16,384 tokens, which keep a GPU
    busy, and is 1 on the CPU"""
    memory: float | Literal["auto", "fast", "small"] = neutral("train", default="auto", more_than=0)
    """how much of a GPU's memory training takes: a number of GiB, of which it takes no more; `auto` is what
    is free, less a reserve. Within that, micro_batch and recompute at `auto` are the fastest that fit. `fast`
    recomputes nothing, `small` takes the least there is"""
    recompute: int | Literal["auto", "none", "norms", "blocks"] = neutral("train", default="auto", at_least=1)
    """activation checkpointing, what the backward pass computes again: `blocks` all of each layer but its
    input (arXiv:1604.06174), a number so many of the layers, `norms` what is no matmul and no attention
    (compiled layers only); `auto` follows from machine.memory"""
    attention: Literal["auto", "flash4", "flash", "varlen", "flex", "sdpa"] = neutral(
        "train", "baseline", "evaluate", default="auto"
    )
    """what computes attention: the package flash-attn-4, or flash-attn of version 3 or 2, PyTorch's own flash
    kernel for documents of varying length, FlexAttention with a block mask, or SDPA document by document;
    `auto` takes the first that runs here"""
    kernels: Literal["auto", "compiled", "fused", "plain"] = neutral("train", default="auto")
    """on a GPU: `fused` computes linear layers with their adapters, and the output head with the loss, by
    Triton kernels; `compiled` compiles the layers of the model besides, and fills rows to one length; `plain`
    leaves all as PEFT and transformers compute it. `auto` compiles where that pays within the run, and takes
    what runs. Passes over small rows are captured as CUDA graphs, but with `fused` and `plain`"""
    deterministic: bool = neutral("train", "baseline", "evaluate", default=False)
    """use only algorithms that give the same bits on every run, which may be slower"""
    preflight: bool = neutral("train", default=True)
    """before the first step, try the longest pack and a save, and prove on the run's own data that packing,
    gradient accumulation and fresh adapters change nothing
    """
    save_every: int = neutral("train", default=50, at_least=1)
    """optimizer steps between checkpoints; the last step is always saved"""
    keep: int = neutral("train", default=2, at_least=1)
    """how many of the newest saved steps are kept, besides the best one and that of convert.step"""
    measure_every: int | None = neutral("train", default=None, at_least=1)
    """optimizer steps between measurements of the loss on held-out packs; with each checkpoint when null"""
    samples: bool = neutral("train", default=False)
    """answer eval.prompts whenever the held-out loss is measured"""
    trackers: tuple[Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio"], ...] = neutral(
        "train", default=("tensorboard",)
    )
    """where metrics go besides metrics.jsonl"""
    project: str = neutral("train", default="tuner")
    """the project that trackers file the run under"""
