"""The pipeline on stages of a few lines: what is skipped, what runs, and what the plan says of it."""

import hashlib
import json
import os
import threading
import time
from dataclasses import make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tuner.config.fields import identity
from tuner.config.schema import Algo, Config, Data, Machine, Model, Optim
from tuner.config.view import View, identity_fields
from tuner.errors import StageError
from tuner.pipeline.build import build_stage
from tuner.pipeline.execute import execute, redo_stages
from tuner.pipeline.find_run import find_run
from tuner.pipeline.plan import plan
from tuner.pipeline.reasons import differences
from tuner.pipeline.run import RunDirectory, all_runs, run_digest, run_name, store_of
from tuner.pipeline.stage import Context, Stage
from tuner.store.digests import json_digest
from tuner.store.references import leftovers, referenced


@pytest.fixture
def built() -> list[str]:
    return []


@pytest.fixture
def stages(built: list[str]) -> list[Stage]:
    """fetch_data → tokenize → train → convert → merge, each a line of text made of what is before it."""

    def made(ctx: Context, name: str, text: str) -> dict[str, Any]:
        built.append(name)
        (ctx.out / "text").write_text(
            text
            + "".join(
                f"[{(i.dir / 'text').read_text()}]"
                for n, i in sorted(ctx.inputs.items())
                if n != "fetch_data"
            ),
            encoding="utf-8",
        )
        return {"at": time.time_ns()}

    def fetch(ctx: Context) -> dict[str, Any]:
        built.append("fetch_data")
        return {}

    return [
        Stage(
            name="fetch_data",
            until="fetch",
            version=1,
            run=fetch,
            sources=lambda v: {"rows": Path(v.path)} if isinstance(v, Data) else {"rows": Path(v.data.path)},
            references=lambda _: True,
            by_content=True,
        ),
        Stage(
            name="tokenize",
            version=1,
            run=lambda c: made(
                c, "tokenize", f"{c.config.data.length}{c.inputs['fetch_data'].files['rows'].read_text()}"
            ),
            upstream=("fetch_data",),
        ),
        Stage(
            name="train",
            version=1,
            run=lambda c: made(c, "train", f"{c.config.algo.optim.lr}"),
            upstream=("tokenize",),
        ),
        Stage(
            name="convert",
            version=1,
            run=lambda c: made(c, "convert", "c"),
            upstream=("train",),
            product=lambda _: True,
        ),
        Stage(
            name="merge",
            version=1,
            run=lambda c: made(c, "merge", "m"),
            upstream=("convert",),
            product=lambda _: True,
        ),
    ]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "rows").write_text("hello", encoding="utf-8")
    return Config(root=str(tmp_path / "out"), data=Data(path=str(tmp_path / "rows")), model=Model(path="m"))


def look(config: Config, stages: list[Stage]) -> dict[str, tuple[str, str]]:
    return {
        step.stage.name: (step.state, step.why)
        for step in plan(config, stages, store_of(config), RunDirectory.of(config))
    }


def run(config: Config, stages: list[Stage]) -> list[str]:
    said: list[str] = []
    execute(config, stages, said.append)
    return said


ALL = ["fetch_data", "tokenize", "train", "convert", "merge"]


def test_everything_once_then_nothing(config: Config, stages: list[Stage], built: list[str]) -> None:
    assert {state for state, _ in look(config, stages).values()} == {"run"}
    run(config, stages)
    assert built == ALL
    said = run(config, stages)
    assert built == ALL
    assert [line.split() for line in said] == [[name, "done"] for name in ALL]
    assert {state for state, _ in look(config, stages).values()} == {"done"}


def test_a_changed_rate_runs_training_and_what_follows(
    config: Config, stages: list[Stage], built: list[str]
) -> None:
    run(config, stages)
    other = replace(config, algo=Algo(optim=Optim(lr=1e-4)))
    plans = look(other, stages)
    assert [state for state, _ in plans.values()] == ["done", "done", "run", "run", "run"]
    assert plans["train"][1] == f"algo.optim.lr 0.0002 → 0.0001 (against run {run_digest(config)})"
    assert plans["convert"][1].startswith("train changes")
    run(other, stages)
    assert built == [*ALL, "train", "convert", "merge"]


def local(config: Config, path: Path, **changes: Any) -> Config:
    """As `data=local data.path=…` makes it."""
    return replace(config, choices={"data": "local"}, data=Data(path=str(path)), **changes)


def test_reasons_are_told_against_runs_of_the_same_name_or_recipe(
    config: Config, stages: list[Stage], tmp_path: Path
) -> None:
    for name in ("latin.csv", "support.jsonl"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    support = local(config, tmp_path / "support.jsonl")
    run(local(config, tmp_path / "latin.csv", name="latin"), stages)
    assert {why for _, why in look(support, stages).values()} == {"never made"}
    other = Algo(optim=Optim(lr=1e-4))
    # of the same name
    assert look(replace(support, name="latin", algo=other), stages)["train"][1].startswith(
        "algo.optim.lr 0.0002 → 0.0001, tokenize changes (against run "
    )
    # of the same recipe, under another name; the nearest of several
    run(replace(support, name="first", algo=Algo(optim=Optim(lr=5e-4))), stages)
    run(replace(support, name="second"), stages)
    digest = run_digest(support)
    assert look(replace(support, name="third", algo=other), stages)["train"][1] == (
        f"algo.optim.lr 0.0002 → 0.0001 (against run {digest})"
    )
    # what the run's own directory has comes before all others, however near they are
    (tmp_path / "support.jsonl").write_text("edited", encoding="utf-8")
    assert look(support, stages)["fetch_data"] == ("run", "the content of rows changed")


def test_reasons_name_files_as_a_person_does() -> None:
    one, two = {"0000-b.jsonl": "1" * 64, "0001-a.jsonl": "2" * 64}, {"a.jsonl": "2" * 64}
    assert differences({"sources": one}, {"sources": two}) == ["b.jsonl is gone"]
    swapped = {"0000-a.jsonl": "2" * 64, "0001-b.jsonl": "1" * 64}
    assert differences({"sources": one}, {"sources": swapped}) == ["the order of the files changed"]
    edited = one | {"0001-a.jsonl": "3" * 64}
    assert differences({"sources": one}, {"sources": edited}) == ["the content of a.jsonl changed"]


def test_what_was_trained_on_an_edited_file_stays_as_a_run(
    config: Config, stages: list[Stage], tmp_path: Path
) -> None:
    config = replace(config, name="support", note="the first try")
    run(config, stages)
    before, store = RunDirectory.of(config), store_of(config)
    had = {name: before.path(name).resolve() for name in ALL}
    sha = hashlib.sha256(b"hello").hexdigest()
    (tmp_path / "rows").write_text("edited", encoding="utf-8")
    said = run(replace(config, until="tokenize"), stages)
    earlier = find_run(tmp_path / "out", f"support+data.{sha[:6]}")
    assert any(f"stays as {earlier.dir.name}; remove it with" in line for line in said)
    assert {name: earlier.path(name).resolve() for name in ALL} == had
    assert earlier.config().note == f"the first try rows {sha[:12]}"
    assert earlier.digest == run_digest(earlier.config()) != before.digest
    # the run itself no longer shows the results of rows that it does not have
    assert {link.name for link in before.dir.iterdir() if link.is_symlink()} == {"fetch_data", "tokenize"}
    assert look(config, stages)["train"][1] == f"tokenize changes (against run {earlier.digest})"
    run(config, stages)
    assert find_run(tmp_path / "out", "last").dir == before.dir
    assert list(leftovers(store, referenced(store, tmp_path / "out"))) == []
    # back again: nothing is made, and each content has its run
    (tmp_path / "rows").write_text("hello", encoding="utf-8")
    assert {state for state, _ in look(config, stages).values()} == {"done"}
    run(config, stages)
    assert {run.name.partition(".")[0] for run in all_runs(tmp_path / "out")} == {"support", "support+data"}
    assert len(list(all_runs(tmp_path / "out"))) == 3


@pytest.mark.parametrize("how", ["touch", "untrained", "version"])
def test_nothing_is_kept_apart_without_an_edited_file_and_a_result(
    config: Config, stages: list[Stage], tmp_path: Path, how: str
) -> None:
    run(replace(config, until="tokenize" if how == "untrained" else None), stages)
    if how == "touch":
        os.utime(tmp_path / "rows")
    elif how == "untrained":
        (tmp_path / "rows").write_text("edited", encoding="utf-8")
    else:
        stages = [replace(stage, version=2) for stage in stages]
    run(config, stages)
    assert [run.dir for run in all_runs(tmp_path / "out")] == [RunDirectory.of(config).dir]


def test_machine_name_and_note_run_nothing(config: Config, stages: list[Stage], built: list[str]) -> None:
    run(config, stages)
    run(replace(config, machine=Machine(threads=7, save_every=3), name="other", note="x"), stages)
    assert built == ALL


def test_seed_and_variant_keep_the_data(config: Config, stages: list[Stage]) -> None:
    run(config, stages)
    for other in (replace(config, seed=1), replace(config, variant="again")):
        assert [state for state, _ in look(other, stages).values()] == ["done", "done", "run", "run", "run"]


def test_content_counts_and_times_do_not(
    config: Config, stages: list[Stage], built: list[str], tmp_path: Path
) -> None:
    run(config, stages)
    os.utime(tmp_path / "rows")
    assert {state for state, _ in look(config, stages).values()} == {"done"}
    (tmp_path / "rows").write_text("other", encoding="utf-8")
    plans = look(config, stages)
    assert [state for state, _ in plans.values()] == ["run"] * 5
    assert plans["fetch_data"][1] == "the content of rows changed"
    assert plans["tokenize"][1] == "fetch_data changes"
    (tmp_path / "rows").write_text("hello", encoding="utf-8")
    run(config, stages)
    assert built == ALL


def test_a_moved_file_runs_nothing(
    config: Config, stages: list[Stage], built: list[str], tmp_path: Path
) -> None:
    run(config, stages)
    (tmp_path / "rows").rename(tmp_path / "moved")
    moved = replace(config, data=Data(path=str(tmp_path / "moved")))
    run(moved, stages)
    assert built == ALL
    assert run_digest(moved) != run_digest(config)


@pytest.mark.parametrize("how", ["flip", "truncate", "remove", "manifest"])
@pytest.mark.parametrize("stage", ["tokenize", "train", "merge"])
def test_damage_is_reported_and_rebuilt(
    config: Config, stages: list[Stage], built: list[str], stage: str, how: str
) -> None:
    run(config, stages)
    path = RunDirectory.of(config).dir / stage / ("manifest.json" if how == "manifest" else "text")
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + (b"" if how in ("truncate", "manifest") else b"?"))
    state, why = look(config, stages)[stage]
    assert state == "run"
    assert why.startswith("damaged: ")
    said = run(config, stages)
    assert built == [*ALL, stage]  # the same bytes again: what was made from them stays
    assert any("damaged" in line for line in said)


def test_what_was_made_from_other_bytes_is_rebuilt(
    config: Config, stages: list[Stage], built: list[str]
) -> None:
    run(config, stages)
    store, key = store_of(config), RunDirectory.of(config).key("tokenize") or ""
    old = store.find(key)
    assert old is not None
    store.begin(key, {}, resume=False).joinpath("text").write_text(
        "as if built by a machine that rounds otherwise"
    )
    store.publish(key, dict(old.manifest), ())
    plans = look(config, stages)
    assert plans["tokenize"][0] == "done"
    assert plans["train"] == ("run", "made from other bytes of tokenize")
    run(config, stages)
    assert built == [*ALL, "train", "convert", "merge"]


def test_rot_with_an_unchanged_stat_is_found_before_use(
    config: Config, stages: list[Stage], built: list[str]
) -> None:
    run(config, stages)
    path = RunDirectory.of(config).dir / "tokenize" / "text"
    manifest = path.with_name("manifest.json")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    value = json.loads(manifest.read_text())
    stat = path.stat()
    # the disk rotted: the stat says nothing
    value["files"]["text"]["times"] = [stat.st_mtime_ns, stat.st_ctime_ns]
    manifest.write_text(json.dumps(value))
    other = replace(config, algo=Algo(optim=Optim(lr=1e-4)))
    assert look(other, stages)["tokenize"][0] == "done"
    said = run(other, stages)
    assert any("tokenize     damaged: text has other content" in line for line in said)
    assert built == [*ALL, "tokenize", "train", "convert", "merge"]


def test_what_was_removed_is_not_rebuilt_for_its_own_sake(
    config: Config, stages: list[Stage], built: list[str]
) -> None:
    run(config, stages)
    store, made = store_of(config), RunDirectory.of(config)
    for name in ("tokenize", "train"):
        store.trash(made.key(name) or "")
    assert [state for state, _ in look(config, stages).values()] == ["done", "skip", "skip", "done", "done"]
    run(config, stages)
    assert built == ALL
    store.trash(made.key("merge") or "")
    run(config, stages)
    assert built == [*ALL, "merge"]
    store.trash(made.key("convert") or "")
    run(config, stages)
    assert built == [*ALL, "merge", "tokenize", "train", "convert"]


def test_jobs_that_share_a_stage_redo_it_once(config: Config, stages: list[Stage], built: list[str]) -> None:
    run(config, stages)
    redone: set[str] = set()
    again = replace(config, redo="train")
    for _ in range(2):
        redo_stages(again, stages, store_of(config), RunDirectory.of(config), redone, print)
        run(config, stages)
        assert built == [*ALL, "train", "convert", "merge"]
    assert len(list((store_of(config).root / ".trash").iterdir())) == 3


def test_who_waited_does_not_wait_for_readers(config: Config, stages: list[Stage], built: list[str]) -> None:
    """Two jobs need the same stage: when one has built it and reads it for hours, the other goes on."""
    store, directory = store_of(config), RunDirectory.of(config)
    run(replace(config, until="fetch"), stages)
    stale = {step.stage.name: step for step in plan(config, stages, store, directory)}
    run(config, stages)
    said: list[str] = []
    with store.shared([stale["tokenize"].key or ""]):
        arguments = (stale["tokenize"], stale, store, directory, said.append)
        waiter = threading.Thread(target=build_stage, args=arguments, daemon=True)
        waiter.start()
        waiter.join(10)
        assert not waiter.is_alive()
    assert built == ALL
    assert not [line for line in said if "waiting" in line]


def test_a_plan_shows_redo(config: Config, stages: list[Stage], built: list[str]) -> None:
    run(config, stages)
    steps = plan(config, stages, store_of(config), RunDirectory.of(config), redo="train")
    assert [(step.state, step.why) for step in steps] == [
        ("done", ""),
        ("done", ""),
        *[("run", "redo=train")] * 3,
    ]


def test_until(config: Config, stages: list[Stage], built: list[str]) -> None:
    run(replace(config, until="fetch"), stages)
    run(replace(config, until="train"), stages)
    assert built == ALL[:3]
    assert RunDirectory.of(config).dir == RunDirectory.of(replace(config, until="train")).dir


def test_a_stage_that_fails_leaves_no_trace(config: Config, stages: list[Stage], built: list[str]) -> None:
    def fail(ctx: Context) -> dict[str, Any]:
        (ctx.out / "half").write_text("x")
        raise StageError("no")

    broken = [replace(stage, run=fail) if stage.name == "train" else stage for stage in stages]
    with pytest.raises(StageError, match="no"):
        run(config, broken)
    assert not [path for path in (store_of(config).root / ".partial").iterdir()]
    run(config, stages)
    assert built == ALL


def test_a_view_refuses_undeclared_fields() -> None:
    view = View(Config(), "tokenize")
    assert view.data.length == 2048
    with pytest.raises(AttributeError, match=r"algo\.optim\.lr is not declared for the stage tokenize"):
        _ = view.algo.optim.lr
    with pytest.raises(AttributeError, match="is not declared"):
        _ = view.seed


def test_a_left_out_value_keeps_fingerprints() -> None:
    """A field that is added later, at its left-out value, changes no hash; at another value it does."""
    wider = make_dataclass(
        "wider",
        [("noise", float, identity("train", default=0.0, left_out=0.0))],
        bases=(Algo,),
        frozen=True,
        kw_only=True,
    )
    old, new = Config(), replace(Config(), algo=wider())
    assert json_digest(identity_fields(old, "train")) == json_digest(identity_fields(new, "train"))
    assert run_digest(old) == run_digest(new)
    louder = replace(Config(), algo=wider(noise=5.0))
    assert json_digest(identity_fields(louder, "train")) != json_digest(identity_fields(old, "train"))
    assert differences(
        {"inputs": identity_fields(old, "train")}, {"inputs": identity_fields(louder, "train")}
    ) == ["algo.noise (none) → 5"]


def test_a_version_bump_is_explained(config: Config, stages: list[Stage]) -> None:
    run(config, stages)
    bumped = [replace(stage, version=2) if stage.name == "train" else stage for stage in stages]
    assert look(config, bumped)["train"] == ("run", "train version 1 → 2")


def test_large_files_are_pending(
    config: Config, stages: list[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuner.pipeline.plan_stage.HASH_AT_ONCE", 3)
    assert look(config, stages)["fetch_data"] == ("run", "hash pending: rows")
    assert look(config, stages)["tokenize"] == ("run", "after fetch_data")
    run(config, stages)


def test_run_names(config: Config) -> None:
    chosen = replace(
        config,
        choices={"model": "local", "algo": "lora", "data": "local"},
        model=Model(path="/models/Qwen2.5 (7B)/"),
    )
    assert run_name(chosen).startswith("Qwen2.5_(7B)-lora-rows-")
    assert run_name(replace(chosen, name="客服 v3")).startswith("客服_v3-")
