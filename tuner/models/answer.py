"""Greedy answers of a model to prompts of different lengths, in one left-padded batch.

Padding is masked and positions count from each prompt's own first token, so an answer is the one the prompt would get alone. Settings that a model
ships for sampling (temperature, penalties) are set aside: the base and the tuned model are asked under the same rule.
"""

from collections.abc import Iterable, Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from tuner.models.recurrence import carries

BATCH = 16


def pad_left(prompts: Sequence[Sequence[int]], filler: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts as one batch that ends flush: ids [B, T] int64 and mask [B, T] int64 with 0 on the filling.

    >>> pad_left([[5, 6], [7]], 0)[0].tolist()
    [[5, 6], [0, 7]]
    """
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.tensor([[filler] * (width - len(prompt)) + list(prompt) for prompt in prompts], dtype=torch.long)
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], dtype=torch.long)
    return ids_BT, mask_BT


@torch.inference_mode()
def answer(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], *, end_id: int, max_new_tokens: int, stops: Iterable[int] = ()
) -> list[list[int]]:
    """The ids that follow each prompt, without the token that ends them (`end_id` or one of `stops`), at most `max_new_tokens` of them.

    `model` attends with a kernel that honours a padding mask and a cache (attention="sdpa"), not with the one for packed rows.
    """
    ends = [end_id, *sorted({*stops} - {end_id})]
    settings = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=ends, pad_token_id=end_id, use_cache=True)
    shipped, model.generation_config = model.generation_config, settings
    answers: list[list[int]] = []
    try:
        together = BATCH if carries(model) is None else 1  # a state that begins in the filling is another one
        for start in range(0, len(prompts), together):
            ids_BT, mask_BT = pad_left(prompts[start : start + together], end_id)
            out_BT = model.generate(input_ids=ids_BT.to(model.device), attention_mask=mask_BT.to(model.device))
            answers += [_before(row, ends) for row in out_BT[:, ids_BT.shape[1] :].tolist()]
    finally:
        model.generation_config = shipped
    return answers


def _before(ids: list[int], ends: Sequence[int]) -> list[int]:
    return ids[: next((i for i, id_ in enumerate(ids) if id_ in ends), len(ids))]
