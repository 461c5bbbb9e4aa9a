"""Fused ops run on a GPU, or where there is none and Triton is installed, in Triton's interpreter, which
rounds to bf16 by cutting off.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py", "ahead_of_time.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.gpu if ON_GPU else pytest.mark.slow)
