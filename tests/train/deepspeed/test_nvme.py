"""Offload to a disk, through DeepSpeed's async_io: the numbers are those of the torch engine, and the disk
is left as it was found.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import REPO, Tuner, environment
from tests.launch.test_faults import ENV, adapter, goes_on, start
from tests.train.lives import (
    HALF,
    OPTIM,
    STEPS,
    apart,
    hold_to,
    hold_to_idle,
    make_model,
    make_settings,
    torch_engine,
    train,
    true_life,
    whole,
)
from tests.train.ranks import in_processes
from tuner.errors import ConfigError, StageError
from tuner.train.deepspeed import nvme
from tuner.train.deepspeed.engine import ZeroEngine
from tuner.train.distributed import World, single_process
from tuner.train.loss import summed_loss
from tuner.train.recompute import set_recompute

HIDDEN = 768
"""of a model most of whose tensors have 1 MiB in each of two processes: smaller ones stay in memory"""
CPU = torch.device("cpu")
LIVE = "tests.train.lives:live"


@pytest.fixture(scope="module")
def aio() -> None:
    if not Path("/usr/include/libaio.h").is_file():  # and not after a minute of trying to compile without
        pytest.skip("needs libaio's headers (apt install libaio-dev)")
    try:
        nvme.require_disk()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def truth(aio: None) -> dict[str, dict[str, Any]]:
    return {adapter: true_life(adapter, HIDDEN) for adapter in ("lora", "none")}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """40 MB: the weights of the model fit, and no more."""
    path = tmp_path / "small"
    path.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", path], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        os.close(os.open(path / "direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
        (path / "direct").unlink()
        yield path
    except OSError:
        pytest.skip("this kernel's tmpfs has no O_DIRECT")
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.mark.usefixtures("aio")
@pytest.mark.parametrize(
    ("offload", "adapter", "size"),
    [
        pytest.param(o, a, n, marks=() if (o, a, n) == ("all", "none", 2) else pytest.mark.slow)
        for o in ("optimizer", "all")
        for a in ("none", "lora")
        for n in (1, 2)
    ],
)
def test_from_a_disk_the_numbers_are_the_same(
    offload: str, adapter: str, size: int, truth: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    given = {
        "cases": {"life": (adapter, 3, offload)},
        "out": tmp_path,
        "half": {adapter: truth[adapter]["half"]},
        "hidden": HIDDEN,
        "disk": disk,
    }
    lives = [rank["life"] for rank in in_processes(LIVE, given, tmp_path / "ranks", size=size)]
    hold_to(truth[adapter], lives, f"{adapter} {offload}")
    other = torch_engine(adapter, hidden=HIDDEN)
    other.load(lives[0]["half"])
    train(other, single_process(CPU), HALF, STEPS)
    begin, end = truth[adapter]["begin"].weights, truth[adapter]["end"].weights
    assert apart(whole(single_process(CPU), other.state()).weights, end, begin) < 1e-4, (
        "the torch engine goes on from its step"
    )
    assert list(disk.iterdir()) == [], "nothing is left on the disk"


@pytest.mark.usefixtures("aio")
def test_a_tensor_without_a_gradient_does_not_step_on_what_was_in_the_buffer(tmp_path: Path) -> None:
    given = {"cases": [(3, "all")], "hidden": HIDDEN, "disk": tmp_path / "disk"}
    ((found,),) = (
        rank.values() for rank in in_processes("tests.train.lives:idles", given, tmp_path / "ranks", size=1)
    )
    hold_to_idle(*found, "disk", HIDDEN)


def make_mixed() -> torch.nn.Module:
    """Weights in bf16, and adapters in fp32 that are large enough for the disk."""
    model: Any = make_model("none", HIDDEN).to(torch.bfloat16)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT reads a renamed property
        model = get_peft_model(
            model,
            LoraConfig(r=512, lora_alpha=64, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"),
        )
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape) * 0.02
    made: torch.nn.Module = model.train()
    return made


def mixed(world: World, given: dict[str, Any]) -> list[Any]:
    """Some steps with the weights in memory, and with them on a disk."""
    found: list[Any] = []
    for disk in (None, given["disk"]):
        model = make_mixed()
        engine = ZeroEngine(
            model,
            world=world,
            settings=make_settings(3, world, "all", disk=disk),
            optim=OPTIM,
            loss=summed_loss,
        )
        norms = train(engine, world, 0, 3)
        found.append(
            [norms, whole(world, engine.state()), {name: p.dtype for name, p in model.named_parameters()}]
        )
    found.append(sorted(path.name for path in Path(given["disk"]).rglob("*_param.tensor.swp")))
    return found


@pytest.mark.usefixtures("aio")
def test_weights_keep_their_dtype_on_a_disk(tmp_path: Path) -> None:
    ((memory, disk, files),) = in_processes(
        f"{__name__}:mixed", {"disk": tmp_path / "disk"}, tmp_path / "ranks", size=1
    )
    assert disk[2] == memory[2]
    assert disk[0] == memory[0]
    assert all(torch.equal(disk[1].weights[name], value) for name, value in memory[1].weights.items())
    assert files, "something was on the disk"


@pytest.mark.usefixtures("aio")
def test_two_trainings_share_a_disk(truth: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    disk = tmp_path / "disk"

    def run(number: int) -> Any:
        given = {"adapter": "none", "disk": disk}
        return in_processes(f"{__name__}:four_steps", given, tmp_path / f"ranks{number}", size=1)[0]

    with ThreadPoolExecutor(2) as pool:
        for norms in pool.map(run, range(2)):
            assert norms == pytest.approx(truth["none"]["norms"][:4], rel=1e-4)
    assert list(disk.iterdir()) == []


@pytest.mark.usefixtures("aio")
def test_recomputation_reads_the_same_weights(truth: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    given = {"adapter": "none", "disk": tmp_path / "disk", "recompute": True}
    (norms,) = in_processes(f"{__name__}:four_steps", given, tmp_path / "ranks", size=1)
    assert norms == pytest.approx(truth["none"]["norms"][:4], rel=1e-4)


def four_steps(world: World, given: dict[str, Any]) -> list[float] | str:
    settings = make_settings(3, world, "all", disk=given["disk"])
    model = make_model(given["adapter"], HIDDEN)
    if given.get("recompute"):
        with warnings.catch_warnings():
            # a newer transformers has another name for it
            warnings.filterwarnings("ignore", category=FutureWarning)
            set_recompute(model, 99)
    try:
        engine = ZeroEngine(model, world=world, settings=settings, optim=OPTIM, loss=summed_loss)
        return train(engine, world, 0, 4)
    except StageError as error:
        return str(error)


@pytest.mark.usefixtures("aio")
def test_a_full_disk_is_told(small_disk: Path, tmp_path: Path) -> None:
    (said,) = in_processes(
        f"{__name__}:four_steps", {"adapter": "none", "disk": small_disk}, tmp_path / "ranks", size=1
    )
    assert "machine.offload_path" in said
    assert "No space left" in said
    assert list(small_disk.iterdir()) == [], "and the space is given back"


def test_a_path_that_can_not_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"machine\.offload_path=.*file/disk can't be used.*local disk"):
        nvme.own_directory(tmp_path / "file" / "disk")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from tuner.train.deepspeed import nvme as swap; "
        f"swap.own_directory(Path({str(tmp_path)!r})); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), cwd=REPO, check=True)
    (left,) = tmp_path.iterdir()
    mine, lock = nvme.own_directory(tmp_path)
    other, another = nvme.own_directory(tmp_path)
    assert not left.exists()
    assert mine.exists()
    assert other != mine
    os.close(lock)
    os.close(another)


@pytest.mark.usefixtures("aio")
def test_a_relative_path_is_where_the_training_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 2)
    zero = nvme.prepare(make_settings(3, single_process(CPU), "all", disk=Path("disk")), model)[
        "zero_optimization"
    ]
    assert Path(zero["offload_optimizer"]["nvme_path"]).parent == tmp_path / "disk"
    assert zero["offload_param"]["nvme_path"] == zero["offload_optimizer"]["nvme_path"]
    del model
    assert list((tmp_path / "disk").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("aio")
def test_a_killed_training_goes_on_to_the_same_bits_and_leaves_nothing(
    tuner: Tuner, words: list[str], tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    words = [
        *words,
        "algo.r=160",
        "algo.steps=40",
        "algo.batch_tokens=128",
        "machine.zero=3",
        "machine.offload=all",
        f"machine.offload_path={disk}",
    ]
    words += ["machine.deterministic=true", "until=convert"]
    tuner(f"root={tmp_path}/straight", *words, env=ENV)
    assert list(disk.iterdir()) == []
    process = start(tmp_path / "out", words, 5)
    assert list(disk.rglob("exp_avg*.swp")), "moments are there"
    process.kill()
    process.wait()
    goes_on(tuner, tmp_path / "out", words)
    assert list(disk.iterdir()) == []
    assert adapter(tmp_path / "out") == adapter(tmp_path / "straight")


@pytest.mark.slow
def test_a_disk_without_its_library_is_told_with_what_mends_it() -> None:
    from deepspeed.ops.op_builder import AsyncIOBuilder

    if AsyncIOBuilder().is_compatible(verbose=False):
        pytest.skip("libaio is installed here")
    with pytest.raises(
        ConfigError, match=r"machine\.offload_path needs.*libaio-dev.*machine\.offload_path=null"
    ):
        nvme.require_disk()
