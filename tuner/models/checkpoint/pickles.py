"""Weights as pickles (`pytorch_model.bin` and its like), rewritten as safetensors. A pickle is a program:
only what torch's weights-only reader can do of it is ever done, which is to put tensors into dicts. Anything
else that it asks for is refused, and is not run.

Files that torch has written since 1.6 are zip archives and are mapped into memory; older ones are read whole,
one at a time.
"""

import io
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tuner.errors import DataError
from tuner.models.checkpoint.files import INDEX
from tuner.models.checkpoint.safetensors import DTYPES, Spec
from tuner.models.checkpoint.write_safetensors import shard_name, write_checkpoint, write_file, write_index

ZIP, POINTER = b"PK\x03\x04", b"version https://git-lfs"
"""how a zip archive begins, and what Git leaves in the place of a large file"""

WRAPPERS = ("state_dict", "model", "module")
"""where trainers put the weights inside a checkpoint of their own"""

COPIES = 4
"""so many times its own size, at most, are a file's tensors: some share their values, as tied ones do"""

HARMLESS = ("torch", "collections")
"""packages that weights are made with"""

PROGRAM, PROGRAMS = 64 << 20, 5
"""bytes of a pickle that are looked at for an error message, and how many pickles an older file begins
with
"""

CODES = {dtype: code for code, dtype in DTYPES.items()}
TRUSTED = "Take this model's safetensors, or other weights of a publisher whom you trust."


def convert_pickles(files: Sequence[Path], out: Path, *, say: Callable[[str], None]) -> list[str]:
    """Write the tensors of one pickle, or of all shards of a checkpoint, as safetensors into `out`, and
    return the names of the files.

    One pickle becomes a checkpoint as `write_checkpoint` cuts it; of several each becomes a shard, with an
    index. Never is more than one in memory. A tensor that shares its values with another is written in full
    under each name; what lies beside wrapped weights is left out, and `say` hears of it.

    Raises DataError for a file that is damaged, that holds something other than tensors, or that asks for
    code to be run.
    """
    if len(files) == 1:
        tensors = read_pickle(files[0], say=say)
        return write_checkpoint(out, _specs(files[0], tensors), tensors.__getitem__)
    where: dict[str, str] = {}
    total = 0
    for number, path in enumerate(files, start=1):
        name = shard_name(number, len(files))
        tensors = read_pickle(path, say=say)
        specs = _specs(path, tensors)
        if twice := [spec.name for spec in specs if spec.name in where]:
            raise DataError(
                f"The tensor {twice[0]:.120} is in {path.name} and in an earlier shard too. Download the "
                "model again."
            )
        write_file(out / name, specs, tensors.__getitem__)
        del tensors  # before the next is read
        where |= {spec.name: name for spec in specs}
        total += sum(spec.nbytes for spec in specs)
    write_index(out, {"metadata": {"total_size": total}, "weight_map": where})
    return [*dict.fromkeys(where.values()), INDEX]


def read_pickle(path: Path, *, say: Callable[[str], None]) -> dict[str, Tensor]:
    """The tensors of one pickle by name, mapped into memory where its format allows. Raises DataError as
    `convert_pickles` does.
    """
    zipped = _is_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols and deprecated storages: what matters is raised
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # bytes that are no weights make the reader fail in any way there is
        raise _refusal(path, error) from error
    return {name: tensor.detach() for name, tensor in _weights(path, loaded, say).items()}


def _is_zip(path: Path) -> bool:
    """Whether the file is a zip archive, and then a whole one whose parts lie in it as they are, as torch
    writes them and as mapping needs it.
    """
    with path.open("rb") as file:
        head = file.read(len(POINTER))
    if head == POINTER:
        raise DataError(
            f"{path.name} is a Git LFS pointer, not the weights themselves. Fetch them with: git lfs pull"
        )
    if not head.startswith(ZIP):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [
                part.filename
                for part in archive.infolist()
                if part.compress_type != zipfile.ZIP_STORED or part.compress_size != part.file_size
            ]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{path.name} is a damaged archive ({error}): the download or copy broke off. Get it again."
        ) from error
    if packed:
        raise DataError(
            f"{path.name} holds compressed parts, first {packed[0]:.80}, which torch never writes: refused. "
            f"{TRUSTED}"
        )
    return True


def _weights(path: Path, loaded: object, say: Callable[[str], None]) -> Mapping[str, Tensor]:
    """The dict of tensors that was read, or that lies wrapped in it under one of the usual names."""
    if isinstance(loaded, Mapping) and not any(isinstance(value, Tensor) for value in loaded.values()):
        wrapped = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if len(wrapped) > 1:
            raise DataError(
                f"{path.name} holds {' and '.join(wrapped)}, either of which may be the weights. Save the "
                "one that is meant in a file of its own."
            )
        if wrapped:
            if beside := sorted(str(key) for key in loaded if key != wrapped[0]):
                say(
                    f"{path.name}: of a trainer's checkpoint only {wrapped[0]} is taken; left out: "
                    f"{', '.join(beside):.200}"
                )
            loaded = loaded[wrapped[0]]
    if not isinstance(loaded, Mapping) or not loaded:
        kind = "an empty dict" if isinstance(loaded, Mapping) else f"a {type(loaded).__name__}"
        raise DataError(f"{path.name} holds {kind}, where a dict of tensors by name was expected. {TRUSTED}")
    if strange := [
        key
        for key, value in loaded.items()
        if not isinstance(value, Tensor) or not isinstance(key, str) or key == "__metadata__"
    ]:
        kind = type(loaded[strange[0]]).__name__
        raise DataError(
            f"{path.name} holds {len(strange)} entries besides its tensors, first {str(strange[0])!r:.120} "
            f"({kind}), and they would be lost. Save the weights alone: a dict of tensors by name."
        )
    return loaded


def _specs(path: Path, tensors: Mapping[str, Tensor]) -> list[Spec]:
    """What will be written. Raises DataError for tensors that safetensors can't hold, or that pretend to a
    size that the file does not have.
    """
    specs = []
    for name, tensor in tensors.items():
        if (
            tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
            or tensor.dtype not in CODES
        ):
            found = (
                f"{str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')}, "
                f"on {tensor.device}"
            )
            raise DataError(
                f"{name:.120} in {path.name} is a tensor ({found}) that safetensors can't hold. Take the "
                "plain checkpoint of this model."
            )
        specs.append(Spec(name=name, dtype=CODES[tensor.dtype], shape=tuple(tensor.shape)))
    if (total := sum(spec.nbytes for spec in specs)) > COPIES * (size := path.stat().st_size):
        raise DataError(
            f"{path.name} is {size:,} bytes long, and its tensors would be {total:,}: their shapes are not "
            f"those of its values. {TRUSTED}"
        )
    return specs


def _refusal(path: Path, error: Exception) -> DataError:
    """Why a file was not read: what it wanted to run, or how it is damaged."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    names = _globals(path)
    # What the reader stopped at comes first; where a file breaks off within a name, that is no instruction of
    # it.
    wanted = [name for name in names if refused and name == refused[1]] or [
        name for name in names if name.partition(".")[0] not in HARMLESS
    ]
    if wanted:
        name = " ".join(wanted[0].split())
        return DataError(
            f"{path.name} is a pickle that wants {name:.120} to be called when it is read, which weights "
            f"never need. Nothing of it was run, and it is refused. {TRUSTED}"
        )
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    return DataError(
        f"{path.name} can't be read as weights ({said:.160}): it is damaged, or of a kind that torch.save "
        "does not write. Get it again."
    )


def _globals(path: Path) -> list[str]:
    """The Python objects that a pickle names, read off its instructions: for a message, so what is odd
    about it only ends the list.
    """
    found: list[str] = []
    # Only an explanation is looked for, in bytes that were refused already.
    with suppress(Exception):
        for program in _programs(path):
            found.extend(_named(program))
    return found


def _programs(path: Path) -> Iterator[io.BytesIO]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith("data.pkl"):
                    with archive.open(name) as part:
                        yield io.BytesIO(part.read(PROGRAM))
        return
    with path.open("rb") as file:
        stream = io.BytesIO(file.read(PROGRAM))
    for _ in range(PROGRAMS):
        yield stream  # each program ends where the next one begins


def _named(program: io.BytesIO) -> Iterator[str]:
    """`module.name` of each object; from protocol 4 on the two are texts that lie on the stack, or that
    were put aside under a number.
    """
    texts: list[str] = []
    aside: dict[Any, str] = {}
    for instruction, value, _ in pickletools.genops(program):
        name = instruction.name
        if name in ("GLOBAL", "INST"):
            yield str(value).replace(" ", ".")
        elif name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
        elif name == "MEMOIZE" or name.endswith("PUT"):
            aside[len(aside) if value is None else value] = texts[-1] if texts else ""
        elif name.endswith("GET"):
            texts.append(aside.get(value, ""))
        elif isinstance(value, str):
            texts.append(value)
