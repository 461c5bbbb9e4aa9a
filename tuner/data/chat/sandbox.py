"""A tokenizer's own Jinja template, rendered: text from the internet, which can run no code here. Loops and
long texts are bounded; what else it can do without end is ended by the limits of `reading`.

It sees what transformers shows it: messages, tools, add_generation_prompt, the tokenizer's tokens by their
names, raise_exception, and a tojson that leaves characters as they are. `{% generation %}` is passed over.
There is no clock: `strftime_now` is undefined where the template asks whether it is defined, and has a date
of its own then; where it does not ask, it is a fixed day, so that the same rows always give the same tokens.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from tuner.data.conversation import RowError
from tuner.errors import ConfigError
from tuner.hardware.limits import reading

CALLED = "the tokenizer's own chat template"
STEPS = 1_000_000
"""turns of loops in one rendering"""
SIZE = 16_000_000
"""characters of a text that a template puts together"""
REACH = 1_000_000_000
"""the same before it is put together: at most so long can it become"""
GROWING = frozenset(
    {"replace", "join", "ljust", "rjust", "center", "zfill", "expandtabs", "format", "format_map"}
)
"""methods of texts whose result can be longer than all that goes in"""
UNKNOWN = tuple("center format indent wordwrap xmlattr urlize filesizeformat random pprint".split())
"""filters that are taken away: they can blow up a text, or need what a chat template does not"""
DAY = datetime(2024, 7, 26)

Render = Callable[[Sequence[Mapping[str, Any]], Sequence[Any], bool], str]
"""(messages, tools, whether the assistant is to speak next) → text"""


def renderer(template: str, names: Mapping[str, str]) -> Render:
    """A function that renders conversations. It raises RowError, with the template's own words where it has
    some.

    Raises ConfigError when the template can't be read.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Refused(Exception):
        """What the template says by raise_exception."""

    class Generation(Extension):
        """The marks that some templates put around what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(["+", "*", "**", "%"])

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            size = _size(left), _size(right)
            if (
                operator == "**"
                or (operator == "*" and max(size) > 0 and _times(left, right) > SIZE)
                or sum(size) > SIZE
            ):
                raise Refused("it makes a text or a number that is too long")
            if operator == "%" and isinstance(left, str):
                raise Refused("it formats text by %, which is not supported here")
            return super().call_binop(context, operator, left, right)

        def call(self, context: Any, function: Any, *args: Any, **named: Any) -> Any:
            if isinstance(getattr(function, "__self__", None), str) and function.__name__ in GROWING:
                reach = max(_size(function.__self__), 1)
                for value in (*args, *named.values()):
                    reach *= max(_size(value), value if isinstance(value, int) else 1)
                if reach > REACH:
                    raise Refused(f"it makes a text that is too long, by {function.__name__}")
            return super().call(context, function, *args, **named)

    def refuse(message: str) -> None:
        raise Refused(message)

    def counted(values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            left[0] -= 1
            if left[0] < 0:
                raise Refused("its loops do not come to an end")
            yield value

    def bounded(text: Any) -> Any:
        if _size(text) > SIZE:
            raise Refused("it makes a text that is too long")
        return text

    left = [STEPS]
    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters |= {"tojson": _tojson, "tuner_counted": counted, "tuner_bounded": bounded}
    for name in UNKNOWN:
        del environment.filters[name]
    environment.globals["raise_exception"] = refuse
    if not re.search(r"strftime_now\s+is\s+(not\s+)?defined", template):
        environment.globals["strftime_now"] = DAY.strftime
    try:
        with reading(CALLED):
            tree = environment.parse(template)
        for loop in [*tree.find_all(nodes.For)]:
            loop.iter = nodes.Filter(loop.iter, "tuner_counted", [], [], None, None)
        for place in [*tree.find_all((nodes.Assign, nodes.AssignBlock))]:
            if isinstance(place, nodes.Assign):
                place.node = nodes.Filter(place.node, "tuner_bounded", [], [], None, None)
        with reading(CALLED):
            compiled = jinja2.Template.from_code(
                environment, environment.compile(tree), environment.make_globals(None)
            )
    except (jinja2.TemplateError, RecursionError, MemoryError, ValueError) as error:
        raise ConfigError(
            f"The tokenizer's own chat template can't be read ({error}). Choose a template (model/chat=…)."
        ) from error

    def render(messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], opened: bool) -> str:
        left[0] = STEPS
        values = {
            "messages": messages,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": opened,
            **names,
        }
        try:
            with reading(CALLED):
                return "".join(_bounded(compiled.generate(**values)))
        except Refused as error:
            raise RowError(f"the tokenizer's own chat template refuses the row: {error}") from error
        except Exception as error:  # a template can fail as any code can
            raise RowError(
                f"the tokenizer's own chat template fails on the row ({type(error).__name__}: {error})"
            ) from error

    return render


def _bounded(parts: Iterable[str]) -> Iterator[str]:
    size = 0
    for part in parts:
        size += len(part)
        if size > SIZE:
            raise ValueError("it writes a text that is too long")
        yield part


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _times(left: Any, right: Any) -> int:
    """How long a text or list becomes that is written so many times."""
    a, b = (_size(value) or (value if isinstance(value, int) else 1) for value in (left, right))
    return int(a * b)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int) and indent > 64:
        raise ValueError("tojson(indent) is too large")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
