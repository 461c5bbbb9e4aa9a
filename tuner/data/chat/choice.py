"""Which chat template a tokenizer goes with, where the config leaves that open (model/chat=auto). Never by
architecture: an R1 distill is a Qwen2.

First the catalogue's, where the tokenizer's own Jinja is that vendor's text, by its digest; else the
tokenizer's own; else ChatML, if its tokens are in the vocabulary. Standard library only at the top: a plan
asks.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tuner.config.options import catalogue_template, vendor_templates
from tuner.config.schema import Chat
from tuner.errors import ConfigError, DataError
from tuner.files import decode_json

OWN, CHATML = "tokenizer", "chatml"
"""the options of model/chat beside the catalogue's"""
TOKENS = ("<|im_start|>", "<|im_end|>")
VOCABULARY = ("tokenizer.json", "added_tokens.json", "vocab.json")
"""files that name tokens as JSON; the settings may name what is not there"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateChoice:
    """An option of model/chat, and why it is this one."""

    option: str
    why: str

    def chat(self, default_system: str | None) -> Chat:
        """The template; a system prompt that the config gives stands in for its own."""
        chat = catalogue_template(self.option)
        return chat if default_system is None else replace(chat, default_system=default_system)

    @property
    def words(self) -> str:
        """For a person."""
        return f"chat template {self.option}: {self.why}"


def digest(template: str) -> str:
    """A template's sha256, whatever its line ends are and however it begins and ends.

    >>> digest("{{ a }}\\r\\n") == digest("\\n{{ a }}")
    True
    """
    return hashlib.sha256(template.replace("\r\n", "\n").strip().encode()).hexdigest()


def choose_by_template(template: str | None) -> TemplateChoice | None:
    """What a tokenizer's own template decides; None where it has none."""
    if not template:
        return None
    if option := vendor_templates().get(digest(template)):
        return TemplateChoice(option=option, why="the tokenizer's own is that vendor's text")
    return TemplateChoice(option=OWN, why="the tokenizer's own Jinja")


def choose_template(directory: Path, new_tokens: tuple[str, ...] = ()) -> TemplateChoice:
    """The template for the tokenizer in a directory. Raises ConfigError, with what to type, where there is
    none.
    """
    found = choose_by_template(own_template(directory))
    return found or choose_by_vocabulary(lambda token: token in new_tokens or has_token(directory, token))


def is_plain(directory: Path) -> bool:
    """Whether the choice takes no more than a look at texts, and no vocabulary has to be converted for it."""
    return (
        bool(own_template(directory))
        or (directory / "tokenizer.json").is_file()
        or not any((directory / name).is_file() for name in ("tokenizer.model", "qwen.tiktoken"))
    )


def choose_by_vocabulary(has: Callable[[str], bool]) -> TemplateChoice:
    """What is left for a tokenizer without a template: ChatML, if it has the tokens. Raises ConfigError."""
    if missing := [token for token in TOKENS if not has(token)]:
        raise ConfigError(
            f"The model's tokenizer has no chat template, and {' and '.join(missing)} of ChatML, which would "
            f"be taken then, {'is' if len(missing) == 1 else 'are'} not in its vocabulary. Name the "
            "template that the model was made for: model/chat=NAME (python -m tuner list chats). For a "
            "base model, and for plain texts, take model/chat=neutral, which needs no tokens of its own; "
            "or teach it ChatML with new tokens: model/chat=chatml "
            f"'model.new_tokens=[{','.join(missing)}]'"
        )
    return TemplateChoice(option=CHATML, why="the tokenizer has none, and knows ChatML's tokens")


def has_token(directory: Path, token: str) -> bool:
    """Whether a token is in a vocabulary: looked for in tokenizer.json as JSON spells it, not parsed; where
    there is only a file of another library, which its family may add tokens to, in what that is converted to.
    """
    spelled = [json.dumps(token, ensure_ascii=ascii).encode() for ascii in (False, True)]
    if any(
        word in (directory / name).read_bytes()
        for name in VOCABULARY
        if (directory / name).is_file()
        for word in spelled
    ):
        return True
    if (directory / "tokenizer.json").is_file():
        return False
    from tuner.data.tokenizer.load import load_vocabulary

    return load_vocabulary(directory).tokenizer.token_to_id(token) is not None


def own_template(directory: Path, settings: Mapping[str, Any] | None = None) -> str | None:
    """The chat template of the tokenizer in a directory: a file of its own, or in the tokenizer's
    settings, which are read where they are not given. Raises DataError for a file that is no text.
    """
    file = directory / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is no text in UTF-8 ({error}). Get it again.") from error
    if settings is None:
        try:
            settings = decode_json((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # what is wrong with it is said by who loads it
    return template_in_settings(settings)


def template_in_settings(settings: Any) -> str | None:
    """The chat template in a tokenizer_config.json."""
    return next(_templates(settings.get("chat_template")), None) if isinstance(settings, Mapping) else None


def _templates(value: Any) -> Iterator[str]:
    """The template; of several named ones the default."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        named = {str(entry.get("name")): entry.get("template") for entry in value if isinstance(entry, dict)}
        yield from _templates(named.get("default") or next(iter(named.values()), None))
