"""The documentation does what it says: commands parse and compose, YAML examples are read, links lead somewhere, no verb is forgotten."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tuner.cli import VERBS, parse
from tuner.config import compose, options
from tuner.line import translate

REPO = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(path.relative_to(REPO).as_posix() for path in (REPO / "docs").glob("*.md"))]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMED_YAML = re.compile(r"`([\w./-]+\.yaml)`:\n\n```yaml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]\n]+\]\(([^)\s]+)\)")


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
    return [(page, found[1]) for page in PAGES for line in shell_lines(page) if (found := re.match(r"(?:time )?(python -m tuner\b.*)", line))]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = BLOCK.sub("", text(page))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", prose, re.MULTILINE)}


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds the YAML files of the README, as a reader would have written them."""
    for name, content in NAMED_YAML.findall(text("README.md")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_commands_to_check() -> None:
    assert len([command for page, command in commands() if page == "README.md"]) > 20


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_parse_and_compose(page: str, command: str, desk: Path) -> None:
    line = parse(shlex.split(command, comments=True)[3:])
    if "-m" in line.flags:
        assert translate(line.words, options(line.extra), sweep=True)
    elif line.verb != "list":
        compose(line.words, extra=line.extra)
    if line.verb == "list" and line.bare:
        assert line.bare[0] in {group.split("/")[-1] for group in options(line.extra)}


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_are_valid_shell(page: str) -> None:
    checked = subprocess.run(["bash", "-n"], input="\n".join(shell_lines(page)), capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_are_shown_exist(page: str) -> None:
    for script in re.findall(r"\bscripts/\w+", text(page)):
        assert (REPO / script).is_file(), script


@pytest.mark.parametrize(("name", "content"), [found for found in NAMED_YAML.findall(text("CONTRIBUTING.md")) if found[0].startswith("conf/")])
def test_options_of_the_recipes_compose(name: str, content: str, tmp_path: Path) -> None:
    file = tmp_path / Path(name).relative_to("conf")
    file.parent.mkdir(parents=True)
    file.write_text(content, encoding="utf-8")
    group = file.parent.relative_to(tmp_path).as_posix()
    assert compose([f"{group}={file.stem}"], extra=tmp_path).choices[group] == file.stem


def test_the_recipes_have_examples() -> None:
    assert {Path(name).parent.as_posix() for name, _ in NAMED_YAML.findall(text("CONTRIBUTING.md"))} == {"conf/model", "conf/data", "conf/model/chat"}


@pytest.mark.parametrize("page", PAGES)
def test_internal_links_lead_somewhere(page: str) -> None:
    for link in LINK.findall(BLOCK.sub("", text(page))):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = ((REPO / page).parent / path).resolve() if path else REPO / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target.relative_to(REPO).as_posix()), f"{page} links to {link}"


def test_every_verb_is_in_the_readme() -> None:
    words = set(re.findall(r"`(\w+)", text("README.md")))
    assert set(VERBS) <= words
