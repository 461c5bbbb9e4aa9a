"""What a run made, as files to take away: copies, never links, so that nothing done to them reaches the
store.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.errors import ConfigError, StoreError, did_you_mean
from tuner.files import disk_full
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.models.checkpoint.quantised import WORDS
from tuner.models.handover import (
    ADAPTER,
    MODEL,
    TOOLS,
    Served,
    check_loads,
    served_model,
    takes_adapter,
    write_handover,
)
from tuner.models.layouts import detection
from tuner.pipeline.advice import command_on
from tuner.pipeline.rerun import prepare_result, whole_model
from tuner.pipeline.run import RunDirectory
from tuner.stages import STAGES
from tuner.store.manifest import facts_of

KINDS = {
    "adapter": "the adapter, in the format of PEFT",
    "model": "base and adapter merged, in the format of transformers",
    "base": "the base model that the adapter belongs to, in the format of transformers",
    "original": "the merged model in the layout of its publisher, for a family that was rewritten",
    "lmdeploy": "the merged model with chat template and start script for LMDeploy",
    "opencompass": "the merged model with an evaluation config for OpenCompass",
    "vllm": "the merged model and, where vLLM takes it, the adapter, with start scripts for vLLM",
}
WHOLE = ("model", *TOOLS)
"""kinds that take the merged model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """What a run has to export."""

    called: str
    run: RunDirectory
    base: Path | None
    """the model that was trained on; None where it is gone"""
    convert: Path
    whole: Path | None
    """the merged model, or what was trained as a whole, for kinds that take it"""
    quant: str
    """how the base was held while it was trained"""
    precision: str
    """algo.precision: the dtype of an adapter merged"""

    @property
    def adapted(self) -> bool:
        return (self.convert / ADAPTER_FILES[0]).is_file()


def check_kind(kind: str) -> None:
    """Raise ConfigError for an unknown kind."""
    if kind not in KINDS:
        known = "; ".join(f"{name}, {about}" for name, about in KINDS.items())
        raise ConfigError(f"export has no kind {kind!r}.{did_you_mean(kind, KINDS)} The kinds are: {known}.")


def export_run(
    run: RunDirectory,
    kind: str,
    out: Path | None,
    words: Sequence[str],
    tell: Callable[[str], None],
    extra: Path | None = None,
) -> Path:
    """Write `kind` of a run to `out`, or under the root; returns where. What is missing for it is made first,
    which trains nothing. Raises ConfigError, StoreError.
    """
    check_kind(kind)
    result, config, base = prepare_result(run, words, tell, STAGES, extra)
    if kind in TOOLS and base is not None:
        check_loads(kind, base)
    whole = whole_model(result, config, tell, STAGES, extra) if kind in WHOLE else None
    source = ExportSource(
        called=run.name,
        run=run,
        base=base,
        convert=result.path("convert").resolve(),
        whole=whole,
        quant=config.algo.quant,
        precision=config.algo.precision,
    )
    out = out or run.dir.parent.parent / "exports" / f"{result.name}-{kind}"
    _export(source, kind, out, tell)
    return out


def _export(source: ExportSource, kind: str, out: Path, tell: Callable[[str], None]) -> None:
    """Write `kind` to the directory `out`, whole or not at all. Raises ConfigError for what this run can't
    give, StoreError for a full disk.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(
            f"{out} already exists. Name another directory: {command_on(source.run, 'export', kind, 'DIR')}"
        )
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _write(source, kind, partial, tell)
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


def _write(source: ExportSource, kind: str, out: Path, tell: Callable[[str], None]) -> None:
    if kind == "adapter":
        if not source.adapted:
            raise ConfigError(
                f"{source.called} trained all weights, so there is no adapter. Export the model: "
                f"{command_on(source.run, 'export', 'model')}"
            )
        _copy(source.convert, out)
    elif kind == "model":
        _copy(_whole(source), out)
    elif kind == "base":
        _copy(_base(source), out)
    elif kind in TOOLS:
        _hand_over(source, kind, out)
    else:
        _write_original(source, out, tell)


def _hand_over(source: ExportSource, kind: str, out: Path) -> None:
    whole = _whole(source)
    served = _served(source, kind, whole)
    write_handover(kind, served, out)
    for name, artifact in ((MODEL, whole), (ADAPTER, source.convert if served.adapter else None)):
        if artifact is not None:
            (out / name).mkdir()
            _copy(artifact, out / name)


def _served(source: ExportSource, kind: str, whole: Path) -> Served:
    """The adapter goes along where its base is one that others have by its name, as it was trained on."""
    rewritten = source.base is None or facts_of(source.base).get("rewritten")
    along = kind == "vllm" and source.adapted and source.quant == "none" and not rewritten
    served = served_model(whole, source.called, source.convert if along else None)
    named = served.adapter and served.adapter.get("base_model_name_or_path")
    takes = served.adapter is not None and named and takes_adapter(served.adapter)
    return served if takes else replace(served, adapter=None)


def _whole(source: ExportSource) -> Path:
    """The merged model. Raises ConfigError where transformers can't load it."""
    whole = source.whole
    assert whole is not None
    if facts_of(whole).get("layout") == "original":
        raise ConfigError(
            "transformers has no class for this family, so the model is exported in its original layout: "
            f"{command_on(source.run, 'export', 'original')}"
        )
    return whole


def _write_original(source: ExportSource, out: Path, tell: Callable[[str], None]) -> None:
    from tuner.models.checkpoint.files import weight_files
    from tuner.models.checkpoint.safetensors import Checkpoint
    from tuner.models.lora.merge import CODES, merge_original
    from tuner.progress import progress_bar

    base = _base(source)
    whole = base if source.adapted else source.convert
    aside = base / detection.ORIGINAL
    rewritten = [str(name) for name in facts_of(base).get("rewritten", ())]
    if method := next((name.partition(".")[2] for name in rewritten if name.startswith("dequantize.")), None):
        raise ConfigError(
            f"{source.called} was trained on weights that were dequantised to bf16 when they were fetched: "
            f"their publisher has them in {WORDS[method]}, which would round away what was trained. "
            f"Export the model in bf16: {command_on(source.run, 'export', 'model')}"
        )
    if not aside.is_dir():
        raise ConfigError(
            f"{source.called} was trained on a model that transformers has a class for, so its layout is the "
            f"original one: {command_on(source.run, 'export', 'model')}"
        )
    total = sum(spec.nbytes for spec in Checkpoint(weight_files(whole)).specs.values())
    with progress_bar("export", total, tell) as advance:
        adapter, code = source.convert if source.adapted else None, CODES[source.precision]
        merge_original(
            whole, adapter, aside, out, dtype=code, quant=source.quant, tick=lambda spec: advance(spec.nbytes)
        )


def _base(source: ExportSource) -> Path:
    if source.base is None:
        raise ConfigError(
            f"The base model of {source.called} is gone. Run its pipeline again: what was trained is kept."
        )
    return source.base


def _copy(artifact: Path, out: Path) -> None:
    """An artifact's files, but for the store's own and what only the way back to another layout needs."""
    for path in sorted(artifact.iterdir()):
        if path.is_file() and path.name != "manifest.json":
            shutil.copyfile(path, out / path.name)
