"""`tuner`: fine-tuning of language models as a pipeline that knows what it has done.

From Python: `tuner.run(words)` and the other verbs of the command line; see `tuner.api`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuner.api import (
        Run,
        compare,
        convert,
        evaluate,
        export,
        find,
        merge,
        plan,
        predict,
        rename,
        reproduce,
        run,
        status,
        stop,
    )

__all__ = [
    "Run",
    "compare",
    "convert",
    "evaluate",
    "export",
    "find",
    "merge",
    "plan",
    "predict",
    "rename",
    "reproduce",
    "run",
    "status",
    "stop",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The functions of `tuner.api`, imported when they are asked for: a child process needs none of what
    they import.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tuner import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
