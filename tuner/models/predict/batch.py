"""Prompts of different lengths answered together, in a cache that is allocated once.

    prompts, left-padded → one pass over all of them → a token each → one pass over those → …

Padding is masked and positions count from each prompt's own first token, so an answer is the one that the
prompt would get alone. Keys and values have room for the longest answer from the start, and attention reads
what is filled of it. Answers that have ended leave the batch when there are enough of them to be worth a copy
of the others'. Which token is drawn depends on the prompt's own seed, not on who is answered beside it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from tuner.models.generate import pad_left, sample_token
from tuner.models.stateful_layers import carried_state

LEAVE = 0.75
"""the share of a batch still at work at which the others leave it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What is to be answered."""

    ids: Sequence[int]
    most: int
    """the longest answer, in tokens"""
    seed: int = 0
    """of its draws"""


@dataclass(kw_only=True, slots=True)
class Answer:
    """What was answered."""

    ids: list[int] = field(default_factory=list)
    """without the token that ends it"""
    ended: Literal["end", "length"] = "length"
    """by a token that ends answers, or by its longest"""
    logprobs: list[float] = field(default_factory=list)
    """of each of its tokens, where they were asked for: the natural logarithm of what the model gave it"""


class PreallocatedLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of a layer, in room for `capacity` tokens that is allocated once."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        read = self.get_seq_length()
        end = read + key_states.shape[-2]
        if not self._room:
            self._room = [
                states.new_empty((*states.shape[:-2], self._capacity, states.shape[-1]))
                for states in (key_states, value_states)
            ]
        for room, states in zip(self._room, (key_states, value_states), strict=True):
            room[..., read:end, :] = states
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep those rows of the batch."""
        end = self.get_seq_length()
        kept = []
        for room in self._room:
            fresh = room.new_empty((len(indices), *room.shape[1:]))
            fresh[..., :end, :] = room[indices, ..., :end, :]
            kept.append(fresh)
        self._room = kept
        if kept:
            self.keys, self.values = (room[..., :end, :] for room in kept)


def preallocated_cache(model: PreTrainedModel, capacity: int) -> DynamicCache:
    """An empty cache for `capacity` tokens. Layers that see a window keep what transformers gives them: they
    hold no more than that.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [
        PreallocatedLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class Batcher:
    """A model that answers prompts together.

    model         attends with a kernel that honours a padding mask and a cache (attention="sdpa")
    stops         the ids that end an answer
    temperature   0 takes the likeliest token
    logprobs      whether those of the answers' tokens are kept
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stops: frozenset[int],
        temperature: float = 0.0,
        top_p: float = 1.0,
        logprobs: bool = False,
    ) -> None:
        self._model, self._stops = model, stops
        self._temperature, self._top_p, self._logprobs = temperature, top_p, logprobs
        takes = signature(model.forward).parameters
        # Logits of every token of the prompts would be the largest tensor of all.
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}
        self._positions = "position_ids" in takes
        self.alone = carried_state(model) is not None
        """whether prompts must be answered one by one: a state that begins in the padding is another one"""

    @torch.inference_mode()
    def answer(
        self, prompts: Sequence[Prompt], tick: Callable[[int], object] = lambda _: None
    ) -> list[Answer]:
        """The answers; `tick` hears, for each token, of how many prompts. One prompt only where `alone`."""
        device = self._model.device
        ids_BT, mask_BT = (part.to(device) for part in pad_left([p.ids for p in prompts], min(self._stops)))
        room = ids_BT.shape[1] + max(prompt.most for prompt in prompts)
        cache: Any = None if self.alone else preallocated_cache(self._model, room)
        draws = [torch.Generator().manual_seed(prompt.seed) for prompt in prompts]
        answers = [Answer() for _ in prompts]
        rows = list(range(len(prompts)))
        """of the batch: which prompts they are"""
        working = set(rows)
        while True:
            logits_BV, cache = self._feed(ids_BT, mask_BT, cache)
            chosen = self._choose(logits_BV, [draws[row] for row in rows])
            said = self._logs(logits_BV, chosen)
            tick(len(working))
            for place, row in enumerate(rows):
                if row in working and not self._take(answers[row], prompts[row], chosen[place], said, place):
                    working.discard(row)
            if not working:
                return answers
            ids_BT = torch.tensor(chosen, device=device)[:, None]
            if len(working) <= LEAVE * len(rows):
                stay = [place for place, row in enumerate(rows) if row in working]
                places = torch.tensor(stay, device=device)
                cache.batch_select_indices(places)
                ids_BT, mask_BT, rows = ids_BT[places], mask_BT[places], [rows[place] for place in stay]
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=1)

    def _feed(self, ids_BT: Tensor, mask_BT: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Read `ids_BT` behind what the cache holds; the logits [B, V] of what follows, in fp32."""
        words: dict[str, Any] = {} if self.alone else {"attention_mask": mask_BT}
        if self._positions and not self.alone:
            positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
            words["position_ids"] = positions_BT[:, -ids_BT.shape[1] :]
        out = self._model(input_ids=ids_BT, past_key_values=cache, use_cache=True, **words, **self._last_only)
        return out.logits[:, -1].float(), out.past_key_values

    def _choose(self, logits_BV: Tensor, draws: Sequence[torch.Generator]) -> list[int]:
        if self._temperature == 0:
            likeliest: list[int] = logits_BV.argmax(-1).tolist()
            return likeliest
        return [
            sample_token(logits_V, temperature=self._temperature, top_p=self._top_p, random=random)
            for logits_V, random in zip(logits_BV, draws, strict=True)
        ]

    def _logs(self, logits_BV: Tensor, chosen: Sequence[int]) -> list[float]:
        if not self._logprobs:
            return []
        chosen_B1 = torch.tensor(chosen, device=logits_BV.device)[:, None]
        logs: list[float] = (logits_BV.gather(1, chosen_B1) - logits_BV.logsumexp(1, True))[:, 0].tolist()
        return logs

    def _take(self, answer: Answer, prompt: Prompt, id_: int, logs: Sequence[float], place: int) -> bool:
        """Add a token to an answer; whether it goes on."""
        if id_ in self._stops:
            answer.ended = "end"
            return False
        answer.ids.append(id_)
        if logs:
            answer.logprobs.append(logs[place])
        return len(answer.ids) < prompt.most


def plan_batches(
    lengths: Sequence[int], most: Sequence[int], *, together: int, tokens: int
) -> list[list[int]]:
    """Which prompts are answered together: neighbours by length, the longest first, so that little is padded
    and what takes most memory is met at once; at most `together`, and at most `tokens` with padding and the
    longest answer, or one prompt.

    >>> plan_batches([3, 9, 4, 8], [1, 1, 1, 1], together=2, tokens=100)
    [[1, 3], [2, 0]]
    >>> plan_batches([3, 9, 4, 8], [1, 1, 1, 1], together=4, tokens=12)
    [[1], [3], [2, 0]]
    """
    batches: list[list[int]] = []
    widest = 0
    for at in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        batch = batches[-1] if batches else []
        widest = max(widest, lengths[at] + most[at])
        if not batch or len(batch) >= together or (len(batch) + 1) * widest > tokens:
            batches.append([])
            widest = lengths[at] + most[at]
        batches[-1].append(at)
    return batches
