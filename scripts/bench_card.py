"""The card's command at full size, from a hub on this machine: scripts/bench card --tokenizer DIR --rows FILE
[--steps 20] [word …]

A random InternLM2-1.8B is written in its own layout and served, with the tokenizer in DIR and the
OpenAssistant messages of FILE (JSON lines), by a server that speaks the hub's protocol. Then a shell would
see just this: the plan; the command, all its stages; the command again, which does nothing; and both once
more from the training on, under ZeRO-2, on DeepSpeed. The log goes to card.log, without the ends of long
lines, as a random model's answers are. The first command that fails is the last.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TextIO

from bench_models import SIZES, write_model

from tests.hub.server import Hub

MODEL, ROWS = "internlm/internlm2-1_8b", "OpenAssistant/oasst1"
WIDTH = 160
"""of a line of the log, in characters"""
CARD = ["model=internlm2_1_8b", "algo=qlora", "data=oasst1"]
COLUMNS = (
    "message_id",
    "parent_id",
    "text",
    "role",
    "lang",
    "review_count",
    "review_result",
    "deleted",
    "rank",
    "synthetic",
    "message_tree_id",
    "tree_state",
)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokenizer", type=Path, required=True)
    options.add_argument("--rows", type=Path, required=True)
    options.add_argument("--size", choices=SIZES, default="1.8B")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--log", type=Path, default=Path("card.log"))
    options.add_argument(
        "--home", type=Path, help="where the run stays, for more to be measured on it; else it goes"
    )
    options.add_argument(
        "words", nargs="*", help="more of the command line, for a size that is not the card's own"
    )
    wished = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Hub() as hub:
        home = wished.home or Path(scratch)
        home.mkdir(parents=True, exist_ok=True)
        hub.add(MODEL, repository(home / "original", wished.size, wished.tokenizer), kind="models")
        hub.add(ROWS, rows(wished.rows))
        command = [*CARD, f"algo.steps={wished.steps}", *wished.words]
        zero = [*command, "machine.zero=2"]
        with wished.log.open("w", encoding="utf-8") as log:
            for words in (["plan", *command], command, command, [*zero, "redo=train"], zero):
                if code := shell(words, home, hub, log):
                    sys.exit(code)


def repository(directory: Path, size: str, tokenizer: Path) -> dict[str, bytes]:
    """The files of the model's repository."""
    write_model(directory, SIZES[size], native=False)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (directory / name).write_bytes((tokenizer / name).read_bytes())
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def rows(path: Path) -> dict[str, bytes]:
    """The data set as its repository holds it: one row a message, in Parquet."""
    from pyarrow import Table, parquet

    messages = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    buffer = io.BytesIO()
    parquet.write_table(
        Table.from_pylist([{name: message[name] for name in COLUMNS} for message in messages]), buffer
    )
    return {"data/train-00000-of-00001-b42a775f407cee45.parquet": buffer.getvalue()}


def shell(words: list[str], home: Path, hub: Hub, log: TextIO) -> int:
    """One command in `home`, with what it says in the log, each line after the seconds since it began;
    returns its exit status.
    """

    def write(line: str) -> None:
        for out in (log, sys.stdout):
            out.write(line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…\n")
            out.flush()

    began = time.monotonic()
    command = [sys.executable, "-m", "tuner", *words]
    environment = {
        **os.environ,
        **hub.env,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    del environment["HF_HUB_OFFLINE"]
    write(f"$ python -m tuner {' '.join(words)}\n")
    with subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            write(f"{time.monotonic() - began:6.1f}  {line}")
    write(f"[exit {process.returncode}, {time.monotonic() - began:.1f} s]\n\n")
    return process.returncode


if __name__ == "__main__":
    main()
