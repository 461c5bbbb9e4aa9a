"""An nvidia-smi and a torch to find, on machines without a card: a script that answers as the real one, a
package that can't be imported.
"""

import sys
from pathlib import Path

A, B, C = (f"GPU-{head}-d72c-4106-c12f-20bd9faed9f6" for head in ("8932f937", "8932aaaa", "12345678"))

TWO = f"""\
0, {A}, NVIDIA A100-SXM4-80GB, 81920, 1024, 580.95.05, Disabled
1, {B}, NVIDIA A100-SXM4-80GB, 81920, 70000, 580.95.05, Disabled
"""
HELD = f"{B}, 4711, 68000\n{B}, 4712, 1500\n"


def nvidia_smi(directory: Path, cards: str, processes: str = "", code: int = 0) -> Path:
    """Write a script that answers the two questions, or prints `cards` and fails; returns the directory,
    for PATH.
    """
    directory.mkdir(parents=True)
    script = directory / "nvidia-smi"
    script.write_text(
        f"#!{sys.executable} -IS\nimport sys\nsys.stdout.write({processes!r} if "
        f"sys.argv[1].startswith('--query-compute-apps=') else {cards!r})\nsys.exit({code})\n",
        encoding="utf-8",
    )
    script.chmod(0o755)
    return directory


def torch_package(directory: Path, version: str, cuda: str | None) -> Path:
    """Write the part of torch that says what it was built for; returns the directory, for PYTHONPATH.
    Importing it fails.
    """
    package = directory / "torch"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("raise ImportError('torch was imported')\n", encoding="utf-8")
    lines = [
        "from typing import Optional",
        f"__version__ = {version!r}",
        "debug = False",
        f"cuda: Optional[str] = {cuda!r}",
        "hip: Optional[str] = None",
    ]
    text = "\n".join(lines) + "\n"
    (package / "version.py").write_text(text, encoding="utf-8")
    return directory
