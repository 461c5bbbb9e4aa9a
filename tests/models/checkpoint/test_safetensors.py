"""What is written must be what safetensors itself reads, the same to the byte every time, and a broken
file must say so.
"""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.files import INDEX, weight_files
from tuner.models.checkpoint.safetensors import DTYPES, Checkpoint, Spec, main_dtype, read_specs
from tuner.models.checkpoint.write_safetensors import split_shards, write_checkpoint, write_file

CODES = {dtype: code for code, dtype in DTYPES.items()}


def specs_of(tensors: dict[str, Tensor]) -> list[Spec]:
    return [Spec(name=name, dtype=CODES[t.dtype], shape=tuple(t.shape)) for name, t in tensors.items()]


def sample(dtype: torch.dtype, shape: list[int], seed: int = 0) -> Tensor:
    count = torch.Size(shape).numel()
    raw = torch.randint(
        0,
        2 if dtype == torch.bool else 120,
        (count * dtype.itemsize,),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(seed),
    )
    return raw.view(dtype).reshape(shape)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tensors=st.dictionaries(
        st.text(alphabet='abc.0127中"\\', min_size=1, max_size=8),
        st.tuples(st.sampled_from(list(DTYPES.values())), st.lists(st.integers(0, 5), max_size=3)),
        min_size=1,
        max_size=6,
    )
)
def test_any_file_reads_back(tmp_path: Path, tensors: dict[str, tuple[torch.dtype, list[int]]]) -> None:
    values = {name: sample(dtype, shape, seed) for seed, (name, (dtype, shape)) in enumerate(tensors.items())}
    path = tmp_path / "x.safetensors"
    write_file(path, specs_of(values), values.__getitem__)
    read = load_file(path)
    assert read.keys() == values.keys()
    for name, value in values.items():
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape
        assert torch.equal(read[name].reshape(-1).view(torch.uint8), value.reshape(-1).view(torch.uint8))
    assert sorted(read_specs(path).values(), key=lambda s: s.name) == sorted(
        specs_of(values), key=lambda s: s.name
    )


def test_bytes_do_not_depend_on_the_order_of_specs(tmp_path: Path) -> None:
    values = {
        f"layers.{i}.w": torch.full((3, 5), i, dtype=dtype)
        for i, dtype in enumerate([torch.bfloat16, torch.float32] * 6)
    }
    a, b = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    write_file(a, specs_of(values), values.__getitem__)
    write_file(b, reversed(specs_of(values)), values.__getitem__)
    assert a.read_bytes() == b.read_bytes()


def test_strided_tensors_are_written_by_value(tmp_path: Path) -> None:
    value = torch.arange(12.0).reshape(3, 4).T
    write_file(tmp_path / "x.safetensors", specs_of({"w": value}), lambda _: value)
    assert torch.equal(load_file(tmp_path / "x.safetensors")["w"], value)


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    asked: list[str] = []
    written: list[str] = []

    def value(name: str) -> Tensor:
        assert asked == written, "the next tensor was asked for before the last was written"
        asked.append(name)
        return torch.zeros(2)

    write_checkpoint(
        tmp_path,
        [Spec(name=n, dtype="F32", shape=(2,)) for n in "abc"],
        value,
        limit=8,
        tick=lambda spec: written.append(spec.name),
    )
    assert written == ["a", "b", "c"]


def test_shards_have_an_index_and_read_back(tmp_path: Path) -> None:
    values = {f"layers.{i}.w": torch.full((10,), float(i)) for i in range(11)}
    names = write_checkpoint(tmp_path, specs_of(values), values.__getitem__, limit=100)
    assert names[0] == "model-00001-of-00006.safetensors"
    assert names[-1] == INDEX
    index = json.loads((tmp_path / INDEX).read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == 440
    assert index["weight_map"]["layers.2.w"] == "model-00002-of-00006.safetensors"
    checkpoint = Checkpoint(weight_files(tmp_path))
    assert checkpoint.specs.keys() == values.keys()
    assert all(torch.equal(checkpoint[name], value) for name, value in values.items())


def test_split_counts_and_lets_a_large_tensor_be_alone() -> None:
    specs = [
        Spec(name=f"layers.{i}", dtype="U8", shape=(size,)) for i, size in ((10, 4), (2, 4), (1, 30), (0, 4))
    ]
    assert [[s.name for s in shard] for shard in split_shards(specs, 10)] == [
        ["layers.0"],
        ["layers.1"],
        ["layers.2", "layers.10"],
    ]


def test_a_tensor_unlike_its_spec_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced as F32"):
        write_file(
            tmp_path / "x.safetensors", [Spec(name="w", dtype="F32", shape=(2,))], lambda _: torch.zeros(3)
        )


def test_reads_what_safetensors_wrote(tmp_path: Path) -> None:
    values = {"a": torch.arange(6, dtype=torch.int64), "b": torch.ones(2, 3, dtype=torch.bfloat16)}
    save_file(values, tmp_path / "x.safetensors", metadata={"format": "pt"})
    checkpoint = Checkpoint([tmp_path / "x.safetensors"])
    assert checkpoint.specs["b"] == Spec(name="b", dtype="BF16", shape=(2, 3))
    assert torch.equal(checkpoint["a"], values["a"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda b: b[:-3], "broke off"),
        (lambda b: b + b"x", "broke off"),
        (lambda b: b[:20], "only the beginning"),
        (lambda _: b"", "only the beginning"),
        (lambda b: b[:8] + b"?" + b[9:], "not a safetensors header"),
        (lambda b: b[:8] + b"[]" + b" " * (len(b) - 10), "not a safetensors header"),
        (lambda b: b.replace(b'"F32"', b'"X32"'), "of type X32"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "Git LFS pointer"),
    ],
)
def test_a_broken_file_says_so(tmp_path: Path, change: object, match: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(4)}, path)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=match):
        read_specs(path)


def test_the_same_tensor_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"w": torch.zeros(4)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(DataError, match=r"w is in b\.safetensors and in a\.safetensors"):
        Checkpoint([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


def test_main_dtype_counts_bytes() -> None:
    assert (
        main_dtype([Spec(name="a", dtype="F32", shape=(2,)), Spec(name="b", dtype="BF16", shape=(100,))])
        == "BF16"
    )
