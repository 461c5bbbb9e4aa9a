"""A finished run made again in a clean root, as it was recorded, and compared stage by stage.

The clean root lies beside the run's own, on the same file system, with a copy of the lock. What was
downloaded or rewritten is taken from the store, where its bytes are held to their manifest; files of one's
own are read again where they lie. All that follows is made anew.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tuner.config.schema import Config
from tuner.errors import ConfigError, Interrupted, StoreError
from tuner.pipeline.inherit import load_config
from tuner.pipeline.plan import plan
from tuner.pipeline.remade import (
    Reproduction,
    StageResult,
    compare_artifacts,
    compare_origins,
    damaged_in_store,
    not_made,
)
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.selection import stages_up_to_train
from tuner.pipeline.stage import Stage
from tuner.store.artifacts import Artifact, Store

RESOLVED = ("threads", "micro_batch", "recompute")
"""fields of machine that at `auto` depend on the machine and the moment: taken from the facts of the run"""


def reproduce(
    run: RunDirectory,
    stages: Sequence[Stage],
    execute: Callable[[Config, RunDirectory], object],
    tell: Callable[[str], None],
    *,
    keep: bool = False,
) -> Reproduction:
    """Make the run again by `execute`, which runs a config in a directory, and compare. With `keep` the
    clean root stays.

    What a stage would be made from is compared before anything is computed: where that differs, it and what
    follows is not made. Nor is anything trained on other tokens. Raises TunerError, also for a run that is
    not finished.
    """
    config, recorded = load_config(run), _recorded(run, stages)
    store = store_of(config)
    with store.shared([artifact.key for artifact in recorded.values()]):
        found = {name: store.damage(artifact, deep=True) for name, artifact in recorded.items()}
        if any(found.values()):
            results = [
                damaged_in_store(name, wrong) if wrong else not_made(name) for name, wrong in found.items()
            ]
            return Reproduction(run=run.dir.name, bits=True, stages=results)
        with _clean_root(Path(config.root), keep) as root:
            tell(f"making {run.dir.name} again in {root}, which {'stays' if keep else 'goes at the end'}")
            clean = as_recorded(config, {name: a.manifest["facts"] for name, a in recorded.items()}, root)
            with suppress(
                FileNotFoundError
            ):  # what is edited since is named, so it holds nobody to its files
                shutil.copyfile(config.lock, clean.lock)
            _refer(store_of(clean), recorded.values())
            remaking = _Remaking(clean, stages, recorded, execute, tell)
            try:
                results = list(remaking.results())
            except Interrupted as stop:
                kept = f"What was made stays in {root}. " if keep else ""
                raise Interrupted(
                    f"reproduce was stopped before all was compared. {kept}The same command begins again, in "
                    "a clean root of its own."
                ) from stop
            return Reproduction(
                run=run.dir.name, bits=remaking.bits, stages=results, root=str(root) if keep else None
            )


def as_recorded(config: Config, facts: Mapping[str, Mapping[str, Any]], root: Path) -> Config:
    """A run's config for another root, with the lock that is there; `auto` is what it meant in the run, as
    far as all of its stages agree.
    """
    machine = config.machine
    for name in RESOLVED:
        meant = {known[name] for known in facts.values() if name in known}
        if getattr(machine, name) == "auto" and len(meant) == 1:
            machine = replace(machine, **{name: meant.pop()})
    if machine.device == "auto" and _devices(facts.values()) == {"cpu"}:
        machine = replace(machine, device="cpu")
    merge = replace(config.merge, when="always" if "merge" in facts else "never")
    lock = str(root / "tuner.lock")
    return replace(config, root=str(root), store=None, lock=lock, locked=False, machine=machine, merge=merge)


def _devices(facts: Iterable[Mapping[str, Any]]) -> set[str]:
    return {known["device"] for known in facts if "device" in known}


def _recorded(run: RunDirectory, stages: Sequence[Stage]) -> dict[str, Artifact]:
    """The artifacts of a run, by stage. Raises ConfigError where it has not trained to its end."""
    store = Store(run.store() or run.dir)
    found = {stage.name: artifact for stage in stages if (artifact := store.find(run.key(stage.name) or "-"))}
    if missing := [name for name in stages_up_to_train(stages) if name not in found]:
        raise ConfigError(
            f"{run.dir.name} has no finished {' and '.join(sorted(missing))}, so there is nothing to compare "
            "with. Run its pipeline to the end first."
        )
    return found


@contextmanager
def _clean_root(root: Path, keep: bool) -> Iterator[Path]:
    """An empty output root beside another."""
    beside = root.absolute().parent
    try:
        place = Path(tempfile.mkdtemp(dir=beside, prefix=f"{root.name}-reproduce-"))
    except OSError as error:
        raise StoreError(
            f"The run is made again in a directory beside {root}, and {beside} can't be written to: "
            f"{error.strerror}. Correct its permissions, or copy {root} to where you may write."
        ) from error
    try:
        yield place
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _refer(clean: Store, recorded: Iterable[Artifact]) -> None:
    """Let the clean store have what was fetched with files of its own: by links, for it was verified."""
    clean.open()
    for artifact in recorded:
        if artifact.manifest["stage"].startswith("fetch_") and artifact.manifest["files"]:
            (clean.root / artifact.key).symlink_to(artifact.path.resolve(), target_is_directory=True)


class _Remaking:
    """The stages of a run on their way to be compared."""

    def __init__(
        self,
        config: Config,
        stages: Sequence[Stage],
        recorded: Mapping[str, Artifact],
        execute: Callable[[Config, RunDirectory], object],
        tell: Callable[[str], None],
    ) -> None:
        self.config, self.stages, self.recorded = config, stages, recorded
        self.execute, self.tell, self.store = execute, tell, store_of(config)
        self.directory = RunDirectory.of(config)
        self.facts = [artifact.manifest["facts"] for artifact in recorded.values()]

    @property
    def bits(self) -> bool:
        """Whether bits are compared, as far as it is known where all was computed."""
        return self.config.machine.deterministic or "cuda" not in _devices(self.facts)

    def results(self) -> Iterator[StageResult]:
        """How each stage came out, in order."""
        early = stages_up_to_train(self.stages) - {"train"}  # they compute on no GPU, so bits are asked
        left = [stage for stage in self.stages if stage.name in self.recorded]
        ended = False
        while left and not ended:
            if other := self._made_from_other(left):
                ended = True
                yield from (other if other.stage == stage.name else not_made(stage.name) for stage in left)
                continue
            stage, *left = left
            self.execute(replace(self.config, until=self._word(stage)), self.directory)
            made = self.store.find(self.directory.key(stage.name) or "-")
            if made is None:
                raise StoreError(
                    f"{stage.name} went away while it was compared: something else cleans {self.store.root}."
                )
            self.facts.append(made.manifest["facts"])
            result = compare_artifacts(
                stage, self.recorded[stage.name], made, bits=self.bits or stage.name in early
            )
            yield result
            if result.state == "differs" and stage.name in early:
                ended = True
                yield from (not_made(stage.name) for stage in left)

    def _word(self, stage: Stage) -> str:
        """What `until` calls the stage, or the next after which one can stop."""
        return next(later.word for later in self.stages[self.stages.index(stage) :] if later.stop)

    def _made_from_other(self, left: Sequence[Stage]) -> StageResult | None:
        """The first stage that would be made from something else than it was, as far as that is known."""
        planned = plan(
            replace(self.config, until=self._word(left[-1])),
            self.stages,
            self.store,
            self.directory,
            hashing=self.tell,
        )
        if floating := [step for step in planned if step.unresolved]:
            raise ConfigError(
                f"The lock does not say what the run was made from: {floating[0].why}. Start the command "
                "where the run was started, or take tuner.lock from version control again."
            )
        origins = {step.stage.name: step.origin for step in planned if step.origin}
        # where bits are not asked, another step may be the best
        free = ("convert.step",) if self.config.convert.step == "best" and not self.bits else ()
        results = (
            compare_origins(
                stage.name, self.recorded[stage.name].manifest["origin"], origins[stage.name], free
            )
            for stage in left
            if stage.name in origins
        )
        return next((result for result in results if result is not None), None)
