"""Pickled weights become safetensors with the same values, and a pickle that wants more than that is
refused with nothing of it run.
"""

import io
import os
import pickle
import random
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.tiny import tiny_model
from tuner.errors import DataError
from tuner.models.checkpoint import pickles
from tuner.models.checkpoint.files import weight_files
from tuner.models.checkpoint.pickles import convert_pickles
from tuner.models.checkpoint.safetensors import Checkpoint

Save = Callable[[Any, Path], None]


def save_zip(value: Any, path: Path) -> None:
    torch.save(value, path)


def save_old(value: Any, path: Path) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


both = pytest.mark.parametrize("save", [save_zip, save_old])


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "layers.10.weight": torch.randn(4, 6).to(torch.bfloat16),
        "layers.2.weight": torch.randn(3, 5),
        "half": torch.randn(7).half(),
        "buffer": torch.arange(4),
        "mask": torch.tensor([True, False]),
        "number": torch.tensor(2.5),
        "nothing": torch.empty(0, 3),
    }


def silent(_: str) -> None:
    return None


def written(out: Path) -> dict[str, Tensor]:
    checkpoint = Checkpoint(weight_files(out))
    return {name: checkpoint[name] for name in checkpoint.specs}


def check(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (path := tmp_path / "out").mkdir()
    (path / "config.json").write_text("{}")
    return path


@both
def test_the_same_tensors_are_written(tmp_path: Path, out: Path, save: Save) -> None:
    save(OrderedDict(state()), tmp_path / "pytorch_model.bin")
    assert convert_pickles([tmp_path / "pytorch_model.bin"], out, say=silent) == ["model.safetensors"]
    check(written(out), state())


@both
def test_a_models_own_state_is_written_parameters_and_all(tmp_path: Path, out: Path, save: Save) -> None:
    wanted = tiny_model(tied=True).state_dict(keep_vars=True)
    assert any(isinstance(value, nn.Parameter) for value in wanted.values())
    save(wanted, tmp_path / "pytorch_model.bin")
    convert_pickles([tmp_path / "pytorch_model.bin"], out, say=silent)
    check(written(out), {name: value.detach() for name, value in wanted.items()})


@both
def test_each_shard_becomes_a_shard_with_an_index(tmp_path: Path, out: Path, save: Save) -> None:
    names = list(state())
    files = [tmp_path / f"pytorch_model-{number:05}-of-00002.bin" for number in (1, 2)]
    save({name: state()[name] for name in names[:3]}, files[0])
    save({name: state()[name] for name in names[3:]}, files[1])
    assert convert_pickles(files, out, say=silent) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    check(written(out), state())


def test_one_shard_at_a_time_is_held(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    files = [tmp_path / f"{number}.bin" for number in range(3)]
    for path in files:
        save_old({path.name: torch.zeros(1000)}, path)
    held: list[weakref.ref[Tensor]] = []
    plain = pickles.read_pickle

    def watched(path: Path, *, say: Callable[[str], None]) -> dict[str, Tensor]:
        assert not [one for one in held if one() is not None]
        tensors = plain(path, say=say)
        held.extend(weakref.ref(value) for value in tensors.values())
        return tensors

    monkeypatch.setattr(pickles, "read_pickle", watched)
    convert_pickles(files, out, say=silent)
    assert len(held) == 3


def test_a_zip_is_mapped_and_not_read_into_memory(tmp_path: Path) -> None:
    save_zip(state(), tmp_path / "w.bin")
    found = pickles.read_pickle(tmp_path / "w.bin", say=silent)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(tmp_path / "w.bin") in maps.read_text()
    check(found, state())


@both
def test_shared_values_are_written_under_each_name(tmp_path: Path, out: Path, save: Save) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    wanted = {
        "embedding": whole,
        "head": whole,
        "row": whole[1],
        "turned": whole.T,
        "corner": whole[1:3, 2:4],
    }
    save(wanted, tmp_path / "w.bin")
    convert_pickles([tmp_path / "w.bin"], out, say=silent)
    check(written(out), wanted)


@both
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_wrapped_weights_are_taken_and_what_lies_beside_them_is_named(
    tmp_path: Path, out: Path, save: Save, key: str
) -> None:
    said: list[str] = []
    save({key: state(), "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pth")
    convert_pickles([tmp_path / "w.pth"], out, say=said.append)
    check(written(out), state())
    assert said == [f"w.pth: of a trainer's checkpoint only {key} is taken; left out: epoch, optimizer"]


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (
            {"state_dict": {"a": torch.ones(1)}, "model": {"a": torch.ones(1)}},
            "holds state_dict and model, either of which may be the weights",
        ),
        (
            {"a": torch.ones(1), "model": {"b": torch.ones(1)}},
            r"1 entries besides its tensors, first 'model' \(dict\)",
        ),
        ({"a": torch.ones(1), "step": 7}, r"first 'step' \(int\), and they would be lost"),
        ({"model": {"a": torch.ones(1), "step": 7}}, r"first 'step' \(int\)"),
        ({"a": torch.ones(1), 3: torch.ones(1)}, r"first '3' \(Tensor\)"),
        ({"a": torch.ones(1), "__metadata__": torch.ones(1)}, "first '__metadata__'"),
        ({"optimizer": {"a": torch.ones(1)}}, "first 'optimizer'"),
        ({}, "holds an empty dict"),
        ([torch.ones(1)], "holds a list, where a dict of tensors"),
        (torch.ones(1), "holds a Tensor"),
        (
            {"a": torch.ones(1, dtype=torch.complex64)},
            r"complex64, strided, on cpu\) that safetensors can't hold",
        ),
        ({"a": torch.eye(3).to_sparse()}, "sparse_coo"),
        ({"a": torch.empty(2, device="meta")}, "on meta"),
        ({"a": torch.ones(1).expand(10**9, 10**3)}, "its tensors would be 4,000,000,000,000"),
    ],
)
def test_what_is_no_dict_of_plain_tensors_is_refused(
    tmp_path: Path, out: Path, value: Any, match: str
) -> None:
    save_zip(value, tmp_path / "w.bin")
    with pytest.raises(DataError, match=match) as refused:
        convert_pickles([tmp_path / "w.bin"], out, say=silent)
    assert "\n" not in str(refused.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path, out: Path) -> None:
    for name in ("1.bin", "2.bin"):
        save_zip({"a": torch.ones(2)}, tmp_path / name)
    with pytest.raises(DataError, match=r"The tensor a is in 2\.bin and in an earlier shard too"):
        convert_pickles([tmp_path / "1.bin", tmp_path / "2.bin"], out, say=silent)


class Attack:
    """Unpickled, it runs a shell command that creates a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.trace}",)


def raw(protocol: int) -> Save:
    """No file of torch.save's at all, but a bare pickle."""
    return lambda value, path: (path.write_bytes(pickle.dumps(value, protocol=protocol)), None)[1]


def zipped(protocol: int) -> Save:
    """An archive as torch's, with a pickle of another protocol inside."""

    def save(value: Any, path: Path) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(value, protocol=protocol))
            archive.writestr("archive/version", "3\n")
            archive.writestr("archive/byteorder", "little")

    return save


@pytest.mark.parametrize("save", [save_zip, save_old, raw(0), raw(2), raw(4), raw(5), zipped(2), zipped(4)])
@pytest.mark.parametrize(
    "place",
    [
        lambda attack: attack,
        lambda attack: {"a": torch.ones(1).tolist(), "b": attack},
        lambda attack: {"model": {attack: 1}},
    ],
)
def test_a_pickle_that_would_run_code_is_refused_by_the_name_of_what_it_wants(
    tmp_path: Path, out: Path, save: Save, place: Callable[[Attack], Any]
) -> None:
    trace, path = tmp_path / "trace", tmp_path / "pytorch_model.bin"
    save(place(Attack(trace)), path)
    with pytest.raises(
        DataError,
        match=(
            r"pytorch_model\.bin is a pickle that wants (posix|os)\.system to be called.*Nothing of it"
            r" was run"
        ),
    ) as refused:
        convert_pickles([path], out, say=silent)
    assert "\n" not in str(refused.value)
    assert "safetensors" in str(refused.value)
    assert not trace.exists()
    assert [one.name for one in out.iterdir()] == ["config.json"]


def test_the_attack_is_a_real_one(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Attack(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


class Namespace:
    """A class that a trainer may have saved among the weights."""


@both
def test_a_class_that_is_not_a_tensor_is_refused_by_its_name(tmp_path: Path, out: Path, save: Save) -> None:
    save({"state_dict": state(), "arguments": Namespace()}, tmp_path / "w.bin")
    with pytest.raises(
        DataError, match=r"wants tests\.models\.checkpoint\.test_pickles\.Namespace to be called"
    ):
        convert_pickles([tmp_path / "w.bin"], out, say=silent)


def test_a_function_of_torch_that_makes_no_tensor_is_refused_by_its_name(tmp_path: Path, out: Path) -> None:
    class Fetch:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch.hub.load_state_dict_from_url, ("http://localhost:1/w.bin",)

    save_zip({"a": torch.ones(1), "b": Fetch()}, tmp_path / "w.bin")
    with pytest.raises(DataError, match=r"wants torch\.hub\.load_state_dict_from_url to be called"):
        convert_pickles([tmp_path / "w.bin"], out, say=silent)


@both
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, out: Path, save: Save) -> None:
    path = tmp_path / "w.bin"
    save(state(), path)
    whole = path.read_bytes()
    for end in [0, 1, 3, 8, *range(16, len(whole) - 1, len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"w\.bin (is a damaged archive|can't be read as weights)"):
            convert_pickles([path], out, say=silent)


def test_an_archive_whose_parts_are_shorter_than_its_tensors_is_refused(tmp_path: Path, out: Path) -> None:
    save_zip({"a": torch.ones(1000)}, tmp_path / "whole.bin")
    with zipfile.ZipFile(tmp_path / "whole.bin") as whole, zipfile.ZipFile(tmp_path / "w.bin", "w") as short:
        for part in whole.infolist():
            short.writestr(
                part.filename,
                whole.read(part)[:400] if part.filename.endswith("data/0") else whole.read(part),
            )
    with pytest.raises(DataError, match=r"w\.bin can't be read as weights"):
        convert_pickles([tmp_path / "w.bin"], out, say=silent)


def test_a_compressed_archive_is_refused(tmp_path: Path, out: Path) -> None:
    save_zip({"a": torch.ones(1000)}, tmp_path / "whole.bin")
    with (
        zipfile.ZipFile(tmp_path / "whole.bin") as whole,
        zipfile.ZipFile(tmp_path / "w.bin", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for part in whole.infolist():
            packed.writestr(part.filename, whole.read(part))
    with pytest.raises(DataError, match=r"holds compressed parts, first whole/data\.pkl"):
        convert_pickles([tmp_path / "w.bin"], out, say=silent)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!doctype html><html>", "can't be read as weights"),
        (b"\x80\x02}q\x00.", "can't be read as weights"),
        (os.urandom(2000), "can't be read as weights"),
    ],
    ids=["lfs", "html", "pickle", "noise"],
)
def test_other_bytes_are_refused(tmp_path: Path, out: Path, content: bytes, match: str) -> None:
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(DataError, match=match) as refused:
        convert_pickles([tmp_path / "w.bin"], out, say=silent)
    assert "\n" not in str(refused.value)


def test_a_scripted_model_is_refused(tmp_path: Path, out: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.bin", "w") as archive:
        archive.writestr("archive/constants.pkl", pickle.dumps(()))
        archive.writestr("archive/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("archive/version", "3\n")
    with pytest.raises(DataError, match="can't be read as weights"):
        convert_pickles([tmp_path / "w.bin"], out, say=silent)


def test_random_changes_of_a_file_are_read_or_refused_and_nothing_else(tmp_path: Path, out: Path) -> None:
    for save in (save_zip, save_old):
        save({"a": torch.ones(3), "b": torch.zeros(2, 2)}, tmp_path / "w.bin")
        whole, draw = (tmp_path / "w.bin").read_bytes(), random.Random(0)
        for _ in range(150):
            content = bytearray(whole)
            for _ in range(draw.randint(1, 4)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            (tmp_path / "w.bin").write_bytes(content)
            with suppress(DataError):
                convert_pickles([tmp_path / "w.bin"], out, say=silent)


def test_names_put_aside_are_found_again() -> None:
    program = pickle.dumps([Attack, Attack, os.system, os.getcwd, os.system], protocol=4)
    assert list(pickles._named(io.BytesIO(program)))[1:] == ["posix.system", "posix.getcwd"]
