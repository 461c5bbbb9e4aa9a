"""What a run had before a file that it reads was edited: a run of its own, so that the result is still found.

A run's directory is of its config as written, which names a file and not its content. With other content the
run links other artifacts; those that it had stay with a run beside it, `support+data.1f0c2a`, which is called
by the content that they were made from.
"""

import shutil
from collections.abc import Mapping
from dataclasses import replace

from tuner.data.sources import plain_names
from tuner.errors import ConfigError
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, run_name
from tuner.store.artifacts import Store, key_of
from tuner.store.digests import content_digest

SHOWN = 6
"""digits of the content's digest in the run's name"""


def keep_earlier(run: RunDirectory, planned: PlannedStage, store: Store) -> RunDirectory | None:
    """The run that keeps what `run` has, made where `planned` is about to link something of other files in
    place of it; None where it reads the same files, or nothing was trained yet.
    """
    stage = planned.stage.name
    linked = store.find(run.key(stage) or "-")
    trained = run.path("convert").exists() or store.find(run.key("train") or "-")
    if linked is None or planned.origin is None or not trained:
        return None
    had, has = linked.manifest["origin"]["sources"], planned.origin["sources"]
    if had == has:
        return None
    try:
        config = run.config()
    except ConfigError:
        return None  # nobody can call it by its name either
    gone = {name: digest for name, digest in had.items() if has.get(name) != digest} or had
    digest = next(iter(gone.values())) if len(gone) == 1 else content_digest(gone)
    config = replace(
        config,
        name=f"{run.name}+{stage.removeprefix('fetch_')}.{digest[:SHOWN]}",
        note=" ".join([*([config.note] if config.note else []), _told(gone)]),
        variant=" ".join([*([config.variant] if config.variant else []), digest[:12]]),
    )
    earlier = RunDirectory(run.dir.with_name(run_name(config)))
    earlier.dir.mkdir(exist_ok=True)
    for link in [link for link in run.dir.iterdir() if link.is_symlink() and link.name != "report.md"]:
        with store.shared([key_of(link.readlink().name)]):
            earlier.link(link.name, run.dir / link.readlink())
    if earlier.path("evaluate").exists():
        earlier.show_report()
    if (run.dir / "log").exists():
        shutil.copy2(run.dir / "log", earlier.dir)  # with its time: `last` stays the run itself
    earlier.write(config)
    return earlier


def _told(sources: Mapping[str, str]) -> str:
    """What the files were, for `status`."""
    name, digest = next((plain_names(sources)[name], digest) for name, digest in sources.items())
    more = f" and {len(sources) - 1} more" if len(sources) > 1 else ""
    return f"{name} {digest[:12]}{more}"
