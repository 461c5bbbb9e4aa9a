"""What was probably meant."""

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """A sentence that names what was probably meant, or nothing.

    >>> nearest("trian", ["train", "merge"])
    ' Did you mean train?'
    """
    names = sorted(known)
    tails = [n for n in names if "." in word and n.endswith(f".{word.rsplit('.', 1)[-1]}")]
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.7) or tails or difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""
