"""What a file is, its content says: shared cases through the front door."""

import json
import shutil
from pathlib import Path

from tests.cases.conftest import Preview, brought, shared, trained

pytestmark = shared


def test_rows_in_a_text_are_rows(preview: Preview, tmp_path: Path) -> None:
    brought("jsonl_in_txt", tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "train.txt").read_text(encoding="utf-8").splitlines()]
    (tmp_path / "list.txt").write_text(json.dumps(rows), encoding="utf-8")
    shown = preview("data.path=[train.txt,list.txt]", "train.txt:1", "list.txt:2")
    assert [text.removesuffix("<|im_end|>") for text in trained(shown)] == ["1.", "2."]
    letters = preview("data.path=train.txt", "data.format=text", "1")
    assert '"role": "user"' in letters.out


def test_markdown_is_a_text_and_a_name_that_says_nothing_is_asked_about(
    preview: Preview, tmp_path: Path
) -> None:
    story = brought("text_in_md", tmp_path) / "story.md"
    assert (
        preview("data.path=story.md", "1").out == preview("data.path=story.md", "data.format=text", "1").out
    )
    assert "Once upon a time." in trained(preview("data.path=story.md", "1"))[0]
    shutil.copy(story, tmp_path / "story.py")
    assert "data.format=text" in preview("data.path=story.py", "1", code=2).err
    assert "Once upon a time." in trained(preview("data.path=story.py", "data.format=text", "1"))[0]


def test_lines_that_end_in_commas_and_numbers_that_are_none_are_read(
    preview: Preview, tmp_path: Path
) -> None:
    brought("comma_lines", tmp_path)
    brought("nan_input", tmp_path)
    shown = preview("data.path=[comma.jsonl,nan.json]", "comma.jsonl:2", "nan.json:2", "--json")
    for line in map(json.loads, shown.out.splitlines()):
        assert "What is 1+1?" in json.dumps(line)
        assert "NaN" not in json.dumps(line)


def test_a_line_break_in_a_pattern_is_one(preview: Preview, tmp_path: Path) -> None:
    brought("columns_newline", tmp_path)
    pattern = r'data.columns.output="<think>\n{Complex_CoT}\n</think>\n\n{Response}"'
    shown = preview(
        "1", "data.path=medical.jsonl", "model/chat=qwen3", "data.columns.instruction=Question", pattern
    )
    assert trained(shown) == ["<think>\nEasy: 0+1.\n</think>\n\n1.<|im_end|>"]


def test_what_stands_before_the_end_of_a_thought_is_the_thought(preview: Preview, tmp_path: Path) -> None:
    brought("think_without_opening", tmp_path)
    shown = preview("1", "data.path=noopen.jsonl", "model/chat=qwen3")
    assert trained(shown) == ["<think>\nThe user wants 0+1, easy.\n</think>\n\n1.<|im_end|>"]
    assert shown.out.count("<think>") == 1
    cut = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nFirst, I"}]
    }
    (tmp_path / "cut.jsonl").write_text(json.dumps(cut), encoding="utf-8")
    assert "never ends it with </think>" in preview("1", "data.path=cut.jsonl", "model/chat=qwen3").out
    assert "<think>" in trained(preview("1", "data.path=cut.jsonl", "model/chat=chatml"))[0]


def test_texts_that_a_template_wrote_are_conversations_or_letters_as_is_asked(
    preview: Preview, tmp_path: Path
) -> None:
    brought("templated_text_as_plain_text", tmp_path)
    shown = preview("1", "data.path=[chatml.jsonl,alpacatext.jsonl]")
    assert trained(shown) == ["1.<|im_end|>", "1.<|im_end|>"]
    assert "texts begin as a chat template writes a conversation, and are read as one" in shown.err
    (letters,) = trained(preview("1", "data.path=chatml.jsonl", "data.format=text"))
    assert "What is 0+1?" in letters
    lines = (tmp_path / "chatml.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "code.jsonl").write_text(
        "".join(f"{line}\n" for line in [*[json.dumps({"text": "x = 1"})] * 20, lines[0]]), encoding="utf-8"
    )
    shown = preview("1", "data.path=code.jsonl")
    assert (
        "1 of 21 texts begin as a chat template writes a conversation; as most don't, they are trained "
        "as plain text" in shown.err
    )
