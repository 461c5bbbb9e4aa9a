"""Which layout a checkpoint is in, from its config.json alone. Standard library only: a plan asks.

`native` is what transformers has a class for, as far as it is known here; whether the installed version has
it, the loading says. InternLM3 has one from 5.23 on only, and becomes Llama for every version.
"""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from tuner.errors import DataError
from tuner.files import link_or_copy

NATIVE = "native"
ORIGINAL, LAYOUT_FILE = "original", "layout.json"
"""the directory beside a rewritten checkpoint with what the way back needs; and in it, which layout that
is
"""
VERSIONS = {
    "internlm": 1,
    "internlm2": 1,
    "internlm3": 1,
    "baichuan": 1,
    "baichuan2": 1,
    "baichuan_13b": 1,
    "baichuan2_13b": 1,
    "chatglm2": 1,
    "chatglm3": 1,
    "glm4": 1,
    "qwen": 1,
    "minicpm": 1,
}
"""bumped when a family's rewriting writes other bytes"""

MODULES = {
    "internlm": "internlm",
    "internlm2": "internlm2",
    "internlm3": "internlm3",
    "baichuan": "baichuan",
    "baichuan2": "baichuan",
    "baichuan_13b": "baichuan",
    "baichuan2_13b": "baichuan",
    "chatglm2": "chatglm",
    "chatglm3": "chatglm",
    "glm4": "chatglm",
    "qwen": "qwen",
    "minicpm": "minicpm",
}
"""which module of this package rewrites a layout"""

ALIBI = "alibi_llama"
"""the model_type of tuner.kernels.alibi, which is too heavy to import here; a test holds them equal"""
WITHOUT_CLASS = frozenset({"baichuan_13b", "baichuan2_13b"})
"""layouts that become a class of tuner's own, since transformers has none: for other tools they are
written in the original layout
"""

NORMALISED = frozenset({"baichuan2", "baichuan2_13b"})
"""layouts whose head's rows are divided by their norms on every use"""

FIRST, SECOND = 64000, 125696
"""tokens of Baichuan's vocabulary, and of Baichuan2's"""
GLM4 = 151552
"""tokens of GLM-4's vocabulary"""


def detect_layout(config: Mapping[str, Any]) -> str:
    """The layout of the checkpoint with this config.json. Raises DataError where config.json does not tell,
    or where nothing can be done with it.

    >>> detect_layout({"model_type": "internlm2"}), detect_layout({"model_type": "llama"})
    ('internlm2', 'native')
    """
    kind, architectures = config.get("model_type"), config.get("architectures")
    match kind:
        case "internlm" | "internlm2" | "internlm3" | "minicpm" | "qwen":
            return str(kind)
        case "baichuan" | "baichuan2":
            return _baichuan(
                config, str(architectures[0]) if isinstance(architectures, list) and architectures else ""
            )
        case "chatglm":
            return _chatglm(config)
        case _:
            return NATIVE


def _baichuan(config: Mapping[str, Any], architecture: str) -> str:
    """All four say `baichuan`. The first 7B has a class of its own (with a capital C inside), Baichuan2-7B
    has rope and says how far, and a 13B has ALiBi and only a model_max_length. Only the second generation
    divides its head's rows by their norms, which no key says: its vocabulary tells.
    """
    vocabulary = config.get("vocab_size")
    generation = {FIRST: 1, SECOND: 2}.get(vocabulary) if isinstance(vocabulary, int) else None
    said = (
        f"config.json says model_type {config['model_type']}, architecture {architecture or 'unknown':.60} "
        f"and vocab_size {vocabulary!r:.40}"
    )
    if architecture == "BaiChuanForCausalLM" and generation != 2:
        return "baichuan"
    if architecture == "BaichuanForCausalLM":
        rope = config.get("max_position_embeddings") is not None
        if rope and generation != 1:
            return "baichuan2"
        if not rope and generation is not None:
            return "baichuan_13b" if generation == 1 else "baichuan2_13b"
        if not rope:
            raise DataError(
                f"{said}: a Baichuan-13B, or a Baichuan2-13B, which computes its logits otherwise; "
                f"vocabularies of {FIRST} and {SECOND} tell them apart. Say which it is: "
                "model.layout=baichuan_13b or model.layout=baichuan2_13b."
            )
    raise DataError(
        f"{said}, which together are none of the published Baichuans. Say which it is: model.layout=baichuan "
        "(7B), baichuan2 (7B), baichuan_13b or baichuan2_13b."
    )


def _chatglm(config: Mapping[str, Any]) -> str:
    """ChatGLM-6B has other keys. GLM-4 has a vocabulary and an epsilon of its own. ChatGLM2 and 3 differ
    in what rope_ratio means, and their name tells.
    """
    if "inner_hidden_size" in config or "position_encoding_2d" in config:
        raise DataError(
            "config.json describes ChatGLM-6B, the first, with positions of two dimensions and a prefix with "
            "bidirectional attention: no class of transformers computes that. Use ChatGLM3-6B or GLM-4-9B."
        )
    epsilon, path = config.get("layernorm_epsilon"), config.get("_name_or_path")
    name = PurePosixPath(path).name.lower() if isinstance(path, str) else ""
    if (
        config.get("padded_vocab_size") == GLM4
        or (isinstance(epsilon, float) and epsilon < 1e-6)
        or name.startswith("glm-4")
    ):
        return "glm4"
    for word, layout in (("chatglm2", "chatglm2"), ("codegeex2", "chatglm2"), ("chatglm3", "chatglm3")):
        if word in name:
            return layout
    ratio = config.get("rope_ratio")
    if ratio is None or ratio == 1:
        return "chatglm3"  # without a ratio the two are one
    raise DataError(
        f"config.json says model_type chatglm with rope_ratio {ratio!r:.40}, by which ChatGLM2 divides "
        "positions and ChatGLM3 multiplies the base of its rope, and no name says which this is. Say it: "
        "model.layout=chatglm2 or model.layout=chatglm3."
    )


def copy_original_files(base: Path, out: Path) -> None:
    """Of a family that was rewritten, what the way back to its own layout needs."""
    for path in sorted((base / ORIGINAL).glob("*")):
        (out / ORIGINAL).mkdir(exist_ok=True)
        link_or_copy(path, out / ORIGINAL / path.name)
