"""Marks that say of a turn whether it is trained, under the names of many trainers.

OpenAI's `weight`, `loss` and `train`; `loss_weight` (LLaMA-Factory), `loss_scale` (ms-swift), `train_on_turn`
and `training` (axolotl), `loss_mask` (verl), `output_with_loss` (XTuner), and the other way round `masked`
(torchtune). A share of a loss is refused, as no turn is trained in part; so is axolotl's `train_detail`,
which marks spans of a text, unless they say the same of all of it.
"""

from collections.abc import Mapping
from typing import Any

from tuner.data.conversation import RowError
from tuner.data.formats.checks import in_words

YES = tuple(
    (
        "weight loss train loss_weight loss_scale loss_multiplier train_on_turn train_on_message trainable "
        "is_trainable training trained loss_mask with_loss has_loss compute_loss calculate_loss "
        "output_with_loss"
    ).split()
)
NO = ("masked", "is_masked", "mask_loss", "ignore_loss", "no_loss", "skip_loss", "no_train", "untrained")
SPANS = "train_detail"
UNCLEAR = "mask"
"""some trainers train where it is 1, and some where it is 0"""
FLAGS = frozenset((*YES, *NO, SPANS, UNCLEAR))
WORDS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


def is_trained(turn: Mapping[str, Any], said: str) -> bool:
    """Whether a turn of the assistant is to be trained, as far as its flags say; `said` is its text.
    Raises RowError.
    """
    result = True
    for key in FLAGS.intersection(turn):
        if turn[key] is not None:
            result &= _spans(turn[key], said) if key == SPANS else flag_value(turn[key], key)
    return result


def flag_value(value: Any, key: str) -> bool:
    """What a flag says. Raises RowError."""
    if key == UNCLEAR:
        raise RowError(
            f"a turn has {key}, which some trainers train on and others leave out; say it with train or "
            "masked, 0 or 1"
        )
    found = WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if isinstance(value, bool | int | float) and value in (0, 1):
        found = bool(value)
    if found is None:
        raise RowError(
            f"{key} must be 0 or 1, false or true, and this is {in_words(value)}; no turn is trained in part"
        )
    return found is not (key in NO)


def flag_columns(row: Mapping[str, Any]) -> dict[str, list[bool]]:
    """Flags beside the turns, one for each: name → what it says."""
    return {
        key: [flag_value(one, key) for one in row[key]]
        for key in sorted(FLAGS.intersection(row))
        if is_flag_list(row[key], key)
    }


def is_flag_list(value: Any, key: str) -> bool:
    """Whether it is a list of flags."""
    return (
        isinstance(value, list)
        and bool(value)
        and key in YES + NO
        and all(isinstance(one, bool | int | float) and one in (0, 1) for one in value)
    )


def _spans(value: Any, said: str) -> bool:
    if value in ([], {}):
        return True
    end, found = 0, set[bool]()
    for span in (
        sorted(value, key=_begin)
        if isinstance(value, list) and all(isinstance(span, dict) for span in value)
        else ()
    ):
        if span.get("begin_offset") == end and isinstance(span.get("end_offset"), int):
            end, found = span["end_offset"] + 1, found | {span.get("train") is True}
    if end != len(said) or len(found) != 1:
        raise RowError(
            f"a turn has {SPANS}, which trains parts of a text; a turn can only be trained as a whole: say "
            "it with train, 0 or 1"
        )
    return found.pop()


def _begin(span: Mapping[str, Any]) -> int:
    begin = span.get("begin_offset")
    return begin if isinstance(begin, int) else -1
