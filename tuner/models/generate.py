"""A conversation, and an answer to it, token by token: what the cache has read is not read again, and a
character is given out when it is whole.

And greedy answers to prompts of different lengths, in one left-padded batch. Padding is masked and positions
count from each prompt's own first token, so an answer is the one the prompt would get alone. Settings that a
model ships for sampling (temperature, penalties) are set aside: the base and the tuned model are asked under
the same rule.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from tuner.data.chat.template import Template
from tuner.data.conversation import Conversation, Message, split_reasoning
from tuner.files import read_json
from tuner.models.stateful_layers import carried_state

CHUNK = 128
"""tokens of a prompt that are read at once: between two chunks an answer can be stopped"""
HELD = 8
"""tokens after which what is no character yet never becomes one"""
BATCH = 16
"""prompts that are answered together"""


class Dialogue:
    """What was said so far. Texts are kept, not ids: they are tokenised each time, as a row of training data
    is.
    """

    def __init__(self, template: Template, system: str | None) -> None:
        self._template = template
        self.system = system
        """in place of the system prompt of the training data; None leaves that"""
        self.turns: list[tuple[str, str]] = []
        """questions and their answers"""

    def messages(self, question: str) -> list[Message]:
        """The conversation as a row would have it, up to a question without an answer."""
        said = [] if self.system is None else [Message(role="system", content=self.system)]
        for asked, answered in self.turns:
            if self._template.reasons and "</think>" in answered and "<think>" not in answered:
                answered = f"<think>{answered}"  # a prompt may open the thought
            said += [Message(role="user", content=asked), Message(role="assistant", content=answered)]
        said.append(Message(role="user", content=question))
        return (
            list(split_reasoning(Conversation(messages=tuple(said))).messages)
            if self._template.reasons
            else said
        )

    def prompt(self, question: str) -> list[int]:
        """The ids up to where the answer begins."""
        return self._template.prompt(self.messages(question))


def stop_ids(home: Path, stops: Iterable[int]) -> frozenset[int]:
    """Every id that ends an answer: those of the template, and those that the artifact's generation
    settings name.
    """
    told = (read_json(home / "generation_config.json") or {}).get("eos_token_id")
    return frozenset([*stops, *(told if isinstance(told, list) else [] if told is None else [told])])


def context_of(model: PreTrainedModel, told: int | None) -> int | None:
    """The longest sequence, in tokens: by its config and as `told`. None where neither says."""
    known = (told, getattr(model.config.get_text_config(), "max_position_embeddings", None))
    return min((length for length in known if length), default=None)


class CachedGenerator:
    """A model that answers, and the cache of what it has read.

    model   attends with a kernel that honours a cache (attention="sdpa")
    stops   the ids that end an answer
    seed    of the draws; None for a new one
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        stops: frozenset[int],
        temperature: float,
        top_p: float,
        seed: int | None,
    ) -> None:
        self._model, self._tokenizer, self._stops = model, tokenizer, stops
        self._temperature, self._top_p = temperature, top_p
        self._random = torch.Generator()
        if seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(seed)
        # Logits of every token of a prompt would be the largest tensor of all; only the last ones are looked
        # at.
        self._last_only = (
            {"logits_to_keep": 1} if "logits_to_keep" in signature(model.forward).parameters else {}
        )
        self._read: list[int] = []
        self._cache = None
        self.ended: Literal["end", "length", "stopped"] = "end"
        """what ended the last answer: a token of `stops`, `most`, or the user"""

    @property
    def read(self) -> tuple[int, ...]:
        """The ids in the cache."""
        return tuple(self._read)

    def answer(
        self, prompt: Sequence[int], *, most: int, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        """The text that follows `prompt`, in pieces: at least one a token, some of them empty, at most `most`
        tokens.

        `stopped` is asked before each token. Afterwards `ended` says what ended it.
        """
        return decode_stream(self._tokenizer, self._tokens(prompt, most, stopped))

    def _tokens(self, prompt: Sequence[int], most: int, stopped: Callable[[], bool]) -> Iterator[int]:
        ids = list(prompt)
        self._rewind(ids)
        for _ in range(most):
            logits_V = None
            while len(self._read) < len(ids):
                if stopped():
                    self.ended = "stopped"
                    return
                logits_V = self._feed(ids[len(self._read) : len(self._read) + CHUNK])
            assert logits_V is not None
            ids.append(
                sample_token(logits_V, temperature=self._temperature, top_p=self._top_p, random=self._random)
            )
            if ids[-1] in self._stops:
                self.ended = "end"
                return
            yield ids[-1]
        self.ended = "length"

    def _rewind(self, ids: Sequence[int]) -> None:
        """Forget what follows the common beginning of `ids` and the cache. The last of `ids` is always
        read anew, for its logits.
        """
        known = common_prefix(self._read, ids[:-1])
        if known < len(self._read):
            try:
                self._cache.crop(known - len(self._read))  # type: ignore[attr-defined]
                del self._read[known:]
            except RuntimeError:  # layers with a window or a running state have no way back
                self._forget()

    def _forget(self) -> None:
        self._read, self._cache = [], None

    @torch.inference_mode()
    def _feed(self, ids: list[int]) -> Tensor:
        """Read `ids` after what was read; the logits [V] of what follows."""
        ids_1T = torch.tensor([ids], device=self._model.device)
        try:
            out = self._model(
                input_ids=ids_1T, past_key_values=self._cache, use_cache=True, **self._last_only
            )
        except BaseException:  # a pass that broke off leaves the layers of the cache unequal
            self._forget()
            raise
        self._cache = out.past_key_values
        self._read += ids
        logits_V: Tensor = out.logits[0, -1]
        return logits_V


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many ids two sequences begin with alike.

    >>> common_prefix([1, 2, 3], [1, 2, 4, 5]), common_prefix([], [1])
    (2, 0)
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def sample_token(logits_V: Tensor, *, temperature: float, top_p: float, random: torch.Generator) -> int:
    """The next token: the likeliest at temperature 0, else one drawn from softmax(logits / temperature).

    With top_p below 1 it is drawn among the fewest likeliest tokens that have this probability together
    (arXiv:1904.09751, section 3.1).
    """
    if temperature == 0:
        return int(logits_V.argmax())
    scores_V = logits_V.double().cpu()
    likely_V, order_V = torch.softmax((scores_V - scores_V.max()) / temperature, dim=0).sort(
        descending=True, stable=True
    )
    before_V = likely_V.cumsum(0) - likely_V
    before_V[0] = -1.0  # the likeliest always stays
    return int(order_V[torch.multinomial(likely_V * (before_V < top_p), 1, generator=random)])


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """The text of `ids`, piece by piece; joined it is what they decode to, special tokens left out.

    A token that ends inside a character gives "" and is given out with the one that completes it. Bytes that
    never become one are left out.
    """
    # what was given out last: a decoder may write a token's space only after another token
    context: list[int] = []
    fresh: list[int] = []
    before = ""
    for id_ in ids:
        fresh.append(id_)
        text = tokenizer.decode(context + fresh, skip_special_tokens=True)
        if text.endswith("\ufffd") and len(fresh) < HELD:
            yield ""
            continue
        yield text[len(before) :].replace("\ufffd", "")
        context, fresh = (fresh if len(text) > len(before) else context + fresh), []
        before = tokenizer.decode(context, skip_special_tokens=True)
    if fresh:
        yield tokenizer.decode(context + fresh, skip_special_tokens=True)[len(before) :].replace("\ufffd", "")


def pad_left(prompts: Sequence[Sequence[int]], filler: int) -> tuple[Tensor, Tensor]:
    """Prompts as one batch that ends flush: ids [B, T] int64 and mask [B, T] int64 with 0 on the filling.

    >>> pad_left([[5, 6], [7]], 0)[0].tolist()
    [[5, 6], [0, 7]]
    """
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.tensor(
        [[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts], dtype=torch.long
    )
    mask_BT = torch.tensor(
        [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], dtype=torch.long
    )
    return ids_BT, mask_BT


@torch.inference_mode()
def generate_answers(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    end_id: int,
    max_new_tokens: int,
    stops: Iterable[int] = (),
    tick: Callable[[int], object] = lambda _: None,
) -> list[list[int]]:
    """The ids that follow each prompt, without the token that ends them (`end_id` or one of `stops`), at most
    `max_new_tokens` of them.

    `tick` hears of each token: of how many prompts.

    `model` attends with a kernel that honours a padding mask and a cache (attention="sdpa"), not with the one
    for packed rows.
    """
    ends = [end_id, *sorted({*stops} - {end_id})]
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=end_id, use_cache=True
    )
    shipped, model.generation_config = model.generation_config, settings
    answers: list[list[int]] = []
    try:
        together = (
            BATCH if carried_state(model) is None else 1
        )  # a state that begins in the filling is another one
        for start in range(0, len(prompts), together):
            ids_BT, mask_BT = pad_left(prompts[start : start + together], end_id)
            out_BT = model.generate(
                input_ids=ids_BT.to(model.device),
                attention_mask=mask_BT.to(model.device),
                stopping_criteria=StoppingCriteriaList([_Ticks(tick)]),
            )
            answers += [_before(row, ends) for row in out_BT[:, ids_BT.shape[1] :].tolist()]
    finally:
        model.generation_config = shipped
    return answers


class _Ticks(StoppingCriteria):  # type: ignore[misc]
    """Asked after each token; stops nothing."""

    def __init__(self, tick: Callable[[int], object]) -> None:
        self._tick = tick

    def __call__(self, ids_BT: Tensor, _scores: Any, **_: Any) -> Tensor:
        self._tick(len(ids_BT))
        return torch.zeros(len(ids_BT), dtype=torch.bool, device=ids_BT.device)


def _before(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((i for i, id_ in enumerate(ids) if id_ in ends), len(ids))]
