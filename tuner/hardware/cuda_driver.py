"""Whether CUDA can work here: the driver, the permission to open a GPU, and the CUDA that torch was built
for. torch is not imported.
"""

import os
import re
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from tuner.hardware.gpus import visibility_problem
from tuner.hardware.nvidia_smi import GPU_QUERY, GpuProblem, parse_gpus, query_nvidia_smi

OLDEST_DRIVERS = {11: "450", 12: "525.60.13", 13: "580"}
"""The oldest driver that runs what was built for a CUDA major version: NVIDIA, "CUDA Compatibility", Minor
Version Compatibility, table 1, and the Release Notes of CUDA 12. The forward compatibility package of data
centre GPUs, with which an older one does, is not looked at."""


def cuda_problem(environ: Mapping[str, str], said: str = "", root: Path = Path("/")) -> GpuProblem | None:
    """Why a GPU that is here can't be used; None when there is no GPU, or nothing wrong with it.

    said    torch's own words, when it could not start CUDA: the reason where no other is found
    root    where dev and proc are
    """
    nodes = sorted((root / "dev").glob("nvidia[0-9]*"))
    if shut := _permission_problem(nodes, root):
        return shut
    listed = query_nvidia_smi(GPU_QUERY)
    if isinstance(listed, GpuProblem):
        return listed
    found = parse_gpus(listed, "")
    if not nodes and not found:
        return None
    if why := driver_problem(found[0].driver if found else loaded_driver(root)):
        return why
    if not found and shutil.which("nvidia-smi"):
        return GpuProblem(
            f"{nodes[0]} is there, but nvidia-smi finds no GPU",
            "look for NVRM in the kernel's log (sudo dmesg), and reboot",
        )
    if not found:
        mend = (
            "install the NVIDIA driver's tools; a container needs NVIDIA_DRIVER_CAPABILITIES=compute,utility"
        )
        return GpuProblem("an NVIDIA GPU is here, but nvidia-smi is not found", mend)
    if why := visibility_problem(found, environ):
        return why
    return (
        GpuProblem(
            f"torch can't start CUDA ({' '.join(said.split())[:300]})",
            "reboot, or install the NVIDIA driver again",
        )
        if said
        else None
    )


def _permission_problem(nodes: list[Path], root: Path) -> GpuProblem | None:
    """One GPU that opens is enough; beside it, CUDA opens two more devices."""
    needed = [nodes] if nodes else []
    needed += [
        [node] for name in ("nvidiactl", "nvidia-uvm") if nodes and (node := root / "dev" / name).exists()
    ]
    for group in needed:
        reasons = [reason for node in group if (reason := _refusal(node))]
        if len(reasons) == len(group):
            return GpuProblem(
                f"this user can't open {group[0]} ({reasons[0]})",
                f"join the group that owns it ({_group(group[0])}); a container needs --gpus all, and a "
                "batch job a GPU from the scheduler",
            )
    return None


def _refusal(node: Path) -> str:
    try:
        os.close(os.open(node, os.O_RDWR))
    # by the file's mode, or by the control group of a container or a batch job
    except PermissionError as error:
        return str(error.strerror)
    except OSError:
        return ""  # the driver's business: nvidia-smi says more
    return ""


def _group(node: Path) -> str:
    try:
        return node.group()
    except KeyError:
        return str(node.stat().st_gid)


def driver_problem(driver: str) -> GpuProblem | None:
    """Why the installed torch can't work with this version of the driver. An unknown driver or CUDA is
    taken to fit.
    """
    build = torch_build()
    if build is None:
        return None
    torch, cuda = build
    if cuda is None:
        mend = (
            f"install one built for CUDA, with pip install --force-reinstall torch=={torch.partition('+')[0]}"
        )
        return GpuProblem(f"an NVIDIA GPU is here, but torch {torch} is built without CUDA", mend)
    needed = OLDEST_DRIVERS.get(int(cuda.partition(".")[0]))
    if not driver or needed is None or _numbers(driver) >= _numbers(needed):
        return None
    runs = max(
        (major for major, oldest in OLDEST_DRIVERS.items() if _numbers(driver) >= _numbers(oldest)),
        default=None,
    )
    other = f", or a PyTorch built for CUDA {runs}" if runs else ""
    return GpuProblem(
        f"torch {torch} needs driver {needed} or newer for its CUDA {cuda}, and this is {driver}",
        f"install a newer NVIDIA driver{other}",
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]


def torch_build() -> tuple[str, str | None] | None:
    """The version of torch and of the CUDA it was built for, read off its version.py; None where there is
    no torch.
    """
    spec = find_spec("torch")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(place) / "version.py"
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            said = dict(re.findall(r"^(\w+)\b[^=\n]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE))
            return said.get("__version__", "of an unknown version"), said.get("cuda")
    return None


def loaded_driver(root: Path = Path("/")) -> str:
    """The version of the NVIDIA driver that the kernel runs; empty where it runs none."""
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    version = re.search(r"Kernel Module\D*?(?:x86_64|aarch64)?\s+(\d+(?:\.\d+)+)", text)
    return version[1] if version else ""


def why_no_gpu(root: Path = Path("/")) -> str:
    """Why there is no GPU."""
    if loaded_driver(root):
        return "the NVIDIA driver runs here, but gives this process no GPU (a container needs --gpus all)"
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = (
                (device / name).read_text(encoding="ascii").strip() for name in ("vendor", "class")
            )
        except OSError:
            continue
        if vendor == "0x10de" and kind.startswith("0x03"):  # NVIDIA; a display controller
            return "there is an NVIDIA GPU, but no driver for it (install the NVIDIA driver)"
    return "this machine has no NVIDIA GPU"
