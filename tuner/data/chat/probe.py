"""What a chat template in Jinja shows on a few conversations: what begins and ends a turn of the assistant,
and whether thoughts have a place.
"""

import re
from dataclasses import replace

from tuner.data.chat.escape import transformers_messages
from tuner.data.chat.sandbox import Render
from tuner.data.conversation import Message, RowError

PROBES = ("kiwi stone", "amber tide", "violet barn", "copper moss", "linen crow")


def probe_messages(*texts: str) -> list[Message]:
    """A question, an answer, and so on."""
    return [
        Message(role="assistant" if i % 2 else "user", content=text, trained=bool(i % 2))
        for i, text in enumerate(texts)
    ]


def find_turn_ends(render: Render, special: re.Pattern[str]) -> tuple[str, str]:
    """The token that ends a turn of the assistant, and what the template puts in at its beginning that the
    prompt lacks. `special` finds special tokens in a text.

    Raises RowError when the template does not show one end.
    """
    ends, openings = set(), set()
    for length in (2, 4):
        messages = probe_messages(*PROBES[:length])
        text = render(transformers_messages(messages), (), False)
        for i, message in enumerate(messages):
            at = text.find(message.content)
            if at < 0:
                raise RowError(f"it does not write the text of a turn ({message.role}) as it is")
            if message.role == "assistant":
                bare, before = (
                    render(transformers_messages(messages[:i]), (), opened) for opened in (False, True)
                )
                if not text.startswith(before) or len(before) > at:
                    raise RowError(
                        "what it writes for the assistant to speak is not how a turn of the assistant begins"
                    )
                put_in = text[len(before) : at]
                openings.add(put_in if bare == before and put_in.strip() else "")
                token = special.search(text, at)
                if token is None or (
                    i + 1 < len(messages) and token.start() > text.find(messages[i + 1].content)
                ):
                    raise RowError(
                        "no special token follows a turn of the assistant, so a model would never learn "
                        "to stop"
                    )
                ends.add(token[0])
    if len(ends) > 1:
        raise RowError(f"turns of the assistant end in different tokens ({', '.join(sorted(ends))})")
    if len(openings) > 1:
        raise RowError("turns of the assistant begin in different ways, and it has no prompt for them")
    return str(ends.pop()), openings.pop()


def shows_thoughts(render: Render) -> bool:
    """Whether the template has a place for thoughts."""
    messages = probe_messages(*PROBES[:2])
    messages[1] = replace(messages[1], reasoning=PROBES[2])
    try:
        return PROBES[2] in render(transformers_messages(messages), (), False)
    except RowError:
        return False
