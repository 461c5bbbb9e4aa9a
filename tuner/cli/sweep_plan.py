"""The jobs of a sweep before any runs: each planned, what they share, and what all of them together take."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuner.api.pipeline import plan_config
from tuner.api.sweeps import sweep_job_config
from tuner.cli.plan_text import plan_dict, plan_text
from tuner.config.compose import compose_jobs
from tuner.config.schema import Config
from tuner.config.search_space import is_search
from tuner.config.view import View
from tuner.errors import TunerError
from tuner.estimate import disk
from tuner.estimate.work import SweepWork, sweep_work
from tuner.models.locate import refuse_quantised_name
from tuner.pipeline.planned_stage import PlannedStage
from tuner.pipeline.run import RunDirectory, store_of
from tuner.pipeline.sweeps import SweepJob, swept_fields, words_of
from tuner.report.byte_size import readable_bytes
from tuner.report.columns import columns
from tuner.report.printable import visible
from tuner.report.ranking_text import job_title, short_names, value_text
from tuner.report.span import readable_seconds


@dataclass(frozen=True, kw_only=True)
class PlannedJob:
    """A job of a sweep, before it runs."""

    number: int
    overrides: Sequence[str]
    note: SweepJob
    """as the record has it"""
    config: Config | TunerError
    """or why it is refused"""
    plan: Sequence[PlannedStage] | TunerError = ()
    """or why there is none"""
    shares: Mapping[str, int] = field(default_factory=dict)
    """stage → the job that makes it before this one needs it"""

    @property
    def to_do(self) -> bool:
        """Whether there is work, or a plan that fails; a config that is refused makes none."""
        return isinstance(self.config, Config) and (
            isinstance(self.plan, TunerError) or any(planned.to_do for planned in self.plan)
        )

    @property
    def refusal(self) -> TunerError | None:
        """Why nothing can be made, as far as that is known."""
        return next((found for found in (self.config, self.plan) if isinstance(found, TunerError)), None)


def plan_jobs(words: list[str], *, extra: Path | None) -> list[PlannedJob]:
    """All jobs of a sweep, each with its plan. Raises ConfigError for what no job could be made of."""
    composed = compose_jobs(words, extra=extra)
    typed = [SweepJob(words=words_of(overrides)) for _, overrides in composed]
    fields = swept_fields(typed)
    jobs: list[PlannedJob] = []
    made: dict[str, int] = {}
    for (found, overrides), whole in zip(composed, typed, strict=True):
        note = SweepJob(words={name: whole.words[name] for name in fields if name in whole.words})
        job = PlannedJob(number=len(jobs) + 1, overrides=overrides, note=note, config=found)
        jobs.append(_shared(_planned(job), made))
    return jobs


def _planned(job: PlannedJob) -> PlannedJob:
    if isinstance(job.config, TunerError):
        return job
    try:
        config = sweep_job_config(job.config)
        run = RunDirectory.of(config)
    except TunerError as error:
        return replace(job, config=error)
    job = replace(job, config=config, note=replace(job.note, run=run.dir.name))
    try:
        return replace(job, plan=plan_config(config, run))
    except TunerError as error:
        return replace(job, plan=error)


def _shared(job: PlannedJob, made: dict[str, int]) -> PlannedJob:
    """The job, with what jobs before it make; `made` is artifact → the first job that makes it."""
    if isinstance(job.config, TunerError) or isinstance(job.plan, TunerError):
        return job
    stages = [planned.stage.name for planned in job.plan if planned.to_do]
    shares = {}
    for stage, key in zip(stages, disk.disk_needs(job.plan, job.config), strict=True):
        if made.setdefault(f"{store_of(job.config).root}/{key}", job.number) != job.number:
            shares[stage] = made[f"{store_of(job.config).root}/{key}"]
    return replace(job, shares=shares)


def plan_sweep(words: list[str], flags: Collection[str], *, extra: Path | None) -> int:
    """Print the plan of each job and of all together; with --check, 3 says that something would run. A job
    that is refused gives its exit code.
    """
    if is_search(words):
        from tuner.cli.search import plan_search

        return plan_search(words, flags, extra=extra)
    jobs = plan_jobs(words, extra=extra)
    told = []
    for i, job in enumerate(jobs):
        title = job_title(job.note.words)
        if error := job.refusal or _refused_name(job.config):
            jobs[i] = replace(job, config=error)
            told.append({"job": dict(job.note.words), "error": str(error)})
            print(visible(f"tuner: {title}: {error}"), file=sys.stderr)
        for steps, config in plans_of(jobs[i : i + 1]):
            run = RunDirectory.of(config)
            planned = plan_dict(steps, config, run)
            told.append({"job": dict(job.note.words)} | planned | {"shares": dict(job.shares)})
            if "--json" not in flags:
                print(f"── job {job.number} of {len(jobs)}: {title}\n{plan_text(steps, config, run)}")
    if "--json" in flags:
        all_jobs = sweep_work(plans_of(jobs)).to_json()
        print(json.dumps({"jobs": told, "in_all": all_jobs}, ensure_ascii=False, indent=1))
    else:
        print(overview(jobs))
    refused = [job.refusal.exit_code for job in jobs if job.refusal]
    work = 3 if "--check" in flags and any(job.to_do for job in jobs) else 0
    return max([work, *refused])


def _refused_name(config: Config | TunerError) -> TunerError | None:
    try:
        if isinstance(config, Config):
            refuse_quantised_name(View(config, "fetch_model"))
    except TunerError as error:
        return error
    return None


def plans_of(jobs: Sequence[PlannedJob]) -> list[tuple[Sequence[PlannedStage], Config]]:
    """The plans that there are, with their configs."""
    return [
        (job.plan, job.config)
        for job in jobs
        if not isinstance(job.plan, TunerError) and isinstance(job.config, Config)
    ]


def overview(jobs: Sequence[PlannedJob]) -> str:
    """Jobs by stages, what is shared, and what all of them together take."""
    head = f"sweep of {len(jobs)} jobs"
    if not any(job.to_do or job.refusal for job in jobs):
        return f"{head}: all done"
    fields = list(dict.fromkeys(name for job in jobs for name in job.note.words))
    cells = {job.number: _cells(job) for job in jobs if not job.refusal}
    names = list(dict.fromkeys(name for row in cells.values() for name in row))
    common = {
        name: said
        for name in names
        if (said := _for_all([row[name] for row in cells.values() if name in row]))
    }
    apart = [name for name in names if name not in common]
    shown = apart or [""]
    rows = [
        [
            str(job.number),
            *(value_text(job.note.words.get(name)) for name in fields),
            *(
                ["refused", *[""] * (len(shown) - 1)]
                if job.refusal
                else (cells[job.number].get(name, "") for name in shown)
            ),
        ]
        for job in jobs
    ]
    table = columns([["job", *short_names(fields), *shown], *rows], {0})
    shared = [f"all jobs: {', '.join(f'{name} {said}' for name, said in common.items())}"] if common else []
    return "\n".join(
        [head, *(f"  {line}" for line in (*table, *shared, in_all(sweep_work(plans_of(jobs)))) if line)]
    )


def _cells(job: PlannedJob) -> dict[str, str]:
    """What the overview says of each stage."""
    if isinstance(job.plan, TunerError):
        return {}
    return {
        planned.stage.name: f"job {job.shares[planned.stage.name]}"
        if planned.stage.name in job.shares
        else planned.why.replace("step ", "")
        if planned.state == "continue"
        else {"skip": "-"}.get(planned.state, planned.state)
        for planned in job.plan
    }


def _for_all(column: Sequence[str]) -> str | None:
    """What is said once of a stage that is alike in all jobs, or None.

    >>> _for_all(["run", "job 1", "job 1"]), _for_all(["done", "done"]), _for_all(["run", "run"])
    ('run once', 'done', None)
    """
    if len(column) > 1 and set(column[1:]) == {"job 1"}:
        return f"{column[0]} once"
    alike = set(column) in ({"done"}, {"-"})
    return {"-": "not needed"}.get(column[0], column[0]) if alike else None


def in_all(work: SweepWork) -> str:
    """What all jobs together take, in words; guesses are marked ~."""
    guess = "" if work.counted else "~"
    return ", ".join(
        [
            *([f"{guess}{work.tokens:,} tokens"] if work.tokens else []),
            *([f"~{readable_seconds(work.seconds)} training"] if work.seconds is not None else []),
            *([f"~{readable_bytes(work.bytes)} of disk"] if work.bytes else []),
        ]
    )
