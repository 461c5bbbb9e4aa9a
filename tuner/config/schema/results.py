"""What becomes of what was trained: train, convert, merge, eval, generation, predict, serve
and sweep.
"""

from dataclasses import dataclass
from typing import Literal

from tuner.config.fields import identity, neutral


@dataclass(frozen=True, kw_only=True, slots=True)
class Train:
    """What training leaves behind."""

    keep: Literal["auto", "resume", "weights"] = neutral("train", default="auto")
    """`resume` keeps the optimizer state, so that a longer run can continue; `auto` does so where
    algo.stop_step ended training early
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Convert:
    """Which saved step becomes the result."""

    step: int | Literal["last", "best"] = identity(
        "convert", default="last", left_out="last", seen_by=("train",), at_least=1
    )
    """a step's number, the `last` one, or the `best` by convert.best_by"""
    best_by: Literal["held_out", "loss"] = neutral("convert", "train", default="held_out")
    """what is lowest at the best step: the loss on held-out conversations, or the training loss"""


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
    held_out_rows: int = identity("baseline", "evaluate", default=8, left_out=8, at_least=0)
    """without questions they answer the first turns of so many held-out rows, beside what stands there"""
    max_new_tokens: int = identity("baseline", "evaluate", default=256, seen_by=("train",), at_least=1)
    """the longest answer, in tokens"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """How a finished run answers, in `chat` and `predict`."""

    system: str | None = neutral(default=None)
    """a system prompt for the conversation, before the one that was trained"""
    temperature: float = neutral(default=0.0)
    """0 always takes the likeliest token; higher values draw, and 1 draws as the model says"""
    top_p: float = neutral(default=1.0, more_than=0)
    """draw among the likeliest tokens that have this probability together"""
    max_new_tokens: int = neutral(default=512, at_least=1)
    """the longest answer, in tokens"""
    seed: int | None = neutral(default=None)
    """of the draws; null for a new one each time"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predict:
    """How `predict` answers the rows of a file."""

    batch: int | Literal["auto"] = neutral(default="auto", at_least=1)
    """rows that are answered together; `auto` by memory, or 16 of an endpoint"""
    endpoint: str | None = neutral(default=None)
    """the address of a server with OpenAI's protocol that answers in place of the run's weights, such as
    http://127.0.0.1:8000/v1
    """
    model: str | None = neutral(default=None)
    """what the endpoint calls the model; null for the first that it names"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Serve:
    """How `serve` starts a server with OpenAI's protocol."""

    engine: Literal["auto", "vllm", "sglang", "lmdeploy", "transformers"] = neutral(default="auto")
    """`auto`: the first of these that serve.python has, on a machine without a GPU `transformers`"""
    python: str | None = neutral(default=None)
    """the Python of the environment that the server is installed in; null for this one"""
    weights: Literal["merged", "adapter"] = neutral(default="merged")
    """the merged model, or the adapter beside its base"""
    port: int = neutral(default=8000, at_least=0)
    """on this machine alone; 0 takes a free one"""
    timeout: int = neutral(default=600, at_least=1)
    """seconds that the server may take to load the model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """What the jobs of a sweep are for."""

    objective: Literal["held_out_loss", "perplexity", "held_out_while_training", "loss"] = neutral(
        default="held_out_loss"
    )
    """what ranks them, and what a search optimizes: the held-out loss or perplexity of the evaluation, the
    last held-out loss while training, or the loss of the last training step"""
