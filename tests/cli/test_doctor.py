"""What `doctor` says about the cards of a machine."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Done, Tuner
from tests.hardware.smi import HELD, TWO, nvidia_smi, torch_package
from tuner.hardware.gpus import VISIBLE_DEVICES

Examined = Callable[..., Done]


@pytest.fixture
def examined(tuner: Tuner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examined:
    """Run it where this nvidia-smi and a torch for this CUDA are found; importing torch would fail."""
    monkeypatch.delenv(VISIBLE_DEVICES, raising=False)

    def call(
        cards: str = TWO,
        processes: str = "",
        code: int = 0,
        cuda: str | None = "13.0",
        shown: str | None = None,
    ) -> Done:
        package = torch_package(tmp_path / "packages", "2.13.0", cuda)
        env = {"PATH": str(nvidia_smi(tmp_path / "bin", cards, processes, code)), "PYTHONPATH": str(package)}
        return tuner("doctor", env=env | ({} if shown is None else {VISIBLE_DEVICES: shown}), code=None)

    return call


def wrong(done: Done) -> list[str]:
    """What is wrong with the cards; a full disk is no matter here."""
    return [
        line
        for line in done.out.splitlines()
        if line.startswith("!!") and any(word in line for word in ("GPU", "NVIDIA", "nvidia", "CUDA"))
    ]


def test_each_card_is_shown_with_its_free_memory_and_who_holds_it(examined: Examined) -> None:
    done = examined(processes=HELD)
    assert "ok  GPU 0, NVIDIA A100-SXM4-80GB: 80896 of 81920 MiB free, idle\n" in done.out
    assert (
        "ok  GPU 1, NVIDIA A100-SXM4-80GB: 11920 of 81920 MiB free, busy: pid 4711 holds 68000 MiB, pid 4712 "
        "holds 1500 MiB\n" in done.out
    )
    assert "ok  the NVIDIA driver 580.95.05 runs the CUDA 13.0 of torch 2.13.0\n" in done.out
    assert not wrong(done)


@pytest.mark.parametrize(("name", "advised"), [("A100-SXM4-80GB", False), ("H100 80GB HBM3", True)])
def test_flash_attention_4_is_advised_where_it_helps(examined: Examined, name: str, advised: bool) -> None:
    said = "--  flash-attn-4 is not installed, with which attention is faster on this GPU\n"
    assert (said in examined(TWO.replace("A100-SXM4-80GB", name)).out) == advised


def test_a_card_that_the_variable_hides_is_marked(examined: Examined) -> None:
    done = examined(shown="1")
    assert (
        "GPU 0, NVIDIA A100-SXM4-80GB: 80896 of 81920 MiB free, hidden by CUDA_VISIBLE_DEVICES\n" in done.out
    )
    assert "GPU 1, NVIDIA A100-SXM4-80GB: 11920 of 81920 MiB free, busy" in done.out


def test_no_card_is_wanted_where_the_variable_is_empty(examined: Examined) -> None:
    done = examined(shown="", code=9)
    assert (
        "--  CUDA_VISIBLE_DEVICES='' hides every GPU: training runs on the CPU\n      unset "
        "CUDA_VISIBLE_DEVICES\n" in done.out
    )
    assert not wrong(done)


@pytest.mark.parametrize(
    ("cards", "code", "cuda", "what", "mend"),
    [
        (
            TWO.replace("580.95.05", "535.183.01"),
            0,
            "13.0",
            "torch 2.13.0 needs driver 580 or newer for its CUDA 13.0",
            "install a newer",
        ),
        (
            TWO,
            0,
            None,
            "an NVIDIA GPU is here, but torch 2.13.0 is built without CUDA",
            "install one built for CUDA, with pip",
        ),
        (
            "Failed to initialize NVML: Driver/library version mismatch\n",
            18,
            "13.0",
            "nvidia-smi fails (Failed to init",
            "the driver was",
        ),
    ],
    ids=["driver", "wheel", "mismatch"],
)
def test_a_card_that_can_not_be_used_is_wrong_and_what_mends_it_is_said(
    examined: Examined, cards: str, code: int, cuda: str | None, what: str, mend: str
) -> None:
    done = examined(cards=cards, code=code, cuda=cuda)
    (said,) = wrong(done)
    mended = done.out.splitlines()[done.out.splitlines().index(said) + 1]
    assert said.startswith(f"!!  {what}")
    assert mended.strip().startswith(mend)
    assert "runs the CUDA" not in done.out
    assert done.code == 1
