"""`export RUN KIND [DIR]`: what a run made, as files to take away: copies, never links, so that nothing
done to them reaches the store.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import ConfigError, StoreError, nearest
from tuner.files import disk_full, read_json
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.models.checkpoint.quantised import WORDS
from tuner.models.layouts import detection

KINDS = {
    "adapter": "the adapter, as PEFT reads it",
    "model": "base and adapter in one, as transformers reads it",
    "base": "the model it was trained on, as transformers reads it: what the adapter belongs to",
    "original": "the same in the layout of the model's publisher, for a family that was rewritten",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """What there is of a run."""

    called: str
    base: Path | None
    """the model that was trained on; None where it is gone"""
    convert: Path
    merge: Path | None
    """the merged model, in the layout of transformers"""
    quant: str
    """how the base was held while it was trained"""
    precision: str
    """algo.precision: the dtype of an adapter merged"""

    @property
    def adapted(self) -> bool:
        return (self.convert / ADAPTER_FILES[0]).is_file()


def check_kind(kind: str) -> None:
    """Raise ConfigError for a kind that there is not."""
    if kind not in KINDS:
        known = "; ".join(f"{name}, {about}" for name, about in KINDS.items())
        raise ConfigError(f"export knows no {kind!r}.{nearest(kind, KINDS)} There are: {known}.")


def export(made: ExportSource, kind: str, out: Path, tell: Callable[[str], None]) -> None:
    """Write `kind` to the directory `out`, whole or not at all. Raises ConfigError for what this run can't
    give, StoreError for a full disk.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} is there already. Name another directory: python -m tuner export {made.called} {kind} DIR"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(made, kind, partial, tell)
        partial.replace(out)
    except OSError as error:
        if disk_full(error):
            raise StoreError(
                f"The disk that holds {out.parent} is full; nothing was left there. Name a directory on "
                "another one."
            ) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    tell(f"{KINDS[kind]}: {size / 1e6:,.0f} MB")
    print(out)


def _write(made: ExportSource, kind: str, out: Path, tell: Callable[[str], None]) -> None:
    if kind == "adapter":
        if not made.adapted:
            raise ConfigError(
                f"{made.called} trained all weights, so there is no adapter. Export the model: python -m "
                f"tuner export {made.called} model"
            )
        _copy(made.convert, out)
    elif kind == "model":
        whole = made.merge or made.convert
        if (read_json(whole / "manifest.json") or {}).get("facts", {}).get("layout") == "original":
            raise ConfigError(
                "transformers has no class for this family, so the model goes away in its own layout: "
                f"python -m tuner export {made.called} original"
            )
        _copy(whole, out)
    elif kind == "base":
        _copy(_base(made), out)
    else:
        _write_original(made, out, tell)


def _write_original(made: ExportSource, out: Path, tell: Callable[[str], None]) -> None:
    from tuner.models.checkpoint.files import weight_files
    from tuner.models.checkpoint.safetensors import Checkpoint
    from tuner.models.lora.merge import CODES, merge_original
    from tuner.progress import bar

    base = _base(made)
    whole = base if made.adapted else made.convert
    aside = base / detection.ORIGINAL
    rewritten = [
        str(name) for name in (read_json(base / "manifest.json") or {}).get("facts", {}).get("rewritten", ())
    ]
    if method := next((name.partition(".")[2] for name in rewritten if name.startswith("dequantize.")), None):
        raise ConfigError(
            f"{made.called} was trained on weights that were dequantised to bf16 when they were fetched: "
            f"their publisher has them in {WORDS[method]}, and what was trained would be rounded away in "
            f"that. Export the model in bf16: python -m tuner export {made.called} model"
        )
    if not aside.is_dir():
        raise ConfigError(
            f"{made.called} was trained on a model that transformers has a class for, so its layout is the "
            f"original one: python -m tuner export {made.called} model"
        )
    total = sum(spec.nbytes for spec in Checkpoint(weight_files(whole)).specs.values())
    with bar("export", total, tell) as advance:
        adapter, code = made.convert if made.adapted else None, CODES[made.precision]
        merge_original(
            whole, adapter, aside, out, dtype=code, quant=made.quant, tick=lambda spec: advance(spec.nbytes)
        )


def _base(made: ExportSource) -> Path:
    if made.base is None:
        raise ConfigError(
            f"The model that {made.called} was trained on is gone. Run its pipeline again: what is trained "
            "stays."
        )
    return made.base


def _copy(source: Path, out: Path) -> None:
    """An artifact's files, but for the store's own and what only the way back to another layout needs."""
    for path in sorted(source.iterdir()):
        if path.is_file() and path.name != "manifest.json":
            shutil.copyfile(path, out / path.name)
