"""What the data tests share: the shipped ChatML template and a real tokenizer."""

from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

from tuner.data.chat import Template, compile_template, load_tokenizer
from tuner.schema import Chat

ROOT = Path(__file__).parents[2]
SHARED = ROOT / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def chatml() -> Chat:
    fields = yaml.safe_load((ROOT / "conf" / "model" / "chat" / "chatml.yaml").read_text(encoding="utf-8"))
    return Chat(**{**fields, "special": tuple(fields["special"])})


@pytest.fixture(scope="session")
def smollm2(shared: Path) -> Tokenizer:
    return load_tokenizer(shared / "tokenizers" / "smollm2")


@pytest.fixture(scope="session")
def template(chatml: Chat, smollm2: Tokenizer) -> Template:
    return compile_template(chatml, smollm2)
