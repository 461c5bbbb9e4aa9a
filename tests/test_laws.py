"""Laws of the house, read off the source: floors, small files, the words of the field, no torch in a plan,
every field declared and read."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import REPO, environment
from tuner.config.schema import Config
from tuner.config.view import leaves
from tuner.hardware.libraries import REQUIREMENTS
from tuner.stages import STAGES

FLOORS = [
    {"errors", "files", "progress", "report"},
    {"config"},
    {"store", "hub", "hardware", "kernels"},
    {"data", "launch"},
    {"models", "pipeline"},
    {"estimate"},
    {"train"},
    {"stages"},
    {"api"},
    {"cli"},
    {"__main__"},
]
"""the folders of the package, and the modules beside them: each imports only what lies on lower floors"""
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}


def imports(path: Path) -> list[str]:
    """The parts of `tuner` that a module imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tuner":
            found += (
                [node.module.split(".")[1]] if "." in node.module else [alias.name for alias in node.names]
            )
        elif isinstance(node, ast.Import):
            found += [alias.name.split(".")[1] for alias in node.names if alias.name.startswith("tuner.")]
    return [name for name in found if not name.startswith("__version__")]


def modules(*folders: str) -> list[Path]:
    """All modules of the package, or those of some folders."""
    return sorted(path for folder in folders or ("",) for path in (REPO / "tuner" / folder).rglob("*.py"))


def test_the_root_of_the_package_is_a_short_list() -> None:
    entries = {
        path.name.removesuffix(".py") for path in (REPO / "tuner").iterdir() if path.name != "__pycache__"
    }
    assert entries - {"__init__"} == HEIGHT.keys()
    assert len(entries) <= 20


def test_files_stay_small() -> None:
    """Beside 110 columns, which the linter holds."""
    assert [str(path) for path in modules() if len(path.read_text(encoding="utf-8").splitlines()) > 300] == []


NOT_SAID = {
    r"\bnumbers? trains?\b": "trainable parameters",
    r"\b(a|another|each|every|one|this) training\b(?! (run|set|step|data|loss|row|curve|loop|stage))": (
        "a run, a training run, or just training"
    ),
    r"\btrainings\b": "runs",
    r"\bprocessors?\b": "CPU",
    r"\bmatrix products?\b": "matmul",
    r"\b(is|are) sent to\b": "routed experts",
    r"\bleash|switchboard": "channel",
}
"""words that printed text does not use, as patterns, and what it says instead"""


def test_printed_text_uses_the_words_of_the_field() -> None:
    found = []
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {
            id(statement.value)
            for node in ast.walk(tree)
            if isinstance(body := getattr(node, "body", None), list)
            for statement in body
            if isinstance(statement, ast.Expr)
        }
        printed = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in documentation
        ]
        found += [
            f"{path.relative_to(REPO)}:{text.lineno}: {match[0]!r}; say {instead}"
            for text in printed
            for pattern, instead in NOT_SAID.items()
            if (match := re.search(pattern, text.value))
        ]
    assert found == []


def test_the_tests_mirror_the_package() -> None:
    folders = {path.parent.relative_to(REPO / "tests") for path in (REPO / "tests").rglob("test_*.py")}
    assert [
        str(folder) for folder in folders - {Path("cases")} if not (REPO / "tuner" / folder).is_dir()
    ] == []


def broad_handlers(path: Path) -> Iterator[ast.ExceptHandler]:
    """Those that would catch a stop, which is no Exception."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "BaseException"
            if re.search(r"\bBaseException\b", caught):
                yield node


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(REPO / "tuner")))
def test_no_handler_takes_a_stop_for_something_else(path: Path) -> None:
    """What catches everything raises it again; a thread of a tracker's gets no signal."""
    for handler in broad_handlers(path):
        raises = [node for node in ast.walk(handler) if isinstance(node, ast.Raise) and node.exc is None]
        assert raises or path.name == "trackers.py", f"{path}:{handler.lineno}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(REPO).as_posix())
def test_a_module_imports_only_from_lower_floors(path: Path) -> None:
    own = path.relative_to(REPO / "tuner").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    assert own in HEIGHT, f"{own} has no floor: give it one"
    assert not [name for name in imports(path) if name != own and HEIGHT[name] >= HEIGHT[own]]


def test_no_stage_imports_another() -> None:
    stages = {f"tuner.stages.{stage.name}" for stage in STAGES}
    for path in (REPO / "tuner" / "stages" / f"{stage.name}.py" for stage in STAGES):
        nodes = [
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        ]
        assert not stages & {
            name
            for node in nodes
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        }, path


def test_what_plans_and_waits_imports_no_torch() -> None:
    """The modules of these folders, all of them, at their tops. What runs in a child imports it inside its
    functions.
    """
    folders = (
        "api",
        "config",
        "store",
        "hub",
        "hardware",
        "launch",
        "pipeline",
        "estimate",
        "report",
        "stages",
        "cli",
    )
    names = [".".join(path.relative_to(REPO).with_suffix("").parts) for path in modules(*folders)]
    code = (
        f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint(sorted({{'torch', "
        "'transformers', 'datasets', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


PLANNING = (
    "tuner.cli.main tuner.pipeline.plan tuner.pipeline.execute tuner.stages tuner.cli.plan_text "
    "tuner.cli.status_table tuner.cli.diagnosis tuner.config.recipes tuner.cli.compare_runs "
    "tuner.cli.verbs tuner.cli.sweep tuner.api"
).split()


def test_a_plan_imports_nothing_heavy() -> None:
    code = (
        "import importlib, sys\n"
        "heavy = {'torch', 'transformers', 'datasets', 'peft', 'numpy', 'pyarrow', 'tokenizers'}\n"
        f"for name in {PLANNING}:\n"
        "    importlib.import_module(name)\n"
        "    if found := heavy & set(sys.modules): sys.exit(f'{name} imports {sorted(found)}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["hydra", "omegaconf"])
def test_only_config_knows_hydra(name: str) -> None:
    users = [
        path.relative_to(REPO / "tuner").as_posix()
        for path in modules()
        if any(f"{word} {name}" in path.read_text(encoding="utf-8") for word in ("import", "from"))
    ]
    assert {"config/compose.py", "config/launchers.py"} <= set(users)
    assert set(users) <= {"config/compose.py", "config/launchers.py", "config/search_space.py"}


def test_every_field_is_declared_for_stages_that_exist() -> None:
    names = {stage.name for stage in STAGES}
    for path, declared, _ in leaves(Config()):
        assert declared.stages <= names, path
        assert declared.kind != "identity" or declared.stages, f"{path} is identity, but no stage has it"


@cache
def properties() -> dict[str, set[str]]:
    """What each property of a node of the config takes from it, by the property's name."""
    return {
        node.name: {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
        for path in modules("config/schema")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(word, ast.Name) and word.id == "property" for word in node.decorator_list)
    }


@cache
def reads(path: Path) -> set[str]:
    """Names that a module takes from an object: `x.name`, and the words of `getattr(x, "name")`; of a
    property of the config, the fields that it takes too.
    """
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = {node.attr for node in nodes if isinstance(node, ast.Attribute)} | {
        str(node.value) for node in nodes if isinstance(node, ast.Constant)
    }
    known = properties()
    while more := set().union(*(known.get(name, set()) for name in found)) - found:
        found |= more
    return found


@cache
def imported(path: Path) -> list[Path]:
    """The modules of the package that one imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tuner":
            base = REPO.joinpath(*node.module.split("."))  # type: ignore[union-attr]
            named = (base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names))
            found += [one for one in named if one.exists()]
    return found


def reached(start: Path) -> set[Path]:
    """A stage's module and all of the package that it imports, at the top or inside a function."""
    seen: set[Path] = set()
    todo = [start]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        todo += imported(path)
    return seen - {
        *modules("config/schema"),
        *(
            REPO / "tuner" / f"{name}.py"
            for name in ("config/fields", "config/view", "config/validate", "config/build", "pipeline/stage")
        ),
    }


@pytest.mark.parametrize("stage", [stage.name for stage in STAGES])
def test_every_field_of_a_stage_is_read_by_it(stage: str) -> None:
    read = set().union(*(reads(path) for path in reached(REPO / "tuner" / "stages" / f"{stage}.py")))
    unread = [
        path
        for path, declared, _ in leaves(Config())
        if stage in declared.stages and path.rsplit(".", 1)[-1] not in read
    ]
    if stage == "train":
        unread.remove("variant")  # only there to be part of the identity
    assert not unread, f"declared for {stage}, but nothing that it imports reads them"


def test_top_fields_are_read() -> None:
    below = {"data", "models", "kernels", "train", "stages", "report"}
    read = set().union(
        *(reads(path) for path in modules() if path.relative_to(REPO / "tuner").parts[0] not in below)
    )
    for option in (REPO / "conf").rglob("*.yaml"):  # one option may take what another says
        read |= set(re.findall(r"\$\{oc\.select:\w+\.(\w+)", option.read_text(encoding="utf-8")))
    assert not [
        path
        for path, declared, _ in leaves(Config())
        if not declared.stages and path.rsplit(".", 1)[-1] not in read
    ]


def test_nobody_is_told_to_install_a_stranger() -> None:
    """The distribution `tuner` is another project's; this one's extras are for whoever has its files."""
    texts = [*modules(), *(REPO / "docs").rglob("*.md"), *REPO.glob("*.md"), *(REPO / "scripts").iterdir()]
    told = re.compile(r"pip install[^\n]*?[\s'\"]tuner(?![\w.-])")
    wrong = [str(path) for path in texts if path.is_file() and told.search(path.read_text(encoding="utf-8"))]
    assert not wrong
    assert told.search("pip install 'tuner[qlora]'")
    assert not told.search("pip install tuner-pipeline")


def test_what_is_told_to_install_is_what_the_extras_ask_for() -> None:
    extras = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {line.split(";")[0] for lines in extras["optional-dependencies"].values() for line in lines}
    assert asked >= set(REQUIREMENTS.values())
