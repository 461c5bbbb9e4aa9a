"""Which cards a run takes, and what is said about one that can't be used."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Tuner, environment
from tests.hardware.smi import HELD, TWO, A, B, C, nvidia_smi, torch_package
from tuner.errors import ConfigError
from tuner.hardware.cuda_driver import driver_problem, loaded_driver, why_no_gpu
from tuner.hardware.gpus import VISIBLE_DEVICES, choose_gpus, gpus_hidden, names_mig_instances, visible_gpus
from tuner.hardware.nvidia_smi import Gpu, list_gpus, parse_gpus
from tuner.models.load import resolve_device

needs_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use a GPU here")


def gpu(
    index: int,
    uuid: str = "",
    name: str = "NVIDIA A100-SXM4-80GB",
    used: int = 0,
    holders: tuple[tuple[int, int], ...] = (),
) -> Gpu:
    uuid = uuid or f"GPU-{index:08x}-d72c-4106-c12f-20bd9faed9f6"
    return Gpu(
        index=index,
        uuid=uuid,
        name=name,
        memory_total=80_000,
        memory_used=used,
        driver="580.95.05",
        holders=holders,
    )


CARDS = st.lists(
    st.tuples(st.integers(0, 80_000), st.sampled_from([(), (), ((4711, 100),)])), min_size=1, max_size=6
).map(lambda drawn: [gpu(index, used=used, holders=holders) for index, (used, holders) in enumerate(drawn)])
THREE = [gpu(0, A), gpu(1, B), gpu(2, C)]


def test_the_answers_of_nvidia_smi_are_read() -> None:
    first, second = parse_gpus(TWO, HELD + f"{A}, {os.getpid()}, 900\n")
    assert (first.index, first.uuid, first.name, first.free, first.driver) == (
        0,
        A,
        "NVIDIA A100-SXM4-80GB",
        80_896,
        "580.95.05",
    )
    assert (first.busy, first.state) == (False, "idle")  # what this very process holds is nobody else's
    assert (second.busy, second.state) == (True, "busy: pid 4711 holds 68000 MiB, pid 4712 holds 1500 MiB")


def test_what_nvidia_smi_does_not_tell_keeps_no_card_busy() -> None:
    (spark,) = parse_gpus(
        f"0, {A}, NVIDIA GB10, [N/A], [N/A], 580.95.05, [N/A]\n", f"{A}, [N/A], [N/A]\n[Not Supported]\n"
    )
    assert (spark.memory_total, spark.free, spark.busy, spark.mig) == (0, 0, False, False)
    (windows,) = parse_gpus(
        f"0, {A}, NVIDIA GeForce RTX 4090, 24564, 800, 581.29, [N/A]\n", f"{A}, 4711, [N/A]\n"
    )
    assert windows.state == "busy: pid 4711"


def test_memory_in_use_by_nobody_who_is_listed_makes_a_card_busy_above_a_quarter() -> None:
    assert not gpu(0, used=20_000).busy
    assert gpu(0, used=20_001).state == "busy: 20001 of 80000 MiB are used, by no process that is listed here"


@pytest.mark.parametrize(
    ("value", "places"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        ("0,2,-1,1", [0, 2]),
        ("0,,1", [0]),
        ("0,7", [0]),
        ("7,0", []),
        ("1,1", []),
        (" 2, 1", [2, 1]),
        ("1gpu,2", [1, 2]),
        ("+1", [1]),
        ("NoDevFiles", []),
        (A, [0]),
        (f"{C},{A}", [2, 0]),
        ("GPU-1", [2]),
        ("GPU-8932", []),
        ("GPU-12,GPU-8932,GPU-8932f", [2]),
        (f"GPU-12,{C}", []),
        ("GPU-99", []),
        ("GPU-12,0", [2]),
        ("0,GPU-12", [0]),
    ],
)
def test_the_visible_cards_are_those_that_torch_reads_off_the_variable(
    value: str | None, places: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {} if value is None else {VISIBLE_DEVICES: value}
    assert visible_gpus(THREE, environ) == [THREE[place] for place in places]
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    for name in environ:
        monkeypatch.setenv(name, environ[name])
    theirs = torch.cuda._parse_visible_devices()
    if theirs and isinstance(theirs[0], str):
        theirs = torch.cuda._transform_uuid_to_ordinals(theirs, [card.uuid for card in THREE])
    there = next((count for count, place in enumerate(theirs) if int(place) >= len(THREE)), len(theirs))
    assert places == theirs[:there]


@given(found=CARDS, data=st.data())
def test_numbers_and_uuids_name_the_same_cards_in_their_order(found: list[Gpu], data: st.DataObject) -> None:
    cards = data.draw(st.lists(st.sampled_from(found), unique_by=lambda card: card.index, min_size=1))
    values = [
        ",".join(str(card.index) for card in cards),
        ",".join(card.uuid for card in cards),
        ",".join(card.uuid[:12] for card in cards),
    ]
    for value in values:
        assert visible_gpus(found, {VISIBLE_DEVICES: value}) == cards
        assert visible_gpus(found, {VISIBLE_DEVICES: f"{value},-1,0"}) == cards
        assert visible_gpus(found, {VISIBLE_DEVICES: f"{value},{value}"}) == []


@given(found=CARDS, wish=st.one_of(st.just("auto"), st.integers(1, 7)), data=st.data())
def test_the_emptiest_idle_cards_are_chosen_and_never_a_busy_one(
    found: list[Gpu], wish: int | str, data: st.DataObject
) -> None:
    shown = data.draw(st.lists(st.sampled_from(found), unique_by=lambda card: card.index, min_size=1))
    environ = data.draw(st.sampled_from([{}, {VISIBLE_DEVICES: ",".join(card.uuid for card in shown)}]))
    seen = shown if environ else found
    idle = [card for card in seen if not card.busy]
    count = 1 if wish == "auto" else int(wish)
    if len(idle) < count:
        with pytest.raises(ConfigError, match=r"machine\.gpus="):
            choose_gpus(wish, found, environ)  # type: ignore[arg-type]
        return
    value = choose_gpus(wish, found, environ)  # type: ignore[arg-type]
    assert value is not None
    taken = visible_gpus(found, {VISIBLE_DEVICES: value})  # what the child will see
    assert value == ",".join(card.uuid for card in taken)
    assert len(taken) == count
    assert all(card in idle for card in taken)
    assert taken == [card for card in seen if card in taken]
    assert min(card.free for card in taken) >= max(
        (card.free for card in idle if card not in taken), default=-1
    )


@given(found=CARDS, data=st.data())
def test_named_places_are_taken_busy_or_not(found: list[Gpu], data: st.DataObject) -> None:
    places = tuple(data.draw(st.lists(st.integers(0, len(found) - 1), unique=True, min_size=1)))
    value = choose_gpus(places, found, {})
    assert value == ",".join(found[place].uuid for place in places)
    backwards = {VISIBLE_DEVICES: ",".join(card.uuid for card in reversed(found))}
    assert choose_gpus(places, found, backwards) == ",".join(found[-1 - place].uuid for place in places)


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "MIG-4cd8-11"])
def test_a_variable_that_hides_all_or_names_instances_stays_as_it_is(value: str) -> None:
    environ = {VISIBLE_DEVICES: value}
    assert gpus_hidden(environ) != names_mig_instances(environ)
    for wish in ("auto", 2, (0,)):
        assert choose_gpus(wish, THREE, environ) is None  # type: ignore[arg-type]
    assert choose_gpus(2, [], {}) is None


def test_cards_split_into_instances_are_left_to_cuda() -> None:
    split, whole = parse_gpus(
        f"0, {A}, NVIDIA A100-SXM4-80GB, [N/A], [N/A], 580.95.05, Enabled\n"
        + TWO.splitlines()[0].replace("0, ", "1, ", 1).replace(A, B),
        "",
    )
    assert choose_gpus("auto", [split], {}) is None
    assert choose_gpus("auto", [split, whole], {}) == whole.uuid
    with pytest.raises(
        ConfigError,
        match=(
            r"2 wanted, 1 of 2 visible idle\. GPU 0 \(NVIDIA A100-SXM4-80GB\) is split into MIG instances\."
        ),
    ):
        choose_gpus(2, [split, whole], {})


def test_who_holds_the_busy_cards_and_each_way_out_is_said() -> None:
    found = [gpu(0, holders=((4711, 900), (4712, 30_000))), gpu(1), gpu(2, used=70_000), gpu(3)]
    with pytest.raises(ConfigError) as refused:
        choose_gpus(2, found, {VISIBLE_DEVICES: "0,1,2"})
    assert (
        str(refused.value)
        == "machine.gpus=2 takes idle GPUs only: 2 wanted, 1 of 3 visible idle (CUDA_VISIBLE_DEVICES=0,1,2"
        " hides 1 of 4). GPU 0 (NVIDIA A100-SXM4-80GB) is busy: pid 4711 holds 900 MiB, pid 4712 holds "
        "30000 MiB; GPU 2 (NVIDIA A100-SXM4-80GB) is busy: 70000 of 80000 MiB are used, by no process "
        "that is listed here. Wait until enough are free, take just those you name, busy or not, with "
        "machine.gpus=[0,1], take fewer with machine.gpus=1, show others with CUDA_VISIBLE_DEVICES, or "
        "train on the CPU with machine=cpu."
    )
    with pytest.raises(
        ConfigError,
        match=(
            r"machine\.gpus=auto takes idle GPUs only: 1 wanted, 0 of 1 visible idle\..* with"
            r" machine\.gpus=\[0\], or train"
        ),
    ):
        choose_gpus("auto", found[:1], {})


def test_more_cards_than_there_are_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"machine\.gpus=4 wants 4 GPUs, and 3 are visible: .* machine\.gpus=3\."
    ):
        choose_gpus(4, THREE, {})
    with pytest.raises(
        ConfigError, match=r"machine\.gpus=\[0,3\] names GPU 3, and 2 are visible: .*hides 1 of 3"
    ):
        choose_gpus((0, 3), THREE, {VISIBLE_DEVICES: "0,1"})
    with pytest.raises(
        ConfigError,
        match=(
            r"CUDA_VISIBLE_DEVICES=7 names no GPU that is here, .*: correct or unset CUDA_VISIBLE_DEVICES; or"
        ),
    ):
        choose_gpus("auto", THREE, {VISIBLE_DEVICES: "7"})


def test_numbers_that_cuda_may_count_otherwise_are_refused() -> None:
    found = [gpu(0, A, name="NVIDIA GeForce GT 1030"), gpu(1, B, name="NVIDIA GeForce RTX 4090")]
    with pytest.raises(
        ConfigError, match=r"from the fastest GPU on, .* set CUDA_DEVICE_ORDER=PCI_BUS_ID, .*by UUID"
    ):
        choose_gpus("auto", found, {VISIBLE_DEVICES: "1"})
    assert choose_gpus("auto", found, {VISIBLE_DEVICES: "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}) == B
    assert choose_gpus("auto", found, {VISIBLE_DEVICES: A}) == A
    assert choose_gpus((1,), found, {}) == B


def test_nvidia_smi_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(nvidia_smi(tmp_path / "two", TWO, HELD)))
    assert list_gpus() == parse_gpus(TWO, HELD)
    monkeypatch.setenv("PATH", str(nvidia_smi(tmp_path / "none", "No devices were found\n", code=6)))
    assert list_gpus() == []
    monkeypatch.setenv("PATH", str(tmp_path))
    assert list_gpus() == []


def test_an_nvidia_smi_that_fails_or_hangs_is_an_error_with_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n"
    monkeypatch.setenv("PATH", str(nvidia_smi(tmp_path / "fails", said, code=18)))
    with pytest.raises(
        ConfigError,
        match=(
            r"nvidia-smi fails \(Failed to initialize NVML: Driver/library .*\): the driver was updated .*;"
            r" reboot; or train .*machine=cpu"
        ),
    ):
        list_gpus()
    script = nvidia_smi(tmp_path / "hangs", TWO) / "nvidia-smi"
    script.write_text(f"#!{sys.executable} -IS\nimport time\ntime.sleep(60)\n", encoding="utf-8")
    monkeypatch.setenv("PATH", str(script.parent))
    monkeypatch.setattr("tuner.hardware.nvidia_smi.TIMEOUT", 0.5)
    with pytest.raises(ConfigError, match=r"nvidia-smi did not answer within 0\.5 seconds: .*reboot"):
        list_gpus()


def troubled(
    tmp_path: Path,
    *,
    path: Path,
    cuda: str | None = "13.0",
    environ: Mapping[str, str] | None = None,
    said: str = "",
    unprivileged: bool = False,
) -> str:
    """What `cuda_problem` says in a process that finds this nvidia-smi, this torch, and the devices
    below `tmp_path`.

    unprivileged    root gives up its right to open every file
    """
    code = (
        "import grp, os, sys, json\nfrom pathlib import Path\nimport "
        f"tuner.hardware.cuda_driver\nos.getuid() or os.seteuid({65534 if unprivileged else 0})\nwhy = "
        "tuner.hardware.cuda_driver.cuda_problem(json.loads(sys.argv[1]), sys.argv[2], "
        "Path(sys.argv[3]))\nprint(why.paragraph if why else '')\n"
    )
    package = torch_package(tmp_path / f"torch-{cuda}", "2.13.0+cu130" if cuda else "2.13.0+cpu", cuda)
    words = [sys.executable, "-c", code, json.dumps(environ or {}), said, str(tmp_path)]
    done = subprocess.run(
        words,
        env=environment({"PATH": str(path), "PYTHONPATH": str(package)}),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.fixture
def devices() -> Iterator[Path]:
    """A directory that other users can look into, with dev/nvidia0 and what lies beside it."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    (root / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).touch()
        (root / "dev" / name).chmod(0o666)
    (root / "proc/driver/nvidia").mkdir(parents=True)
    (root / "bin").mkdir()
    yield root
    shutil.rmtree(root)


def test_a_card_that_nobody_may_open_names_the_group_and_the_container_flag(devices: Path) -> None:
    for name in ("nvidia0", "nvidia1"):
        (devices / "dev" / name).chmod(0)
    group = (devices / "dev/nvidia0").group()
    assert troubled(devices, path=devices / "bin", unprivileged=True).startswith(
        f"this user can't open {devices}/dev/nvidia0 (Permission denied): join the group that owns it "
        f"({group}); a container needs --gpus all"
    )
    (devices / "dev/nvidia1").chmod(0o666)  # one card is enough
    assert "can't open" not in troubled(devices, path=devices / "bin", unprivileged=True)
    (devices / "dev/nvidia-uvm").chmod(0)
    assert "nvidia-uvm (Permission denied)" in troubled(devices, path=devices / "bin", unprivileged=True)


def test_a_card_without_nvidia_smi_or_that_it_does_not_find(devices: Path) -> None:
    assert "nvidia-smi is not found: install the NVIDIA driver's tools" in troubled(
        devices, path=devices / "bin"
    )
    version = devices / "proc/driver/nvidia/version"
    version.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n",
        encoding="utf-8",
    )
    assert "needs driver 580 or newer for its CUDA 13.0, and this is 535.183.01" in troubled(
        devices, path=devices / "bin"
    )
    version.unlink()
    empty = nvidia_smi(devices / "empty", "No devices were found\n", code=6)
    assert "nvidia0 is there, but nvidia-smi finds no GPU: look for NVRM in the kernel's log" in troubled(
        devices, path=empty
    )


@pytest.mark.parametrize(
    ("cards", "code", "cuda", "environ", "said", "expected"),
    [
        (TWO, 0, "13.0", {}, "", ""),
        (TWO, 0, "12.8", {}, "", ""),
        (TWO, 0, "15.0", {}, "", ""),
        ("No devices were found\n", 6, None, {}, "CUDA driver initialization failed", ""),
        (
            TWO,
            0,
            None,
            {},
            "",
            (
                "torch 2.13.0+cpu is built without CUDA: install one built for CUDA, with pip install "
                "--force-reinstall torch==2.13.0;"
            ),
        ),
        (
            TWO.replace("580.95.05", "535.183.01"),
            0,
            "13.0",
            {},
            "",
            "install a newer NVIDIA driver, or a PyTorch built for CUDA 12;",
        ),
        (
            TWO.replace("580.95.05", "525.60.11"),
            0,
            "12.8",
            {},
            "",
            "needs driver 525.60.13 or newer for its CUDA 12.8, and this is 525.60.11",
        ),
        (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n",
            9,
            "13.0",
            {},
            "",
            "sudo modprobe nvidia",
        ),
        (TWO, 0, "13.0", {VISIBLE_DEVICES: "5"}, "", "CUDA_VISIBLE_DEVICES=5 names no GPU that is here"),
        (TWO, 0, "13.0", {VISIBLE_DEVICES: ""}, "", ""),
        (TWO, 0, "13.0", {}, "CUDA unknown\nerror", "torch can't start CUDA (CUDA unknown error): reboot"),
    ],
)
def test_why_a_card_that_is_here_can_not_be_used(
    tmp_path: Path,
    cards: str,
    code: int,
    cuda: str | None,
    environ: dict[str, str],
    said: str,
    expected: str,
) -> None:
    answer = troubled(
        tmp_path, path=nvidia_smi(tmp_path / "bin", cards, HELD, code), cuda=cuda, environ=environ, said=said
    )
    assert expected in answer
    assert bool(answer) == bool(expected)


def test_the_installed_torch_is_read_without_importing_it() -> None:
    why = driver_problem("100.1")
    if torch.version.cuda:
        assert why is not None
        assert f"torch {torch.__version__} needs driver" in why.what
        assert f"CUDA {torch.version.cuda}" in why.what
    else:
        assert why is not None
        assert f"torch {torch.__version__} is built without CUDA" in why.what


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Sun May 12",
        "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release Build",
    ],
)
def test_the_driver_that_the_kernel_runs_and_why_there_is_no_card(tmp_path: Path, line: str) -> None:
    assert loaded_driver(tmp_path) == ""
    assert why_no_gpu(tmp_path) == "this machine has no NVIDIA GPU"
    for name, vendor, kind in (
        ("0000:00:02.0", "0x8086", "0x030000"),
        ("0000:01:00.1", "0x10de", "0x040300"),
        ("0000:01:00.0", "0x10de", "0x030000"),
    ):
        assert why_no_gpu(tmp_path) == "this machine has no NVIDIA GPU"
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n", encoding="ascii")
        (device / "class").write_text(f"{kind}\n", encoding="ascii")
    assert "no driver for it" in why_no_gpu(tmp_path)
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(f"{line}\nGCC version:  gcc 12\n", encoding="utf-8")
    assert loaded_driver(tmp_path) == "580.95.05"
    assert "a container needs --gpus all" in why_no_gpu(tmp_path)


@without_gpu
def test_a_device_is_the_processor_only_where_there_is_no_card_or_none_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert resolve_device("auto").type == resolve_device("cpu").type == "cpu"
    with pytest.raises(ConfigError, match=r"machine\.device=cuda needs an NVIDIA GPU, and .*machine=cpu"):
        resolve_device("cuda")
    monkeypatch.setenv("PATH", str(nvidia_smi(tmp_path / "bin", TWO)))
    assert resolve_device("cpu").type == "cpu"
    for wish in ("auto", "cuda"):
        with pytest.raises(
            ConfigError,
            match=(
                rf"machine\.device={wish} finds a GPU that can't be used\. .*; or train on the CPU"
                r" with machine=cpu\."
            ),
        ):
            resolve_device(wish)
    monkeypatch.setenv(VISIBLE_DEVICES, "")
    assert resolve_device("auto").type == "cpu"
    with pytest.raises(
        ConfigError, match=r"machine\.device=cuda needs .* CUDA_VISIBLE_DEVICES='' hides every GPU"
    ):
        resolve_device("cuda")


@without_gpu
def test_a_run_on_a_card_that_torch_can_not_use_ends_in_one_paragraph(
    tuner: Tuner, words: list[str], finished: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(finished, tmp_path / "root", symlinks=True)
    path = f"{nvidia_smi(tmp_path / 'bin', TWO)}{os.pathsep}{os.environ['PATH']}"
    done = tuner(
        f"root={root}", *words, "machine=auto", "algo.steps=7", "until=train", env={"PATH": path}, code=2
    )
    assert ("built without CUDA" if torch.version.cuda is None else "torch can't start CUDA") in done.err
    assert "machine=cpu" in done.err
    assert "Traceback" not in done.err


PROBE = """
import ctypes, json
cuda, cards, count = ctypes.CDLL("libcuda.so.1"), [], ctypes.c_int()
if cuda.cuInit(0) == 0:
    cuda.cuDeviceGetCount(ctypes.byref(count))
for place in range(count.value):
    device, uuid = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    assert cuda.cuDeviceGet(ctypes.byref(device), place) == 0
    assert cuda.cuDeviceGetUuid(uuid, device) == 0
    cards.append(bytes(uuid).hex())
print(json.dumps(cards))
"""
"""Prints the UUIDs that CUDA itself sees, in its order."""


def in_cuda(value: str | None) -> list[str]:
    environ = {name: word for name, word in os.environ.items() if name != VISIBLE_DEVICES} | (
        {} if value is None else {VISIBLE_DEVICES: value}
    )
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environ, capture_output=True, text=True, check=True
    )
    seen: list[str] = json.loads(done.stdout)
    return seen


def digits(cards: list[Gpu]) -> list[str]:
    return [card.uuid.removeprefix("GPU-").replace("-", "") for card in cards]


class TestOnCards:
    pytestmark = needs_gpu

    def test_the_cards_are_those_of_torch(self) -> None:
        code = (
            "import json, torch\nprint(json.dumps([(p.name, str(p.uuid), p.total_memory) for p in "
            "map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))]))"
        )
        environ = {name: word for name, word in os.environ.items() if name != VISIBLE_DEVICES} | {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID"
        }
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
        )
        found = list_gpus()
        assert [(card.name, card.uuid.removeprefix("GPU-")) for card in found] == [
            (name, uuid.removeprefix("GPU-")) for name, uuid, _ in json.loads(done.stdout)
        ]
        for card, (_, _, total) in zip(found, json.loads(done.stdout), strict=True):
            assert card.memory_total == pytest.approx(total / 2**20, rel=0.05)
            assert 0 <= card.memory_used < card.memory_total

    def test_cuda_sees_the_cards_that_are_called_visible(self) -> None:
        found = list_gpus()
        first, last = found[0].uuid, found[-1].uuid
        values = [
            None,
            "",
            "-1",
            "0",
            "0,-1",
            "0,,0",
            "99",
            "0,99",
            "0,0",
            "NoDevFiles",
            first,
            first[:12],
            f"{first},{first}",
            "GPU-zz",
            f"{first},-1",
        ]
        if len(found) > 1:
            values += ["1,0", f"{last},{first}", f"{last[:16]},0", f"0,{last}"]
        ours = {
            value: digits(visible_gpus(found, {} if value is None else {VISIBLE_DEVICES: value}))
            for value in values
        }
        assert {value: in_cuda(value) for value in values} == ours

    def test_a_child_gets_an_idle_card_while_another_process_holds_one(self) -> None:
        torch.cuda.empty_cache()
        environ = {name: word for name, word in os.environ.items() if name != VISIBLE_DEVICES}
        held = settled(lambda found: not any(card.busy for card in found))[0]
        with holding(held):
            found = settled(lambda found: found[0].busy)
            assert found[0].state.startswith("busy: ")
            with pytest.raises(ConfigError, match=r"busy.*machine\.gpus=\["):
                choose_gpus(len(found), found, environ)
            told = choose_gpus((0,), found, environ)
            assert in_cuda(told) == digits([held])
            if len(found) > 1:
                chosen = choose_gpus("auto", found, environ)
                assert chosen in {card.uuid for card in found[1:]}
                assert in_cuda(chosen) == digits([card for card in found if card.uuid == chosen])
                rest = choose_gpus(len(found) - 1, found, environ)
                assert in_cuda(rest) == digits(found[1:])
        again = settled(lambda found: not found[0].busy)
        assert in_cuda(choose_gpus(len(again), again, environ)) == digits(again)


@contextmanager
def holding(card: Gpu) -> Iterator[None]:
    """Another process that holds three tenths of the card's memory."""
    code = (
        "import sys, torch\nheld = torch.zeros(int(torch.cuda.get_device_properties(0).total_memory * 0.3), "
        "dtype=torch.uint8, device='cuda')\ntorch.cuda.synchronize()\nprint('ready', "
        "flush=True)\nsys.stdin.read()\n"
    )
    environ = os.environ | {VISIBLE_DEVICES: card.uuid}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield
        process.communicate()


def settled(wanted: Callable[[list[Gpu]], bool]) -> list[Gpu]:
    """The cards, once they are as wanted: memory comes back a moment after its process ended."""
    for _ in range(20):
        found = list_gpus()
        if wanted(found):
            return found
        time.sleep(0.5)
    pytest.fail(f"the cards stayed {[card.state for card in found]}")
