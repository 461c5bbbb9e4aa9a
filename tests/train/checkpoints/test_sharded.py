"""Whatever the processes were that saved a step, its tensors are read whole, or the file is named that
spoils them.
"""

import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.safetensors import Checkpoint, Spec
from tuner.train.checkpoints.sharded import LazyTensors

SHAPES = st.lists(st.integers(0, 7), max_size=3).map(tuple)


def write(directory: Path, *files: dict[str, Tensor]) -> list[Path]:
    paths = [
        directory / f"weights-{rank + 1:05}-of-{len(files):05}.safetensors" for rank in range(len(files))
    ]
    for path, tensors in zip(paths, files, strict=True):
        save_file(tensors, path)
    return paths


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(SHAPES, st.sampled_from([torch.float32, torch.bfloat16, torch.uint8])),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 4),
    st.randoms(),
)
def test_any_cut_reads_back_whole(
    tensors: list[tuple[tuple[int, ...], torch.dtype]], ranks: int, draw: random.Random
) -> None:
    whole = {f"t.{i}/m": torch.randint(0, 255, shape).to(dtype) for i, (shape, dtype) in enumerate(tensors)}
    files: list[dict[str, Tensor]] = [{} for _ in range(ranks)]
    shapes = {}
    for name, tensor in whole.items():
        if draw.random() < 0.3:
            draw.choice(files)[name] = tensor
            continue
        shapes[name] = tuple(tensor.shape)
        borders = sorted(draw.randint(0, tensor.numel()) for _ in range(draw.randint(0, 4)))
        cuts = sorted({0, *borders})  # an offset names one fragment
        for begin, end in zip(cuts, [*cuts[1:], tensor.numel()], strict=True):
            draw.choice(files)[f"{name}@{begin}"] = tensor.flatten()[begin:end].clone()
    with TemporaryDirectory() as directory:
        found = LazyTensors(write(Path(directory), *files), shapes)
        assert found.keys() == whole.keys()
        assert len(found) == len(whole)
        for name, tensor in whole.items():
            assert (found.specs[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
            assert torch.equal(found[name], tensor)


def test_the_specs_are_those_of_a_file_with_the_whole_tensors(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4)
    save_file({"w": tensor, "step": torch.tensor(3.0)}, tmp_path / "one")
    paths = write(
        tmp_path,
        {"w@0": tensor.flatten()[:5].clone(), "step": torch.tensor(3.0)},
        {"w@5": tensor.flatten()[5:].clone()},
    )
    assert LazyTensors(paths, {"w": (3, 4)}).specs == Checkpoint([tmp_path / "one"]).specs
    assert LazyTensors(paths, {"w": (3, 4)}).specs["w"] == Spec(name="w", dtype="F32", shape=(3, 4))


def test_a_name_with_an_at_is_a_fragment_only_where_its_tensor_is_known_to_lie_in_parts(
    tmp_path: Path,
) -> None:
    found = LazyTensors(write(tmp_path, {"w@0": torch.ones(2, 2)}), {})
    assert list(found) == ["w@0"]


def numbers(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.arange(count).to(dtype)


@pytest.mark.parametrize(
    ("files", "shape", "words"),
    [
        ([{}, {}], (2, 3), "Of w nothing is in the files"),
        (
            [{"w@0": numbers(4)}, {}],
            (2, 3),
            r"00001-of-00002.safetensors has the end of w at 4, and a tensor of the shape \(2, 3\)",
        ),
        (
            [{}, {"w@4": numbers(2)}],
            (2, 3),
            "00002-of-00002.safetensors has w from 4 on, and what is before that is nowhere",
        ),
        (
            [{"w@0": numbers(3)}, {"w@4": numbers(2)}],
            (2, 3),
            "00001-of.* has w until 3 and .*00002-of-00002.safetensors from 4 on: they leave a gap",
        ),
        ([{"w@0": numbers(5)}, {"w@4": numbers(2)}], (2, 3), "they overlap"),
        ([{"w@0": numbers(6)}, {"w@0": numbers(6)}], (2, 3), "they overlap"),
        (
            [{"w@0": numbers(6)}, {"w": numbers(6).view(2, 3)}],
            (2, 3),
            "has F32 .* under the name w, where w lies in flat parts",
        ),
        (
            [{"w@0": numbers(4)}, {"w@4": numbers(2, torch.bfloat16)}],
            (2, 3),
            "00002-of-00002.safetensors has BF16",
        ),
        ([{"w@0": numbers(6).view(2, 3)}, {}], (2, 3), r"00001-of-00002.safetensors has F32 \(2, 3\)"),
        ([{"w@0": numbers(6)}, {}], (-2, -3), "not that long"),
        (
            [{"v": numbers(1)}, {"v": numbers(1)}],
            None,
            "The tensor v is in weights-00001.* and in weights-00002",
        ),
    ],
)
def test_what_does_not_make_a_whole_is_named(
    tmp_path: Path, files: list[dict[str, Tensor]], shape: tuple[int, ...] | None, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        LazyTensors(write(tmp_path, *files), {} if shape is None else {"w": shape})


def test_a_large_shape_that_is_a_lie_takes_no_memory(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not that long"):
        LazyTensors(write(tmp_path, {"w@0": numbers(6)}), {"w": (1 << 40, 1 << 20)})


def test_a_tensor_is_read_when_it_is_asked_for_and_not_kept(tmp_path: Path) -> None:
    whole = numbers(1000)
    paths = write(tmp_path, {"w@0": whole[:400].clone()}, {"w@400": whole[400:].clone()})
    found = LazyTensors(paths, {"w": (10, 100)})
    first = found["w"]
    first.fill_(7)
    assert torch.equal(found["w"], whole.view(10, 100))
    paths[1].unlink()
    assert math.prod(found.specs["w"].shape) == 1000
    with pytest.raises(FileNotFoundError):
        found["w"]
