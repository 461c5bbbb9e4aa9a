"""What a config.json may claim: sizes that a model can have, checked before anything is allocated by them."""

from collections.abc import Mapping
from typing import Any

from tuner.errors import DataError

SIZES = {
    **dict.fromkeys(
        (
            "hidden_size",
            "intermediate_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "ffn_hidden_size",
        ),
        1 << 20,
    ),
    **dict.fromkeys(
        ("d_model", "n_embd", "n_inner", "d_ff", "head_dim", "kv_channels", "q_lora_rank", "kv_lora_rank"),
        1 << 20,
    ),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 1 << 20),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers"), 1 << 12),
    **dict.fromkeys(
        ("num_attention_heads", "num_key_value_heads", "n_head", "multi_query_group_num"), 1 << 14
    ),
    **dict.fromkeys(
        ("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts", "num_experts_per_tok"),
        1 << 14,
    ),
    **dict.fromkeys(("vocab_size", "padded_vocab_size", "type_vocab_size"), 1 << 24),
    **dict.fromkeys(
        ("max_position_embeddings", "seq_length", "n_positions", "model_max_length", "sliding_window"),
        1 << 31,
    ),
}
"""keys of a config.json that decide how much is allocated, and the largest value of each that is believed:
some 20 times what any model has
"""
MAY_BE_NONE = frozenset(
    (
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "type_vocab_size",
        "sliding_window",
        "q_lora_rank",
    )
)
"""sizes that are 0 where a model has no such part"""
MOST_WEIGHTS = 10**13
"""parameters in the linear layers of the largest model that is believed"""
DEEPEST = 16
"""how far the objects of a config.json are nested in each other, at most"""


def check_config(config: Mapping[str, Any]) -> None:
    """Hold a config.json to sizes that a model can have, before anything is allocated by them. Raises
    DataError.
    """
    if not isinstance(config.get("model_type", ""), str):
        raise _absurd("model_type", config["model_type"], "a word")
    architectures = config.get("architectures")
    if architectures is not None and not (
        isinstance(architectures, list) and all(isinstance(name, str) for name in architectures)
    ):
        raise _absurd("architectures", architectures, "a list of names")
    _check(config, "", DEEPEST)


def _check(node: Any, path: str, left: int) -> None:
    if left == 0:
        raise DataError(
            f"config.json is nested more than {DEEPEST} levels deep, which no model's config is: refused. "
            "Get the model elsewhere."
        )
    if isinstance(node, list):
        for item in node:
            _check(item, path, left - 1)
    if not isinstance(node, Mapping):
        return
    for key, value in node.items():
        where = f"{path}.{key}" if path else str(key)
        if (most := SIZES.get(key)) is not None and value is not None:
            for number in value if isinstance(value, list) else [value]:
                if type(number) is not int or not (0 if key in MAY_BE_NONE else 1) <= number <= most:
                    raise _absurd(where, number, f"a whole number up to {most:,}")
        else:
            _check(value, where, left - 1)
    width, layers = (
        _first(node, "hidden_size", "n_embd", "d_model"),
        _first(node, "num_hidden_layers", "num_layers", "n_layer"),
    )
    inner = _first(node, "moe_intermediate_size", "intermediate_size", "ffn_hidden_size") * _first(
        node, "num_experts", "n_routed_experts"
    )
    weights = layers * width * (width + inner) + width * _first(node, "vocab_size", "padded_vocab_size")
    if weights > MOST_WEIGHTS:
        raise _absurd(path or "by its sizes", f"{weights:,} weights", f"at most {MOST_WEIGHTS:,}")


def _first(node: Mapping[str, Any], *keys: str) -> int:
    """The first of these sizes that a config has, 1 where it has none."""
    return next((value for key in keys if type(value := node.get(key)) is int and value > 0), 1)


def _absurd(where: str, value: Any, expected: str) -> DataError:
    return DataError(
        f"config.json says {where} {str(value)[:60]}, where {expected} was expected: no such model is "
        "loaded, and nothing was allocated. The file is damaged or malicious: get the model from a "
        "source that you trust."
    )
