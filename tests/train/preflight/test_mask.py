"""The mask of packs against every shipped template, whole and sabotaged."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.data.chat.test_templates import NAMES, shipped, small, without_ids
from tests.data.chat.vendors.conversations import CONVERSATIONS
from tuner.data.chat.template import Template, compile_template
from tuner.data.packs import Pack
from tuner.data.tokenizer.load import load_vocabulary
from tuner.train.preflight.mask import find_odd_spans

__all__ = ["small"]


@pytest.fixture(scope="module")
def made(small: Callable[..., Path]) -> Callable[[str], tuple[Template, list[Pack]]]:
    """A template, and packs of the conversations that it can write, one in each."""

    @cache
    def make(name: str) -> tuple[Template, list[Pack]]:
        template = compile_template(without_ids(shipped(name)), load_vocabulary(small(name)))
        batch = template.encode(list(CONVERSATIONS.values()))
        bounds = [(begin, end) for begin, end in pairwise(batch.offsets.tolist()) if end > begin]
        return template, [pack(batch.ids[begin:end], batch.trained[begin:end]) for begin, end in bounds]

    return make


def pack(ids: np.ndarray, trained: np.ndarray) -> Pack:
    one = np.ones(1, dtype=np.int32)
    return Pack(ids=ids, trained=trained, lengths=one * len(ids), files=0 * one, lines=one)


@pytest.mark.parametrize("name", NAMES)
def test_the_mask_that_a_template_makes_is_its_own(
    name: str, made: Callable[[str], tuple[Template, list[Pack]]]
) -> None:
    template, packs = made(name)
    count, odd = find_odd_spans(packs, template)
    assert count >= len(packs)
    assert not odd


def later(trained: np.ndarray) -> np.ndarray:
    return np.concatenate([[False], trained[:-1]])


def earlier(trained: np.ndarray) -> np.ndarray:
    return np.concatenate([trained[1:], [False]])


def everything(trained: np.ndarray) -> np.ndarray:
    return np.arange(len(trained)) > 0


def the_others(trained: np.ndarray) -> np.ndarray:
    return ~trained & everything(trained)


def without_the_end(trained: np.ndarray) -> np.ndarray:
    return trained & earlier(trained)


@pytest.mark.parametrize(
    "broken", [later, earlier, everything, the_others, without_the_end], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", ["chatml", "llama3", "glm4", "gemma3", "qwen3"])
def test_another_mask_is_not(
    name: str, broken: Callable[[np.ndarray], np.ndarray], made: Callable[[str], tuple[Template, list[Pack]]]
) -> None:
    template, packs = made(name)
    count, odd = find_odd_spans([replace(p, trained=broken(p.trained)) for p in packs], template)
    assert len(odd) > count / 2, [o.why for o in odd]
    assert all(o.why.startswith("a trained text ") for o in odd)


def test_documents_that_were_cut_are_no_oddity(made: Callable[[str], tuple[Template, list[Pack]]]) -> None:
    template, packs = made("chatml")

    def cut() -> Iterator[Pack]:
        for p in packs:
            middle = int(np.flatnonzero(p.trained)[0]) + 2
            yield pack(p.ids[:middle], p.trained[:middle])
            rest = p.trained[middle:].copy()
            rest[0] = False
            yield pack(p.ids[middle:], rest)

    assert not find_odd_spans(list(cut()), template)[1]


def test_plain_texts_are_trained_as_a_whole(made: Callable[[str], tuple[Template, list[Pack]]]) -> None:
    template, _ = made("llama3")
    batch = template.texts(["Snow is white.", "Coal is black."])
    count, odd = find_odd_spans(
        [pack(batch.ids[b:e], batch.trained[b:e]) for b, e in pairwise(batch.offsets.tolist())], template
    )
    assert (count, odd) == (2, [])
