"""What a run says before its first step, and what it leaves as facts behind its last one."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuner.config.view import View
from tuner.data.packs import Pack
from tuner.data.sampler import AUTO_TOKENS, Order, plan_order
from tuner.report.page import tokens_measured
from tuner.train.batch import count_targets


def describe(
    config: View,
    order: Order,
    facts: Mapping[str, Any],
    *,
    micro_batch: int,
    packs_each: int,
    compute: str,
    attention: str,
    state: str | None,
    held_out: Sequence[Pack],
) -> Iterator[str]:
    """The lines before the first step.

    compute    the dtype of matmuls
    attention  why it is computed as it is
    state      what layers carry from token to token, as tuner.models.stateful_layers says it; None: nothing
    """
    yield describe_steps(
        config,
        order,
        micro_batch=micro_batch if state is None else None,
        processes=facts["processes"],
        packs_each=packs_each,
    )
    yield describe_compute(config, facts, compute)
    yield f"attention: {attention}"
    if state is not None:
        yield describe_single_documents(state)
    if held_out:
        yield describe_held_out(held_out)


def describe_steps(
    config: View, order: Order, *, micro_batch: int | None, processes: int, packs_each: int
) -> str:
    """How many steps of how many packs. `micro_batch` is None where rows are single documents."""
    shared = f" on {processes} processes, {packs_each} each" if processes > 1 else ""
    at_once = "" if micro_batch is None else f", {micro_batch} at once"
    packs = "1 pack" if order.per_step == 1 else f"{order.per_step} packs{shared}{at_once}"
    small = ""
    if config.algo.batch_tokens == "auto" and order.per_step < AUTO_TOKENS // config.data.length:
        whole = plan_order(
            order.packs,
            config.data.length,
            seed=order.seed,
            epochs=config.algo.epochs,
            steps=None,
            batch_tokens="auto",
        )
        small = f", not {AUTO_TOKENS:,}, so that algo.epochs={config.algo.epochs:g} makes {whole.steps} steps"
    return (
        f"{order.steps} step{'s' * (order.steps != 1)} of {packs}, up to "
        f"{order.per_step * config.data.length:,} tokens a step{small}"
    )


def describe_compute(config: View, facts: Mapping[str, Any], compute: str) -> str:
    """What trains, in which arithmetic, and on what."""
    engine = "PyTorch" if facts["engine"] == "torch" else f"DeepSpeed, ZeRO {facts['zero']}"
    return (
        f"{facts['trainable']:,} trainable parameters; {config.algo.precision} weights, {compute} "
        f"arithmetic; {facts['device']}, {facts['threads']} threads; {engine}"
    )


def describe_single_documents(state: str) -> str:
    """`state`: what is carried from token to token, as tuner.models.stateful_layers says it."""
    return (
        f"{state} carry a state from token to token, which knows no documents: each document trains as a "
        "row of its own, one at a time"
    )


def describe_held_out(packs: Sequence[Pack]) -> str:
    return (
        f"held-out loss while training: {len(packs)} pack{'s' * (len(packs) > 1)}, "
        f"{tokens_measured(count_targets(packs), briefly=True)}"
    )


def outcome(algo: View, order: Order, row: Mapping[str, Any], done: int, compute: str) -> dict[str, Any]:
    """What came of a run, as facts of the manifest; `row` is its last one, after `done` steps."""
    return {
        "step": done,
        "steps": order.steps,
        "loss": row["loss"],
        "tokens": row["tokens"],
        "seconds": row["seconds"],
        "tokens_per_second": round(row["tokens"] / max(row["seconds"], 1e-3), 1),
        "dtype": algo.precision,
        "compute": compute,
        "packs_per_step": order.per_step,
    }
