"""`tuner`: fine-tuning of language models as a pipeline that knows what it has done.

From Python: `tuner.run(overrides)` and `tuner.find(word)`, both of which answer a `tuner.Run`; see
`tuner.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import Run, find, run

__all__ = ["Run", "find", "run"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The functions of `tuner.api`, imported when they are asked for: a child process needs none of what
    they import.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tuner import api

    return getattr(api, name)
