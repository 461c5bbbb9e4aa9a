"""A conversation with a run: the same ids as in training, in a terminal and through a pipe."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pexpect
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import environment
from tests.models.talkers import moody, parrot, put
from tests.models.tiny import tiny_adapter
from tuner.cli.chat_session import chat
from tuner.config.schema import Config
from tuner.data.chat.template import compile_template
from tuner.data.conversation import Conversation, Message
from tuner.data.tokenizer.load import load_vocabulary
from tuner.errors import ConfigError
from tuner.models.checkpoint.config_files import chat_with_system
from tuner.models.generate import Dialogue
from tuner.models.lora.merge import merge_adapter
from tuner.pipeline.inherit import load_config
from tuner.pipeline.plan import settle_from_run
from tuner.pipeline.run import RunDirectory, all_runs, store_of
from tuner.stages import STAGES


def settled(run: RunDirectory) -> Config:
    """The run's config with the chat template that it was trained in."""
    config = load_config(run)
    return settle_from_run(config, STAGES, store_of(config), run)


ASKED = ["What is 1 plus 2?", "你好 🙂", "and  two spaces, é́"]


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> RunDirectory:
    """A copy of the finished run. Its merged model is a directory of its own and says something else to
    every conversation.
    """
    shutil.copytree(finished, tmp_path / "outputs", symlinks=True)
    (found,) = all_runs(tmp_path / "outputs")
    for stage in ("merge", "convert"):
        made = found.path(stage).resolve()
        found.path(stage).unlink()
        shutil.copytree(made, found.path(stage))
    put(moody(load_vocabulary(found.path("merge")).tokenizer), found.path("merge"))
    return found


@pytest.fixture
def say(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    """Chat through a pipe: what came on standard output, and on standard error."""

    def call(*lines: str | bytes, base: Path | None = None, **generation: Any) -> tuple[str, str]:
        config = settled(run)
        generation = {"max_new_tokens": 12} | generation
        typed = b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="utf-8"))
        capfd.readouterr()
        assert chat(run, replace(config, generation=replace(config.generation, **generation)), base) == 0
        done = capfd.readouterr()
        return done.out, done.err

    return call


def answers(home: Path, questions: list[str], *, system: str | None = None, most: int = 12) -> list[str]:
    """What the model in `home` answers in one conversation, by transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(home)
    model = AutoModelForCausalLM.from_pretrained(home, dtype=torch.float32)
    messages = [{"role": "system", "content": system}] if system is not None else []
    found = []
    for question in questions:
        messages.append({"role": "user", "content": question})
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
        )
        out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=most)
        found.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).replace("\ufffd", ""))
        messages.append({"role": "assistant", "content": found[-1]})
    return found


def shown(text: str) -> str:
    """An answer on a terminal: without what would move the cursor."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)


@pytest.mark.parametrize("system", [None, "你是一个助手"])
def test_the_ids_are_those_of_a_training_row_and_of_the_artifacts_template(
    run: RunDirectory, system: str | None
) -> None:
    home, config = run.path("merge"), settled(run)
    template = compile_template(
        chat_with_system(config.model.chat, config.data.system), load_vocabulary(home)
    )
    dialogue = Dialogue(template, system)
    theirs = AutoTokenizer.from_pretrained(home)
    row = [] if system is None else [Message(role="system", content=system)]
    for question, answer in zip(ASKED, ["3.", "\n你好！\n", " "], strict=True):
        ids = dialogue.prompt(question)
        row.append(Message(role="user", content=question))
        jinja = [{"role": message.role, "content": message.content} for message in row]
        # the template of serving engines knows no border there
        if not any(message.content.startswith("\n") for message in row):
            assert ids == theirs.apply_chat_template(jinja, add_generation_prompt=True, return_dict=False)
        row.append(Message(role="assistant", content=answer, trained=True))
        encoded = template.encode([Conversation(messages=tuple(row))])
        assert encoded.ids[: len(ids)].tolist() == ids
        if answer.strip():
            assert encoded.trained[len(ids)]
        dialogue.turns.append((question, answer))


def test_through_a_pipe_each_line_is_a_question_and_only_answers_come_out(
    run: RunDirectory, say: Callable[..., tuple[str, str]]
) -> None:
    expected = answers(run.path("merge"), ASKED)
    assert len(set(expected)) == 3
    out, err = say(*ASKED)
    assert out == "".join(shown(answer) + "\n" for answer in expected)
    assert err.startswith(
        f"{run.dir.name}: step 6, the merged model\non cpu in float32; /help lists the commands, /exit "
        "leaves\n"
    )
    assert say(ASKED[0], "", "/exit", ASKED[1])[0] == shown(expected[0]) + "\n"


def test_a_report_that_was_computed_elsewhere_is_said(
    run: RunDirectory, say: Callable[..., tuple[str, str]]
) -> None:
    manifest = json.loads((run.path("evaluate") / "manifest.json").read_text(encoding="utf-8"))
    made = run.path("evaluate").resolve()
    run.path("evaluate").unlink()
    shutil.copytree(made, run.path("evaluate"))
    manifest["facts"] |= {"device": "cuda", "compute": "bfloat16"}
    (run.path("evaluate") / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert (
        "on cpu in float32; the report's answers are in bfloat16 on cuda, and may differ; /help lists"
        in say("Hi")[1]
    )


def test_undo_reset_and_system(run: RunDirectory, say: Callable[..., tuple[str, str]]) -> None:
    home, (a, b, c) = run.path("merge"), ASKED
    first, second = answers(home, [a, b])
    third, other = answers(home, [a, c])[1], answers(home, [c], system="Be kind.")[0]
    assert len({second, third, other}) == 3
    out, err = say(
        a,
        b,
        "/undo",
        c,
        "/undo",
        b,
        "/reset",
        "/undo",
        a,
        "/reset",
        "/system Be kind.",
        c,
        "/system",
        "/help",
        "/uno",
    )
    assert out == "".join(shown(answer) + "\n" for answer in (first, second, third, second, first, other))
    assert f"forgotten: {b}" in err
    assert "a new conversation\nthere is nothing to undo\n" in err
    assert err.count("system prompt: Be kind.\n") == 2
    assert "/uno is not a command. The commands are:\n/undo" in err
    assert say(c, system="Be kind.")[0] == shown(other) + "\n"


def test_without_a_merged_model_it_is_the_adapter_on_its_base(
    run: RunDirectory, say: Callable[..., tuple[str, str]], tmp_path: Path
) -> None:
    convert, base, merged = run.path("convert"), tmp_path / "base", tmp_path / "merged"
    moody(load_vocabulary(convert).tokenizer).save_pretrained(base)
    tiny_adapter(base).save_pretrained(tmp_path / "adapter")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(tmp_path / "adapter" / name, convert / name)
    shutil.copytree(run.path("merge"), merged)
    merge_adapter(base, convert, merged, dtype="F32")  # as the run has algo.precision=fp32
    shutil.rmtree(run.path("merge"))
    expected = answers(merged, ASKED)
    assert expected != answers(base_with_sidecars(base, convert), ASKED)
    out, err = say(*ASKED, base=base)
    assert out == "".join(shown(answer) + "\n" for answer in expected)
    assert "step 6, the adapter on its base" in err
    for missing in (None, tmp_path / "gone"):
        with pytest.raises(ConfigError, match="but its base model is missing"):
            say("Hi", base=missing)
    shutil.rmtree(convert)
    with pytest.raises(ConfigError, match=f"python -m tuner convert {run.digest}"):
        say("Hi")


def base_with_sidecars(base: Path, convert: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copyfile(convert / name, base / name)
    return base


def test_a_merged_model_of_a_step_converted_before_is_passed_over(
    run: RunDirectory, say: Callable[..., tuple[str, str]], tiny_model: Path
) -> None:
    manifest = json.loads((run.path("merge") / "manifest.json").read_text(encoding="utf-8"))
    manifest["upstream"]["convert"] = "0" * 64
    (run.path("merge") / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert "the adapter on its base" in say("Hi", base=tiny_model)[1]


def test_a_full_context_is_said_and_can_be_left(
    run: RunDirectory, say: Callable[..., tuple[str, str]]
) -> None:
    put(moody(load_vocabulary(run.path("merge")).tokenizer, positions=64), run.path("merge"))
    expected = answers(run.path("merge"), [ASKED[0]])[0]
    out, err = say("long " * 40, ASKED[0], "/reset", ASKED[0], max_new_tokens=12)
    assert out == (shown(expected) + "\n") * 2
    assert re.search(
        r"With this question the conversation has \d+ tokens, and the model's context is 64: /undo or /reset"
        r" makes room",
        err,
    )
    out, err = say(ASKED[0], ASKED[0], max_new_tokens=200)
    assert "The answer ends here: the model's context is 64 tokens" in err
    assert "With this question" in err
    assert "The answer ends here, at generation.max_new_tokens=2." in say(ASKED[0], max_new_tokens=2)[1]


def test_a_seed_gives_the_same_conversation(say: Callable[..., tuple[str, str]]) -> None:
    first = say(*ASKED, temperature=1.0, seed=1)[0]
    assert first == say(*ASKED, temperature=1.0, seed=1)[0]
    assert first != say(*ASKED, temperature=1.0, seed=2)[0]


def test_a_model_can_not_command_the_terminal_and_bad_bytes_are_no_crash(
    run: RunDirectory, say: Callable[..., tuple[str, str]]
) -> None:
    put(
        parrot(load_vocabulary(run.path("merge")).tokenizer, "é\x1b[2J\r\x07\t🙂".encode() + b"\xfe"),
        run.path("merge"),
    )
    assert say(b"\xff\xfe broken", "Hi", max_new_tokens=50)[0] == "é[2J\t🙂\n" * 2


@pytest.fixture
def terminal(run: RunDirectory, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """`chat` in a real terminal."""
    children = []

    def call(*words: str, env: dict[str, str] | None = None) -> Any:
        line = [
            "-m",
            "tuner",
            "chat",
            run.name,
            f"root={tmp_path / 'outputs'}",
            "generation.max_new_tokens=12",
            *words,
        ]
        settings = environment({"TERM": "dumb", **(env or {})})
        children.append(
            pexpect.spawn(
                sys.executable, line, env=settings, encoding="utf-8", timeout=60, dimensions=(40, 200)
            )
        )
        children[-1].expect("/exit leaves\r\n> ")
        return children[-1]

    yield call
    for child in children:
        child.close(force=True)


def on_screen(text: str) -> str:
    return shown(text).replace("\n", "\r\n")


def test_in_a_terminal_three_turns_then_exit(run: RunDirectory, terminal: Callable[..., Any]) -> None:
    expected = answers(run.path("merge"), ASKED)
    child = terminal()
    for question, answer in zip(ASKED, expected, strict=True):
        child.sendline(question)
        child.expect_exact(f"{question}\r\n{on_screen(answer)}\r\n")
        child.expect_exact("> ")
    child.sendline("/undo")
    child.expect_exact(f"forgotten: {ASKED[2]}\r\n> ")
    child.sendline(ASKED[2])
    child.expect_exact(f"{ASKED[2]}\r\n{on_screen(expected[2])}\r\n")
    child.expect_exact("> ")
    child.send("不要这个\x03")
    child.expect_exact("/exit or Ctrl-D leaves\r\n> ")
    child.sendline("/reset")
    child.expect_exact("a new conversation\r\n> ")
    child.sendline(ASKED[0])
    child.expect_exact(f"{on_screen(expected[0])}\r\n")
    child.expect_exact("> ")
    child.sendline("/exit")
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0


def test_ctrl_c_stops_the_answer_and_keeps_the_program(
    run: RunDirectory, terminal: Callable[..., Any]
) -> None:
    put(
        parrot(
            load_vocabulary(run.path("merge")).tokenizer,
            "é🙂 hello".replace("ll", "l").encode(),
            then=7,
            positions=10**6,
        ),
        run.path("merge"),
    )
    child = terminal("generation.max_new_tokens=900000", env={"LC_ALL": "C"})
    # what is rubbed out is a character, not a byte, whatever the locale
    for question in ("你好吗\x7f", "again"):
        child.sendline(question)
        child.expect_exact("é🙂 helo")
        assert "\ufffd" not in child.before
        child.expect_exact("helohelohelo")
        child.sendintr()
        child.expect_exact("\r\n> ")
    child.sendline("/undo")
    child.expect_exact("forgotten: again")
    child.sendline("/undo")
    child.expect_exact("forgotten: 你好")  # the stopped answer had stayed
    child.expect_exact("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.wait()
    assert child.exitstatus == 0
