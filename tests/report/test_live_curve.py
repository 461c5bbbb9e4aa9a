"""What a notebook's cell shows is well-formed at every step, and stays small."""

from xml.etree import ElementTree

import pytest

from tuner.report.live_curve import MOST_POINTS, live_html


@pytest.mark.parametrize("steps", [1, 2, 7, 199, 5000])
@pytest.mark.parametrize("measured_every", [0, 1, 50])
def test_the_drawing(steps: int, measured_every: int) -> None:
    rows = [
        {"step": step, "loss": 1 + 1 / step, "lr": 1e-4}
        | ({"held_out": 2.0} if measured_every and step % measured_every == 0 else {})
        for step in range(1, steps + 1)
    ]
    page = ElementTree.fromstring(f"<p>{live_html(rows, 5000)}</p>")
    bar = page.find(".//progress")
    assert bar is not None
    assert (bar.get("value"), bar.get("max")) == (str(steps), "5000")
    lines = page.findall(".//polyline")
    measured = measured_every > 0 and steps >= measured_every
    assert len(lines) == 1 + measured
    assert 1 <= len(lines[0].get("points", "").split()) <= MOST_POINTS
    assert ("held-out loss" in ElementTree.tostring(page, "unicode", "text")) == measured
