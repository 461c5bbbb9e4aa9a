"""SIGTERM and Ctrl-C at random moments of commands that compute in their own process: each ends with 75, or
with the right result, or of the signal before it was listened to. Nothing half made is published.

The seed is printed; TUNER_TEST_SEED=N repeats it. `scripts/test --all` does three hundred stops.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import environment, tiny_words, write_rows

STOPS = 300 if os.environ.get("TUNER_TEST_ALL") else 8
SEED = int(os.environ.get("TUNER_TEST_SEED") or random.SystemRandom().randrange(10**6))
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def command(root: Path, words: Sequence[str], *, session: bool = False) -> "subprocess.Popen[str]":
    """Start a command that heeds Ctrl-C, in a `session` of its own or in ours."""
    return subprocess.Popen(
        [sys.executable, "-m", "tuner", *words, f"root={root}"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=session,
        # a suite that runs in the background ignores it, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture(scope="module")
def words(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model with a template of its own, and enough rows to be stopped among them; a bad one is skipped."""
    base = tmp_path_factory.mktemp("stops")
    shutil.copytree(tiny_model, base / "model")
    (base / "model" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    rows = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i} + {i}"}]}
        for i in range(3000)
    ]
    write_rows(base / "rows.jsonl", rows)
    return [
        *tiny_words(base / "model", base / "rows.jsonl"),
        "model/chat=tokenizer",
        "data.bad_rows=skip",
        "machine.workers=1",
    ]


def artifacts(root: Path) -> dict[str, bytes]:
    """The rows of each published artifact of tokenize."""
    found = sorted((root / "store").glob("tokenize-*/train.arrow"))
    return {path.parent.name: path.read_bytes() for path in found}


def test_a_stop_is_always_a_stop(words: list[str], tmp_path: Path) -> None:
    print("seed", SEED)
    dice = random.Random(SEED)
    root, run, sweep = tmp_path / "out", [*words, "until=tokenize"], ["-m", "data.seed=1,2"]
    for line in (run, [*sweep, *run]):
        process = command(root, line)
        _, said = process.communicate()
        assert process.returncode == 0, said
    whole = artifacts(root)
    assert len(whole) == 3
    plans = [["plan", *run], ["plan", *sweep, *run]]
    commands = [run, run, [*sweep, *run], *plans, ["status"], ["preview", *run], ["clean"]]
    for number in range(STOPS):
        line = commands[number % len(commands)]
        for directory in (root / "store").glob("tokenize-*"):
            shutil.rmtree(directory)
        began = time.monotonic()
        process = command(root, line)
        kind = dice.choice([signal.SIGTERM, signal.SIGINT])
        moment = dice.uniform(0.0, 2.5)
        try:
            out, said = process.communicate(timeout=moment)
        except subprocess.TimeoutExpired:
            process.send_signal(kind)
            out, said = process.communicate(timeout=120)
        told = f"seed {SEED}, stop {number}: {kind.name} after {moment:.3f} s of {line}\n{out}\n{said}"
        early = process.returncode == -kind or "KeyboardInterrupt" in said  # of Python, which starts
        assert process.returncode in (0, 75) or early, told
        assert time.monotonic() - began < moment + 60, told
        assert early or "Traceback" not in said, told
        for key, rows in artifacts(root).items():
            assert rows == whole[key], told
    process = command(root, run)
    _, said = process.communicate()
    assert process.returncode == 0, said
    assert all(whole[key] == rows for key, rows in artifacts(root).items())


SWALLOWS = """
import os, signal, weakref
from tuner.errors import Interrupted
from tuner.launch import signals

class Thing: pass

signals.listen()
thing = Thing()
callback = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGTERM))
del thing
for _ in range(1000): pass
try:
    signals.refuse_after_stop()
except Interrupted as stop:
    print(stop)
"""


def test_a_stop_that_nothing_can_raise_is_not_lost() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SWALLOWS], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "stopped by SIGTERM; run the same command again to continue.\n"
    assert done.stderr == ""
