"""Chat templates that were written to do harm, through the command line: each is refused in words within its
limits, or the rows are tokenized as it says. `scripts/test --all` tries all of them.
"""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from tests.conftest import SHARED, Tuner, tiny_words, write_rows

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENDLESS = {
    "recursive macro": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}"
    ),
    "doubled text": (
        "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n-1) }}{% endif %}{% endmacro %}{{ f('aaaa', 60) }}"
    ),
    "batch": "{% set n = ([1] | batch(2000000000, 'x') | list) | length %}",
    "slice": "{% set n = ([1] | slice(2000000000) | list) | length %}",
    "lipsum": "{% set n = lipsum(n=2000000000, html=False) | length %}",
    "squares": (
        "{% set ns = namespace(x=10) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}"
    ),
    "nested lists": (
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        "{{ ns.x | string | length }}"
    ),
    "recursive loop": "{% for i in [1, 2] recursive %}{{ loop([1, 2]) if loop.depth < 50 }}{% endfor %}",
    "loops in loops": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}"
        "{% endfor %}{% endfor %}{% endfor %}"
    ),
    "sum of lists": "{% set n = (([[0]*100000])*1000) | sum(start=[]) | length %}",
    "replace": "{% set a = 'a' * 1000000 %}{% set n = (a | replace('a', a)) | length %}",
    "join": "{% set n = ([1] * 99999) | join('b' * 10000000) | length %}",
    "cycler": "{% set c = cycler(1) %}{% macro f() %}{{ c.next() }}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "map of maps": (
        "{% macro f(x) %}{{ ([x] * 9) | map('string') | map('length') | sum }}{{ f(x) }}{% endmacro %}"
        "{{ f(1) }}"
    ),
    "sort": "{% set n = (range(99999) | list * 160) | sort | sort | sort | length %}",
    "unique": "{% set n = ((range(99999) | list) * 160) | unique | list | length %}",
    "groupby": "{% set n = ((range(99999) | list) * 160) | groupby('real') | length %}",
    "tojson": (
        "{% set ns = namespace(x=['a']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        "{{ ns.x | tojson | length }}"
    ),
    "power": "{{ 10 ** 10 ** 10 }}",
    "shift by product": (
        "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = ns.x * 99999999 %}{% endfor %}"
    ),
    "format": "{{ '%999999999d' % 1 }}",
    "format method": "{{ '{:>999999999}'.format(1) }}",
    "center": "{{ 'a' | center(2000000000) }}",
    "ljust": "{{ 'a'.ljust(2000000000) }}",
    "range": "{% set n = range(2000000000) | list | length %}",
    "encode": (
        "{% set a = 'a' * 16000000 %}{% for i in range(99999) %}{% set n = a.encode('utf-32') %}{% endfor %}"
    ),
    "split": "{% set a = 'a' * 16000000 %}{% for i in range(99999) %}{% set n = a.split('a') %}{% endfor %}",
    "block of itself": "{% block a %}{{ self.a() }}{% endblock %}",
}
HARMLESS = ("shared: plain", "shared: escape_attr")
"""a template of no guile, and one that writes nothing where it reaches for a class"""
FEW = ("doubled text", "batch")


def shared() -> dict[str, str]:
    file = SHARED / "cases" / "faults" / "templates.jsonl"
    if not file.is_file():
        return {}
    lines = file.read_text(encoding="utf-8").splitlines()
    return {f"shared: {case['name']}": case["template"] for case in map(json.loads, lines)}


EVERY = {name: text + TURNS for name, text in ENDLESS.items()} | shared()
TRIED = EVERY if os.environ.get("TUNER_TEST_ALL") else {name: EVERY[name] for name in FEW}


@pytest.mark.parametrize("name", TRIED)
def test_a_template_ends_within_its_limits(tuner: Tuner, tiny_model: Path, tmp_path: Path, name: str) -> None:
    model, rows = shutil.copytree(tiny_model, tmp_path / "model"), tmp_path / "rows.jsonl"
    (model / "chat_template.jinja").write_text(EVERY[name], encoding="utf-8")
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    write_rows(rows, [{"messages": turns}] * 3)
    limits = ["machine.parse_timeout=3", "machine.parse_memory=0.5"]
    words = [*tiny_words(model, rows), "model/chat=tokenizer", "data.held_out=0", "until=tokenize", *limits]
    began = time.monotonic()
    done = tuner(f"root={tmp_path / 'out'}", *words, code=None, timeout=60)
    assert time.monotonic() - began < 30
    assert "Traceback" not in done.err
    refused = done.code == 2 and "chat template" in done.err
    assert refused or (done.code == 0 and name in HARMLESS), done.err
