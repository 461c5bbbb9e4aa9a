"""README.md beside an adapter: what its base has to be, in words and as lines of Python that load it.

A plain LoRA on a plain base needs none. For a quantised base the same stands in QUANTIZATION, as
transformers' settings; adapter_config.json has no key for it, and PEFT warns of keys that it does not know.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

README = "README.md"
QUANTIZATION = "base_quantization.json"
"""how the base was held while the adapter trained: what BitsAndBytesConfig takes"""

SETTINGS: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "bfloat16",
    },
    "int8": {"load_in_8bit": True, "llm_int8_threshold": 6.0},
}
"""by algo.quant; tuner.models.quantize trains with these"""
BITS = {"nf4": "4 bits (NF4, double quantisation)", "int8": "8 bits (LLM.int8)"}

NEW_ROWS = """\
Besides its low-rank matrices, this adapter holds whole rows of the embedding, and of the output head where \
that is a matrix of its own: those of {count}
new tokens, up to the id {last}. The tokenizer beside it has these tokens, and its base model has not. Where \
the base's embedding is too small
for them, give it the rows before PEFT puts its values there, as below. Tools that take an adapter as it is, \
such as servers, expect its base's
vocabulary: give them the merged model.
"""
QUANTISED = """\
This adapter was trained on {base} in {bits}, and belongs to those weights: it makes up for their rounding \
too. Load the base so, as below
(`base_quantization.json` has the same settings), or take the merged model, which is this adapter in those \
weights. On the unquantised base it is
another model than the one that was trained and measured.
"""
SPLIT = """\
The base's output head is its embedding, one matrix for both, and this adapter changes one of the two. PEFT \
computes that as it was trained. Merging
makes two matrices of them, with `tie_word_embeddings: false`; `merge_and_unload` of PEFT changes both \
instead, so take the merged model.
"""


def write_card(out: Path, config: Mapping[str, Any], base: str, *, quant: str, split: bool) -> None:
    """Write what one has to know to use the adapter with this adapter_config.json, if there is anything.

    quant   how the base was held (algo.quant)
    split   whether the adapter is on one of two that are one matrix in the base, head or embedding
    """
    ids = new_token_ids(config)
    said = [QUANTISED.format(base=base, bits=BITS[quant])] if quant != "none" else []
    said += [NEW_ROWS.format(count=len(ids), last=max(ids))] if ids else []
    said += [SPLIT] if split else []
    if quant != "none":
        (out / QUANTIZATION).write_text(json.dumps(SETTINGS[quant], indent=2) + "\n", encoding="utf-8")
    if said:
        code = "\n".join(_code(base, quantised=quant != "none", rows=max(ids) + 1 if ids else 0))
        (out / README).write_text(
            "\n".join(["# What this adapter belongs to\n", *said, f"```python\n{code}\n```\n"]),
            encoding="utf-8",
        )


def _code(base: str, *, quantised: bool, rows: int) -> list[str]:
    lines = ["import json", "from pathlib import Path", ""] if quantised else []
    lines += ["from peft import PeftModel"]
    lines += [
        (
            "from transformers import AutoModelForCausalLM, "
            f"AutoTokenizer{', BitsAndBytesConfig' if quantised else ''}"
        ),
        "",
    ]
    if quantised:
        lines += [f'settings = BitsAndBytesConfig(**json.loads(Path("{QUANTIZATION}").read_text()))']
        lines += [f'model = AutoModelForCausalLM.from_pretrained("{base}", quantization_config=settings)']
    else:
        lines += [f'model = AutoModelForCausalLM.from_pretrained("{base}")']
    if rows:
        lines += [
            f"if model.get_input_embeddings().num_embeddings < {rows}:",
            f"    model.resize_token_embeddings({rows})",
        ]
    return [
        *lines,
        'model = PeftModel.from_pretrained(model, ".")',
        'tokenizer = AutoTokenizer.from_pretrained(".")',
    ]


def new_token_ids(settings: Mapping[str, Any]) -> set[int]:
    """The tokens whose rows an adapter holds, from its adapter_config.json.

    >>> ids = {"model.embed_tokens": [70, 71], "lm_head": [70, 71]}
    >>> sorted(new_token_ids({"trainable_token_indices": ids})), new_token_ids({})
    ([70, 71], set())
    """
    said = settings.get("trainable_token_indices") or {}
    return {id_ for ids in (said.values() if isinstance(said, dict) else [said]) for id_ in ids}
