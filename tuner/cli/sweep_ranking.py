"""The ranking of a sweep: read off its record and the runs of its jobs, printed, and written beside the
record. It builds nothing.
"""

import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tuner.api.comparison import compared_run
from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.errors import ConfigError, Stopped, StoreError
from tuner.files import read_json, write_text
from tuner.pipeline.advice import command
from tuner.pipeline.run import RunDirectory
from tuner.pipeline.sweeps import SweepDirectory, SweepJob, find_sweep
from tuner.report.comparison import ComparedRun
from tuner.report.ranking import RankedJob, rank_jobs, ranking_csv
from tuner.report.ranking_text import to_text


def rank_sweep(sweep: SweepDirectory) -> dict[str, Any]:
    """The jobs of a sweep, ranked, with the line that uses the best. Raises ConfigError."""
    places = [path for path, declared, _ in leaves(Config()) if declared.kind == "place"]
    jobs = [
        RankedJob(
            number=i,
            fields=job.words,
            run=_run_of(sweep, job),
            code=job.code,
            message=job.message,
            stopped=job.code == Stopped.exit_code,
            pruned=job.pruned,
        )
        for i, job in enumerate(sweep.jobs(), 1)
    ]
    ranking = rank_jobs(sweep.dir.name, jobs, places, **asdict(sweep.aim()))
    best = ranking["best"]
    return ranking | {"use": command("chat", shlex.quote(best), root=sweep.root) if best else None}


def _run_of(sweep: SweepDirectory, job: SweepJob) -> ComparedRun | None:
    run = sweep.find_run(job)
    try:
        return compared_run(run) if run else None
    except ConfigError:  # an older version's field, an edited file: the job is still shown
        return None


def ranking_text(ranking: dict[str, Any]) -> str:
    """The ranking for a terminal."""
    text = to_text(ranking, shutil.get_terminal_size().columns)
    return f"{text}\nbest    {ranking['best']}\nuse     {ranking['use']}" if ranking["best"] else text


def write_ranking(sweep: SweepDirectory, ranking: dict[str, Any]) -> str:
    """Write the page and the table beside the sweep's record; where they are, in words. Raises StoreError."""
    from tuner.report.ranking_page import to_html

    page, table = sweep.dir / "ranking.html", sweep.dir / "ranking.csv"
    try:
        for file, text in ((table, ranking_csv(ranking)), (page, to_html(ranking))):
            # a name on the disk may hold no text
            write_text(file, text.encode("utf-8", "replace").decode("utf-8"))
    except OSError as error:
        raise StoreError(
            f"The ranking can't be written to {sweep.dir}: {error.strerror}. Make space or mend its "
            "permissions. The runs are as they are, and `status --sweep` shows how they rank."
        ) from error
    return f"page    {page}\ntable   {table}"


def loss_in_words(run: RunDirectory) -> str:
    """The held-out loss of a run that was evaluated, to end a line with."""
    report = read_json(run.path("evaluate") / "report.json") or {}
    loss = report.get("held_out", {}).get("loss", {}).get("after")
    return f", held-out loss {loss:.4f}" if loss is not None else ""


def show_sweep(root: Path, word: str = "last", *, as_json: bool) -> int:
    """Print the ranking of the sweep that `word` means. Raises ConfigError."""
    ranking = rank_sweep(find_sweep(root, word))
    print(json.dumps(ranking, ensure_ascii=False, indent=1) if as_json else ranking_text(ranking))
    return 0
