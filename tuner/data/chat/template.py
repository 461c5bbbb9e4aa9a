r"""The chat template: a conversation → ids, and which of them are trained. Nothing else decides the loss
mask.

    <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>\n
    ^ id        ^ piece ^ id      ^p  ^ id        ^ piece   | ^    ^ id      ^ piece
                                                   border --+
                                                             ~~~~~~~~~~~~~~~ trained

Special tokens enter by their id and text is never parsed for them, so a person who writes `<|im_end|>` ends
no turn. The text between two special tokens is one piece for the tokenizer, as a serving engine sees it.
Where the assistant starts to write is a token border, because in generation it is one: the prompt is
tokenised before the answer exists (tuner.data.chat.encode).

Trained is what the assistant writes behind the prompt, with its thoughts, its calls and the token that ends
its turn. An empty thought that the template puts in is not, nor is an answer whose thoughts the template
hides: the model never has to write it so.

Not covered: images and sounds; calls that are not JSON; an assistant that goes on without a head after a
tool's answer; an answer that is begun by somebody else (a prefix); and a template that changes a text by what
it says.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from tokenizers import Tokenizer

from tuner.data.chat.compile import compile_layout
from tuner.data.chat.encode import Encoded
from tuner.data.chat.from_fields import FieldTemplate
from tuner.data.conversation import Conversation, Message
from tuner.data.tokenizer.load import Vocabulary

VERSION = 4
"""bumped when the same conversation and template would give other ids or another mask"""


class Template(Protocol):
    """A chat template compiled for one tokenizer, by `compile_template`."""

    vocabulary: Vocabulary
    """with the template's special tokens named and marked"""
    tokenizer: Tokenizer
    """that of the vocabulary"""
    end_id: int
    """the token that ends an answer"""
    stops: frozenset[int]
    """all tokens at which generation stops"""
    reasons: bool
    """whether it has a place for thoughts"""

    def encode(self, conversations: Sequence[Conversation], *, keep_reasoning: bool = False) -> Encoded:
        """All conversations, in one batch for the tokenizer's threads. `keep_reasoning` shows thoughts in
        every turn.
        """

    def texts(self, texts: Sequence[str]) -> Encoded:
        """Plain documents: the token that begins a text, where the tokenizer has one, the text, the end.
        All is trained but the first token.
        """

    def prompt(self, messages: Sequence[Message], tools: Sequence[Any] = ()) -> list[int]:
        """The ids up to where the assistant starts to write its answer to `messages`. Raises ConfigError
        where they can't be written.
        """


def compile_template(chat: Any, vocabulary: Vocabulary) -> Template:
    """Fit the template `chat` (a tuner.config.schema.Chat, or a stage's view of one) to a tokenizer.

    Raises ConfigError when the template contradicts itself, and DataError when a special token of it is not
    one id of the tokenizer.
    """
    if chat.auto:
        raise ValueError("model/chat=auto was not settled: a stage gets the template that was found")
    if chat.jinja:
        from tuner.data.chat.from_jinja import load_jinja_template

        return load_jinja_template(vocabulary, chat.default_system)
    return FieldTemplate(chat, compile_layout(chat, vocabulary))
