"""The texts of a chat template, with the tokenizer's own tokens in their places, and the special tokens that
they spell.
"""

from typing import Any

from tuner.data.tokenizer.load import Vocabulary
from tuner.errors import DataError


class TemplateTexts:
    """The texts of a template, with the tokenizer's own tokens in their places."""

    def __init__(self, chat: Any, vocabulary: Vocabulary) -> None:
        self._chat, self._vocabulary = chat, vocabulary

    def full(self, name: str) -> str:
        """The text of a field."""
        return self.put(getattr(self._chat, name))

    def put(self, text: str) -> str:
        """Raises DataError for `{eos}` where the tokenizer has none."""
        if "{eos}" in text and self._vocabulary.eos is None:
            raise DataError(
                "the chat template ends a turn with the tokenizer's own end token ({eos}), and the"
                ' tokenizer names none. Give "eos_token" in its tokenizer_config.json, or choose the'
                " template the model was made for (model/chat=…)."
            )
        return text.replace("{bos}", self._vocabulary.bos or "").replace("{eos}", self._vocabulary.eos or "")

    def prompt(self) -> str:
        """How the assistant is made to speak."""
        return (
            self.full("assistant").partition("{text}")[0]
            if self._chat.prompt is None
            else self.full("prompt")
        )


def special_tokens_of(chat: Any, vocabulary: Vocabulary) -> tuple[str, ...]:
    """The special tokens of the template for this tokenizer: those it lists, those that `{bos}` and `{eos}`
    stand for, and any other special token of the tokenizer that its texts spell, since whoever reads the
    template from Jinja finds that too.
    """
    texts = TemplateTexts(chat, vocabulary)
    used = "\0".join([*(getattr(chat, name) or "" for name in _TEXTS), *chat.stops])
    own = [
        token
        for place, token in (("{bos}", vocabulary.bos), ("{eos}", vocabulary.eos))
        if place in used and token
    ]
    added = [
        token.content for token in vocabulary.tokenizer.get_added_tokens_decoder().values() if token.special
    ]
    return tuple(
        dict.fromkeys([*map(texts.put, chat.special), *own, *(token for token in added if token in used)])
    )


_TEXTS = tuple(
    (
        "begin system system_with_tools user assistant prompt end finish tools tool tool_join tools_gap "
        "calls calls_gap calls_turn calls_end call call_join results result result_join reasoning "
        "no_reasoning"
    ).split()
)
