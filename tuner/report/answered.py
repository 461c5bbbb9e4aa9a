"""How the answers of a report were computed, and where else the same model would answer otherwise: in `chat`,
and by transformers on the merged model.
"""

from collections.abc import Mapping
from typing import Any

BITS = {"nf4": 4, "int8": 8}
"""of a base that was held so while it trained"""
NAMES = {"bf16": "bfloat16", "fp32": "float32"}
"""algo.precision, as dtypes are called"""

GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": None,
    "penalty_alpha": None,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
}
"""settings of generation_config.json that keep transformers from taking the likeliest token each time, and
their values where they do not
"""
DRAWS = ("temperature", "top_p", "top_k", "min_p", "typical_p")
"""those of drawing"""


def not_greedy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What in a generation_config.json makes transformers decode otherwise than greedily.

    >>> not_greedy({"eos_token_id": [2], "do_sample": True, "temperature": 0.6, "repetition_penalty": 1.0})
    {'do_sample': True, 'temperature': 0.6}
    >>> not_greedy({"temperature": 0.6, "repetition_penalty": 1.1})
    {'repetition_penalty': 1.1}
    """
    found = {key: settings[key] for key, plain in GREEDY.items() if settings.get(key) not in (None, plain)}
    draws = {key: settings[key] for key in DRAWS if settings.get(key) is not None}
    return found | draws if found.get("do_sample") else found


def answered(
    *,
    precision: str,
    quant: str,
    most: int,
    facts: Mapping[str, Any],
    before: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """How a result was asked, for its report.

    most       the longest answer, in tokens
    facts      of the measurement of the result, and `before` of the base: where, and in which dtype, it was
               computed
    settings   the generation_config.json beside the result
    """
    here = {"device": facts["device"], "dtype": facts["compute"]} if "compute" in facts else {}
    base = {"device": before["device"], "dtype": before["compute"]} if "compute" in before else here
    return (
        {"weights": NAMES[precision], "max_new_tokens": most}
        | here
        | ({"before": base} if base != here else {})
        | ({"quant": quant} if quant != "none" else {})
        | ({"generation_config": unlike} if (unlike := not_greedy(settings)) else {})
    )


def decoding(how: Mapping[str, Any]) -> str:
    """In a sentence, of what `answered` gave.

    >>> decoding({"weights": "bfloat16", "max_new_tokens": 256, "device": "cpu", "dtype": "bfloat16"})
    'Greedy, one turn each, up to 256 tokens, in bfloat16 on cpu.'
    """
    where = f", in {how['dtype']} on {how['device']}" if "dtype" in how else ""
    return f"Greedy, one turn each, up to {how['max_new_tokens']} tokens{where}."


def differences(how: Mapping[str, Any]) -> list[str]:
    """Where the base, `chat` or transformers on the merged model compute otherwise, a sentence each; of what
    `answered` gave.

    >>> differences({"weights": "bfloat16", "max_new_tokens": 256, "device": "cpu", "dtype": "bfloat16"})
    []
    """
    told = []
    if before := how.get("before"):
        told.append(
            f"The base was asked in {before['dtype']} on {before['device']}, the result in {how['dtype']} on "
            f"{how['device']}."
        )
    if how.get("dtype", how["weights"]) != how["weights"]:
        told.append(
            f"The weights are {how['weights']}, and this CPU computes them in {how['dtype']}, having no "
            f"instructions for {how['weights']}: transformers does so too with dtype=torch.{how['dtype']}."
        )
    if quant := how.get("quant"):
        told.append(
            f"`chat` on a GPU keeps the base in {BITS[quant]} bits with the adapter beside it, as it was "
            "trained; here and in the merged model both are one matrix, rounded once more."
        )
    if settings := how.get("generation_config"):
        said = ", ".join(f"{key}={value}" for key, value in settings.items())
        off = ", ".join(f"{key}={GREEDY[key]}" for key in settings if key in GREEDY)
        told.append(
            f"Beside the result lies the publisher's generation_config.json with {said}, which transformers "
            f"and serving engines follow; for the answers below they take {off}."
        )
    return told


def unlike_report(facts: Mapping[str, Any], *, device: str, dtype: str, quant: str) -> str:
    """That a report's answers, measured with these `facts`, were computed otherwise than a chat's; as a
    clause before another, empty where they were not.

    >>> facts = {"device": "cuda", "compute": "bfloat16"}
    >>> unlike_report(facts, device="cuda", dtype="bfloat16", quant="none")
    ''
    >>> unlike_report(facts, device="cpu", dtype="float32", quant="none")
    "the report's answers are in bfloat16 on cuda, and may differ; "
    """
    elsewhere = "compute" in facts and (facts["device"], facts["compute"]) != (device, dtype)
    if not facts or (quant == "none" and not elsewhere):
        return ""
    merged = "of the merged model" if quant != "none" else ""
    where = f"in {facts['compute']} on {facts['device']}" if elsewhere else ""
    return f"the report's answers are {' '.join(filter(None, (merged, where)))}, and may differ; "
