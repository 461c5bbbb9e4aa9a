"""Pages as one HTML file each: nothing from the network, no script but our own, and what people and models
wrote is escaped.
"""

from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from importlib.resources import files
from typing import Any

from tuner.report import chart
from tuner.report.comparison import CURVES

COLOURS = 7
"""that a page has; more lines have the same ones with other dashes"""
DOTTED = 20
"""points up to which a line shows each"""


def render(template: str, *, script: str = "", style: str = "", **values: Any) -> str:
    """A page from a template beside this module; the same values give the same bytes. `script` names a file
    of ours that may run, `style` is added to that of all pages. The digests of both are all that the page's
    policy lets in.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, code = _read("page.css") + style, _read(script) if script else ""
    allowed = f"style-src {_digest(style)}" + (f"; script-src {_digest(code)}" if code else "")
    page = environment.get_template(template).render(
        style=Markup(style),
        script=Markup(code),
        security=Markup(f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"),
        box=chart,
        dotted=DOTTED,
        **values,
    )
    return page.strip() + "\n"


def line_styles(count: int) -> list[str]:
    """The classes of so many lines in one chart."""
    return [f"c{i % COLOURS} d{i // COLOURS % 3}" for i in range(count)]


def drawn_curves(comparison: Mapping[str, Any]) -> list[tuple[str, str, chart.Chart]]:
    """The curves of a comparison or a ranking, those that there are: (title, caption, chart)."""
    width = comparison["steps_a_point"]
    captions = {
        "loss": f"Each point is the mean over {width} steps." if width > 1 else "",
        "held_out": "Measured on up to 64 packs of the held-out tokens.",
    }
    drawn = {name: chart.draw(comparison["curves"][name]) for name in CURVES}
    return [(title, captions[name], found) for name, title in CURVES.items() if (found := drawn[name])]


def _read(name: str) -> str:
    return files("tuner.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Of an inline style or script, as a content security policy names it."""
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
