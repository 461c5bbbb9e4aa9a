"""`predict`: every row of a file answered, through the front door."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tuner as api
from tests.conftest import Tuner, environment, linked, write_rows
from tuner.errors import ConfigError
from tuner.models.predict.journal import journal_path

MOST = 12
WORDS = (f"generation.max_new_tokens={MOST}", "machine=cpu")


def asked(count: int) -> list[dict[str, Any]]:
    """Conversations of many lengths; every third brings its answer."""
    rows: list[dict[str, Any]] = []
    for number in range(count):
        said = {"role": "user", "content": "What is " + " plus ".join(map(str, range(number % 7 + 1))) + "?"}
        answer = [{"role": "assistant", "content": f"{number}."}] if number % 3 == 0 else []
        before = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好！"}]
        rows.append({"id": number, "messages": [*(before if number % 5 == 0 else []), said, *answer]})
    return rows


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    return tmp_path / "outputs"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def by_transformers(home: Path, rows: list[dict[str, Any]], model_dir: Path | None = None) -> list[str]:
    """What the model in `home`, or another with the same tokenizer, answers to each row, one by one."""
    tokenizer = AutoTokenizer.from_pretrained(home)
    model = AutoModelForCausalLM.from_pretrained(model_dir or home, dtype=torch.float32)
    found = []
    for row in rows:
        turns = row["messages"]
        turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        ids = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=MOST)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).rstrip("\ufffd"))
    return found


def test_answers_are_those_of_transformers_on_the_merged_model(
    tuner: Tuner, root: Path, tmp_path: Path, tiny_model: Path
) -> None:
    rows = asked(40)
    write_rows(tmp_path / "in.jsonl", rows)
    done = tuner("predict", "last", "in.jsonl", "out.jsonl", "--base", "--logprobs", *WORDS)
    assert done.out == "out.jsonl\n"
    assert "40 of 40 rows answered" in done.err
    found = read(tmp_path / "out.jsonl")
    assert [{"id": row["id"], "messages": row["messages"]} for row in found] == rows
    assert [row["answer"] for row in found] == by_transformers(linked(root, "merge"), rows)
    assert [row["base_answer"] for row in found] == by_transformers(linked(root, "merge"), rows, tiny_model)
    assert [row.get("expected") for row in found] == [f"{n}." if n % 3 == 0 else None for n in range(40)]
    for row in found:
        assert row["logprob"] == pytest.approx(sum(row["logprobs"]) / len(row["logprobs"]))
        assert max(row["logprobs"] + row["base_logprobs"]) <= 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "outputs"]


@pytest.mark.slow
def test_a_killed_command_goes_on_and_gives_the_same_file(root: Path, tmp_path: Path) -> None:
    """Whatever the number of rows in a batch, in fp32."""
    write_rows(tmp_path / "in.jsonl", asked(400))
    words = ["in.jsonl", "out.jsonl", "predict.batch=4", *WORDS]
    command = [sys.executable, "-m", "tuner", "predict", "last", *words]
    journal, lines = journal_path(tmp_path / "out.jsonl"), 2
    for _ in range(2):
        with subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True
        ) as child:
            lines += 15
            while child.poll() is None and (not journal.is_file() or _lines(journal) < lines):
                time.sleep(0.005)
            assert child.poll() is None
            os.killpg(child.pid, signal.SIGKILL)
        assert not (tmp_path / "out.jsonl").exists()
        before = _lines(journal)
        with journal.open("ab") as file:
            file.write(b'{"model": "tuned", "rows": [[3, {"te')  # as a kill in the middle of a line leaves it
    last = subprocess.run(
        command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
    )
    assert f"goes on: {4 * (before - 3)} of 400 answers are there" in last.stderr
    assert not journal.exists()
    api.predict("last", tmp_path / "in.jsonl", tmp_path / "whole.jsonl", WORDS, root=root)
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(read(tmp_path / "out.jsonl")) == 400


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def test_tables_keep_their_columns_and_say_why_a_row_has_no_answer(root: Path, tmp_path: Path) -> None:
    rows = [
        ["nr", "question", "answer"],
        [7, "1 plus 1?", "2"],
        [8, "plus " * 600, ""],
        [9, "你好"],
        [10, "Hi", ""],
    ]
    with (tmp_path / "in.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    columns = ("data.format=alpaca", "data.columns.instruction=question", "data.columns.output=answer")
    words = (*WORDS, *columns, "data.bad_rows=skip")
    api.predict("last", tmp_path / "in.csv", tmp_path / "out.csv", words, root=root)
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    assert list(found[0]) == ["nr", "question", "answer", "model_answer", "model_expected", "model_reason"]
    assert [row["nr"] for row in found] == ["7", "8", "", "10"]
    assert [row["model_expected"] for row in found] == ["2", "", "", ""]
    assert [bool(row["model_answer"]) for row in found] == [True, False, False, True]
    assert found[1]["model_reason"].endswith("tokens, and the model's context is 512")
    assert found[2]["model_reason"] == "in line 4: 2 cells, where the first line names 3 columns"


def test_what_can_not_be_done_is_refused_before_any_work(root: Path, tmp_path: Path) -> None:
    rows = tmp_path / "in.jsonl"
    write_rows(rows, asked(2))
    for words, place, why in (
        (WORDS, tmp_path / "out.xlsx", "the ending says in which format"),
        (WORDS, rows, "already exists, and nothing is overwritten"),
        (WORDS, tmp_path / "no" / "out.csv", "There is no directory"),
        (["data.length=9"], tmp_path / "b.csv", "data.length says nothing of how rows are read"),
        (["algo.r=9"], tmp_path / "b.csv", "decides what was trained"),
    ):
        with pytest.raises(ConfigError, match=why):
            api.predict("last", rows, place, words, root=root)
    with pytest.raises(ConfigError, match=r"nowhere.jsonl is not there"):
        api.predict("last", tmp_path / "nowhere.jsonl", tmp_path / "b.csv", root=root)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "outputs"]


class Server:
    """A server of OpenAI's chat completions with a real model behind it, which has a bad moment every third
    time.
    """

    def __init__(self, home: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(home)
        self.model = AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32)
        self.asked: list[dict[str, Any]] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.tell(200, {"object": "list", "data": [{"id": "it", "object": "model"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.asked.append({"path": self.path, **body})
                    if len(outer.asked) % 3 == 0:
                        self.tell(503, {"error": {"message": "busy"}})
                    else:
                        self.tell(*outer.answer(body))

            def tell(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        ids = self.tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        if ids.shape[1] > 512:
            return 400, {"error": {"message": "maximum context length is 512"}}
        out = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=body["max_tokens"],
            output_logits=True,
            return_dict_in_generate=True,
        )
        fresh = out.sequences[0, ids.shape[1] :]
        logs = [float(one[0].log_softmax(-1)[at]) for one, at in zip(out.logits, fresh, strict=True)]
        ended = int(fresh[-1]) == self.tokenizer.eos_token_id
        text = self.tokenizer.decode(fresh, skip_special_tokens=True).rstrip("\ufffd")
        choice = {
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop" if ended else "length",
            "logprobs": {"content": [{"logprob": one} for one in (logs[:-1] if ended else logs)]},
        }
        return 200, {"choices": [choice], "usage": {"completion_tokens": len(fresh)}}


def test_an_endpoint_gives_the_answers_of_the_weights(root: Path, tmp_path: Path) -> None:
    rows = asked(20)
    rows.append({"id": 20, "messages": [{"role": "user", "content": "plus " * 600}]})
    write_rows(tmp_path / "in.jsonl", rows)
    server = Server(linked(root, "merge"))
    try:
        for out, words in (("served.jsonl", [f"predict.endpoint={server.address}"]), ("own.jsonl", [])):
            api.predict(
                "last", tmp_path / "in.jsonl", tmp_path / out, [*WORDS, *words], logprobs=True, root=root
            )
    finally:
        server.http.shutdown()
        server.http.server_close()
    served, own = read(tmp_path / "served.jsonl"), read(tmp_path / "own.jsonl")
    assert [row["answer"] for row in served] == [row["answer"] for row in own]
    assert [row.get("expected") for row in served] == [row.get("expected") for row in own]
    for one, other in zip(served[:-1], own[:-1], strict=True):
        assert one["logprobs"] == pytest.approx(other["logprobs"], abs=1e-4)
    assert served[-1]["reason"] == ("the endpoint answers with the status 400: maximum context length is 512")
    body = server.asked[0]
    assert (body["path"], body["model"], body["temperature"], body["max_tokens"]) == (
        "/v1/chat/completions",
        "it",
        0.0,
        MOST,
    )
    with pytest.raises(ConfigError, match="is no address"):
        api.predict(
            "last", tmp_path / "in.jsonl", tmp_path / "b.csv", "predict.endpoint=localhost:80", root=root
        )
