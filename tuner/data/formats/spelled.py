"""Turns whose keys are called otherwise: who speaks as `speaker`, what is said as `text`."""

from typing import Any

WHO = ("role", "from", "speaker", "author", "sender")
WHAT = ("content", "value", "text", "utterance", "message")


def standard_turn(turn: Any) -> Any:
    """A turn with the keys role and content, or from and value, where it has one key of each kind under
    another name; else as it is.
    """
    # nearly all
    if (
        not isinstance(turn, dict)
        or ("role" in turn and "content" in turn)
        or ("from" in turn and "value" in turn)
    ):
        return turn
    who = [key for key in WHO if isinstance(turn.get(key), str)]
    what = [key for key in WHAT if turn.get(key) is not None]
    if len(who) != 1 or len(what) != 1:
        return turn
    ours = ("from", "value") if who[0] == "from" else ("role", "content")
    return dict(zip(ours, (turn[who[0]], turn[what[0]]), strict=True)) | {
        key: part for key, part in turn.items() if key not in (*who, *what)
    }
