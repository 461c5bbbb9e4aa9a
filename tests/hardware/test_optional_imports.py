"""Each in a process of its own: what a process has imported can't be taken back."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPO, environment

WORK = """
import sys
from pathlib import Path
from tuner.hardware.optional_imports import block_optional_imports
block_optional_imports(bitsandbytes=False, deepspeed=False)
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.integrations import is_deepspeed_zero3_enabled
model, out = sys.argv[1], Path(sys.argv[2])
lora = LoraConfig(r=2, target_modules=["q_proj"])
adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), lora)
adapted.save_pretrained(out / "adapter")
base = AutoModelForCausalLM.from_pretrained(model)
merged = PeftModel.from_pretrained(base, out / "adapter").merge_and_unload()
merged.save_pretrained(out / "merged")
Accelerator(cpu=True).prepare(merged)
assert not is_deepspeed_zero3_enabled()
spared = ("bitsandbytes", "deepspeed", "kernels")
print(sorted(name for name, module in sys.modules.items() if module and name.split(".")[0] in spared))
"""


def run(program: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=REPO,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_loading_saving_and_merging_import_neither(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    assert run(WORK, str(tiny_model), str(tmp_path)) == "[]"
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["bitsandbytes", "deepspeed"])
def test_what_is_needed_can_be_imported(name: str) -> None:
    pytest.importorskip(name)
    wishes = {other: other == name for other in ("bitsandbytes", "deepspeed")}
    found = (
        "import sys; print([name for name in ('bitsandbytes', 'deepspeed') if "
        "importlib.util.find_spec(name)])"
    )
    assert run(
        "import importlib.util; from tuner.hardware.optional_imports import block_optional_imports; "
        f"block_optional_imports(**{wishes}); {found}"
    ) == str([name])
