"""A run's result, ready for a hub: the files, a model card, and nothing that tells of this machine."""

import json
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner import __version__
from tuner.config.schema import Config
from tuner.errors import ConfigError
from tuner.files import read_json
from tuner.hardware.libraries import installed_version
from tuner.hub.publish import publish
from tuner.models.checkpoint.files import ADAPTER_FILES
from tuner.pipeline.advice import command_on
from tuner.pipeline.rerun import prepare_result, whole_model
from tuner.pipeline.run import RunDirectory
from tuner.report.byte_size import readable_bytes
from tuner.report.card import CardFacts, model_card
from tuner.stages import STAGES
from tuner.store.manifest import facts_of

KINDS = ("adapter", "model")
CARD = "README.md"
BASE = "base_model_name_or_path"
TEXT = 1 << 20
"""bytes up to which a text file is looked through for what tells of this machine; a tokenizer is longer"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """What is to be sent: links to the result's files, and the card."""

    directory: Path
    repo: str
    kind: str

    @property
    def files(self) -> list[tuple[str, int]]:
        """Names and bytes."""
        return [(path.name, path.stat().st_size) for path in sorted(self.directory.iterdir())]

    @property
    def text(self) -> str:
        """The list of files with their sizes, then the card."""
        listed = [f"  {name}  {readable_bytes(size)}" for name, size in self.files]
        total = readable_bytes(sum(size for _, size in self.files))
        card = (self.directory / CARD).read_text(encoding="utf-8")
        return "\n".join([f"{self.repo}: the {self.kind}, {total}", *listed, "", card])


def pack(
    run: RunDirectory,
    repo: str,
    kind: str | None,
    words: Sequence[str],
    directory: Path,
    tell: Callable[[str], None],
    extra: Path | None = None,
) -> Parcel:
    """Gather in `directory` what goes into a repository: by default the adapter, of a run that trained all
    weights the model. What is missing for it is made first. Raises ConfigError.
    """
    result, config, _ = prepare_result(run, words, tell, STAGES, extra)
    convert = result.path("convert").resolve()
    adapted = (convert / ADAPTER_FILES[0]).is_file()
    kind = kind or ("adapter" if adapted else "model")
    if kind not in KINDS:
        raise ConfigError(f"push sends the adapter or the model, not {kind!r}.")
    if kind == "adapter" and not adapted:
        instead = command_on(run, "push", repo, "model")
        raise ConfigError(f"{run.name} trained all weights, so there is no adapter: {instead}")
    source = convert if kind == "adapter" else whole_model(result, config, tell, STAGES, extra)
    for path in source.iterdir():
        if path.is_file() and path.name != "manifest.json":
            (directory / path.name).symlink_to(path)
    base = _base_name(config, directory)
    card = model_card(config, _card_facts(result, repo, base, adapter=kind == "adapter"))
    (directory / CARD).write_text(card, encoding="utf-8")
    _refuse_traces(directory, run)
    return Parcel(directory=directory, repo=repo, kind=kind)


def push_run(
    run: RunDirectory,
    repo: str,
    kind: str | None,
    words: Sequence[str],
    tell: Callable[[str], None],
    *,
    public: bool,
    agrees: Callable[[Parcel], bool],
    extra: Path | None = None,
) -> str | None:
    """Send a run's result to a repository, once `agrees` has seen what it is; returns the address. Raises
    ConfigError, DataError.
    """
    if repo.count("/") != 1:
        raise ConfigError(f"{repo!r} is no name for a repository: write org/name, or your own name/name.")
    with tempfile.TemporaryDirectory(prefix="push-") as scratch:
        parcel = pack(run, repo, kind, words, Path(scratch), tell, extra)
        if not agrees(parcel):
            return None
        return publish(parcel.directory, repo, public=public, message=f"{run.name}, by tuner {__version__}")


def _base_name(config: Config, directory: Path) -> str:
    """What the base is called. Of a directory of this machine others get the name alone, in the adapter's
    settings too.
    """
    if config.model.repo:
        return config.model.repo
    settings = read_json(directory / "adapter_config.json")
    if settings is None:
        return Path(config.model.path or "a model of their own").name
    name = settings[BASE] or config.model.path or "a model of their own"
    if Path(name).is_absolute() or not settings[BASE]:
        name = Path(name).name
        (directory / "adapter_config.json").unlink()
        text = json.dumps({**settings, BASE: name}, indent=2, ensure_ascii=False) + "\n"
        (directory / "adapter_config.json").write_text(text, encoding="utf-8")
    return name


def _card_facts(result: RunDirectory, repo: str, base: str, *, adapter: bool) -> CardFacts:
    libraries = ("torch", "transformers", "peft")
    versions = {name: found for name in libraries if (found := installed_version(name))}
    return CardFacts(
        name=repo,
        adapter=adapter,
        lora=read_json(result.path("convert") / "adapter_config.json"),
        base=base,
        public_base=base.count("/") == 1,
        tokenize=facts_of(result.path("tokenize")),
        train=facts_of(result.path("train")),
        evaluate=facts_of(result.path("evaluate")),
        versions={"tuner": __version__, **versions},
    )


def _refuse_traces(directory: Path, run: RunDirectory) -> None:
    """Raise ConfigError where a text tells of a path or the name of this machine."""
    traces = {str(Path.home()), str(run.dir.parent.parent.resolve()), str(Path.cwd()), socket.gethostname()}
    traces -= {"/", "localhost"}
    for path in sorted(directory.iterdir()):
        if path.suffix in (".json", ".jinja", ".md") and path.stat().st_size <= TEXT:
            text = path.read_text(encoding="utf-8", errors="replace")
            if found := next((trace for trace in sorted(traces) if trace in text), None):
                raise ConfigError(
                    f"{path.name} would tell others of this machine ({found}), so nothing was sent."
                )
