"""Texts of strangers as a terminal, a log and a page may show them: names of files, rows, answers."""

import unicodedata


def visible(text: str) -> str:
    r"""What a terminal may be shown: no character that moves the cursor or starts a command, but for line
    breaks and tabs.

    >>> visible("a\x1b[2Jb\r\n你好\x07\x9b")
    'a[2Jb\n你好'
    """
    return "".join(sign for sign in text if sign in "\n\t" or unicodedata.category(sign) != "Cc")


def printable(text: str) -> str:
    """On one line, with nothing that could move a terminal's cursor.

    >>> printable("red\\x1b[31m\\nnext")
    'red?[31m next'
    """
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)
