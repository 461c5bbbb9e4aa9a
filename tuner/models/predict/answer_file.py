"""A file of rows → the same rows with the answers of a run's model, in a file of their own."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import randbits
from typing import Any

import torch

from tuner.config.view import View
from tuner.data.files.row_files import Unreadable
from tuner.data.files.write_rows import write_rows
from tuner.data.tokenize.data_file import DataFile
from tuner.data.tokenize.documents import DocumentMaker
from tuner.data.tokenize.settings import settings_of
from tuner.errors import DataError
from tuner.files import file_identity, sha256_of
from tuner.models.generate import stop_ids
from tuner.models.load import resolve_device
from tuner.models.load_adapted import load_result
from tuner.models.predict.bar import answer_bar
from tuner.models.predict.endpoint import EndpointModel
from tuner.models.predict.journal import Journal
from tuner.models.predict.local import Decoding, LocalModel
from tuner.models.predict.requests import Request, Requests, choose_shape, file_rows, read_requests
from tuner.progress import progress_counter

TUNED, BASE = "tuned", "base"
OURS = ("answer", "base_answer", "expected", "logprob", "logprobs", "base_logprob", "base_logprobs", "reason")
"""the columns that are added, those of them that there are"""
PREFIX = "model_"
"""before the names of all of them, where a row has one of them itself"""

SHOWN = 5
"""rows without an answer that are named"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictJob:
    """What is to be answered, by what, and where to."""

    rows: Path
    out: Path
    home: Path
    """the artifact of the result: its tokenizer, its generation settings"""
    model: Path
    adapter: Path | None
    base: Path | None
    """the model that was trained on, where its answers are wanted too"""
    kept: bool
    """whether a base in 4 or 8 bits stays so, with the adapter beside it"""
    content: str
    """the digest of what answers"""
    told: bool
    """whether the command says how rows are read"""
    logprobs: bool


def answer_file(job: PredictJob, config: View, say: Callable[[str], None]) -> dict[str, Any]:
    """Write `job.out`, going on from the answers of a command that was killed; returns facts. Raises
    DataError, ConfigError and StoreError.
    """
    before, began = file_identity(job.rows), time.monotonic()
    data = config.data
    file = DataFile(name=job.rows.name, path=job.rows, source=0, label="", apart=True, encoding=data.encoding)
    maker = _maker(job, config, file, say)
    with progress_counter("reading", "rows", say) as tick:
        requests = read_requests(
            file, maker, system=config.generation.system, skip=data.bad_rows == "skip", tick=tick
        )
    if not requests.every:
        raise DataError(f"{job.rows} has no rows, so there is nothing to answer.")
    asked = {row: one for row, one in enumerate(requests.every) if one.reason is None}
    with Journal(job.out, _identity(job, config, maker)) as journal:
        _ask(job, config, maker, asked, journal, say)
        if file_identity(job.rows) != before:
            raise DataError(f"{job.rows} was changed while it was answered. Run the same command again.")
        _write(job, maker, file, requests, journal.answers, say)
        journal.finished()
    tuned = journal.answers.get(TUNED, {})
    facts = {
        "rows": len(requests.every),
        "answered": sum("text" in answer for answer in tuned.values()),
        "tokens": sum(answer.get("tokens", 0) for answer in tuned.values()),
        "seconds": round(time.monotonic() - began, 1),
    }
    _tell(facts, requests, tuned, config.generation.max_new_tokens, say)
    return facts


def _maker(job: PredictJob, config: View, file: DataFile, say: Callable[[str], None]) -> DocumentMaker:
    settings = settings_of(config, job.home)
    shape = choose_shape(file.path, file.encoding, settings.sources[0].shape, told=job.told, say=say)
    source = replace(settings.sources[0], shape=shape, strict=False)
    return DocumentMaker(replace(settings, sources=(source,)))


def _identity(job: PredictJob, config: View, maker: DocumentMaker) -> dict[str, Any]:
    """What decides the answers, by the names that people know."""
    shape, generation = maker.settings.sources[0].shape, config.generation
    return {
        "the result of the run": job.content,
        "the file of rows": sha256_of(job.rows),
        "data.format": shape.format,
        "data.columns": dict(shape.columns),
        "data.roles": {role: list(words) for role, words in shape.roles.items()},
        "data.fill": dict(maker.settings.sources[0].fill),
        "--base": job.base is not None,
        "the base in 4 or 8 bits": job.kept,
        "--logprobs": job.logprobs,
        "predict.endpoint": config.predict.endpoint,
        "predict.model": config.predict.model,
        **{
            f"generation.{name}": getattr(generation, name)
            for name in ("system", "temperature", "top_p", "max_new_tokens", "seed")
        },
    }


def _ask(
    job: PredictJob,
    config: View,
    maker: DocumentMaker,
    asked: Mapping[int, Request],
    journal: Journal,
    say: Callable[[str], None],
) -> None:
    models = {TUNED: (job.model, job.adapter)} | ({BASE: (job.base, None)} if job.base else {})
    there = sum(len(journal.answers.get(model, {})) for model in models)
    total = len(asked) * len(models)
    if there:
        say(f"goes on: {there:,} of {total:,} answers are there")
    generation, predict = config.generation, config.predict
    seed = journal.choice("seed", lambda: randbits(32) if generation.seed is None else generation.seed)
    decoding = Decoding(
        stops=stop_ids(job.home, maker.template.stops),
        temperature=generation.temperature,
        top_p=generation.top_p,
        most=generation.max_new_tokens,
        seed=seed,
        logprobs=job.logprobs,
    )
    if config.machine.threads != "auto":
        torch.set_num_threads(config.machine.threads)
    with answer_bar("predict", total, there, say) as bar:
        for name, (directory, adapter) in models.items():
            if len(journal.answers.get(name, {})) < len(asked):
                model = (
                    EndpointModel(predict.endpoint, predict.model, decoding)
                    if predict.endpoint
                    else _load(job, config, directory, adapter, maker, decoding)
                )
                model.answer_all(
                    name, asked, journal, bar, None if predict.batch == "auto" else predict.batch
                )
                del model  # a second one finds the memory of the first


def _load(
    job: PredictJob,
    config: View,
    directory: Path,
    adapter: Path | None,
    maker: DocumentMaker,
    decoding: Decoding,
) -> LocalModel:
    model = load_result(
        directory,
        adapter,
        precision=config.algo.precision,
        quant=config.algo.quant,
        kept=job.kept,
        device=resolve_device(config.machine.device),
    )
    return LocalModel(model, maker.template.tokenizer, decoding, config.model.context)


def _write(
    job: PredictJob,
    maker: DocumentMaker,
    file: DataFile,
    requests: Requests,
    answers: Mapping[str, Mapping[int, Mapping[str, Any]]],
    say: Callable[[str], None],
) -> None:
    added = [_added(one, row, answers, job.logprobs) for row, one in enumerate(requests.every)]
    ours = [name for name in OURS if any(name in entry for entry in added)]
    names = {name: name for name in ours}
    if taken := [name for name in ours if name in requests.columns]:
        names = {name: f"{PREFIX}{name}" for name in ours}
        say(
            f"the rows have {' and '.join(taken)} themselves, so what is added is called "
            f"{', '.join(names.values())}"
        )
        if twice := [name for name in names.values() if name in requests.columns]:
            raise DataError(f"{job.rows} has columns called {' and '.join(twice)} already. Rename them.")
    source = maker.settings.sources[0]

    def rows() -> Iterator[dict[str, Any]]:
        for entry, (_, row) in zip(added, file_rows(file.path, file.encoding, source.shape), strict=True):
            yield _own(row) | {names[name]: entry[name] for name in ours if name in entry}

    with job.rows.open("rb") as stream:
        is_parquet = stream.read(4) == b"PAR1"
    columns = [*(requests.columns or ["messages"]), *names.values()]
    write_rows(job.out, rows(), columns, job.rows if is_parquet else None)


def _own(row: Any) -> dict[str, Any]:
    """What a row says itself."""
    if isinstance(row, dict):
        return row
    return {} if isinstance(row, Unreadable) else {"messages": row}


def _added(
    request: Request, row: int, answers: Mapping[str, Mapping[int, Mapping[str, Any]]], logprobs: bool
) -> dict[str, Any]:
    """What a row gets beside its own."""
    added: dict[str, Any] = {}
    reasons = [request.reason]
    for model, before in ((TUNED, ""), (BASE, "base_")):
        if model == BASE and model not in answers:
            continue
        answer = answers.get(model, {}).get(row, {})
        reasons.append(answer.get("reason"))
        added[f"{before}answer"] = answer.get("text")
        if logprobs:
            every = answer.get("logprobs")
            added[f"{before}logprob"] = sum(every) / len(every) if every else None
            added[f"{before}logprobs"] = every
    if request.expected is not None:
        added["expected"] = request.expected
    if why := next((reason for reason in reasons if reason), None):
        added["reason"] = why
    return added


def _tell(
    facts: Mapping[str, Any],
    requests: Requests,
    answers: Mapping[int, Mapping[str, Any]],
    most: int,
    say: Callable[[str], None],
) -> None:
    """What came of it, and what did not."""
    say(f"{facts['answered']:,} of {facts['rows']:,} rows answered, {facts['tokens']:,} tokens")
    places = {row: one.reason or answers.get(row, {}).get("reason") for row, one in enumerate(requests.every)}
    without = [(row, why) for row, why in places.items() if why]
    for row, why in without[:SHOWN]:
        say(f"no answer to row {row + 1}: {why}")
    if len(without) > SHOWN:
        say(f"no answer to {len(without) - SHOWN:,} more rows: their `reason` says why")
    if cut := sum(answer.get("ended") == "length" for answer in answers.values()):
        are = "answer ends" if cut == 1 else "answers end"
        say(f"{cut:,} {are} at generation.max_new_tokens={most} or at the context")
