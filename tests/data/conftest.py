"""What the data tests share: the shipped ChatML template, real tokenizers, and real conversations."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

from tuner.config.schema import Chat
from tuner.data.chat.template import Template, compile_template
from tuner.data.tokenizer.load import Vocabulary, load_vocabulary

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the repository")
    return SHARED


def read_chat(file: Path) -> Chat:
    """A chat template from its YAML file."""
    fields = yaml.safe_load(file.read_text(encoding="utf-8"))
    return Chat(**{key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()})


@pytest.fixture(scope="session")
def chatml() -> Chat:
    return read_chat(ROOT / "conf" / "model" / "chat" / "chatml.yaml")


@pytest.fixture(scope="session")
def vocabulary(shared: Path) -> Callable[[str], Vocabulary]:
    """The vocabulary of a directory in ../shared/tokenizers, loaded once."""
    return cache(lambda name: load_vocabulary(shared / "tokenizers" / name))


@pytest.fixture(scope="session")
def smollm2(vocabulary: Callable[[str], Vocabulary]) -> Tokenizer:
    return vocabulary("smollm2").tokenizer


@pytest.fixture(scope="session")
def template(chatml: Chat, vocabulary: Callable[[str], Vocabulary]) -> Template:
    return compile_template(chatml, vocabulary("smollm2"))
