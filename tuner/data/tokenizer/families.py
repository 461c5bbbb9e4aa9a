"""What model families know of their tokenizers beyond the files: it stands in the code of their publishers,
which is never run.

Ids are counted from the number of pieces: a family's special tokens lie behind them.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuner.errors import DataError

RESERVE = re.compile(
    r"\W*_*(unused|reserved|extra|special|spare|dummy|buffer|placeholder)\w*\W*", re.IGNORECASE
)
"""names of ids that publishers keep free"""

_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerFamily:
    """How a family uses its vocabulary."""

    special: tuple[str, ...] = ()
    """special tokens behind the last piece, in the order of their ids"""
    begin: tuple[str, ...] | None = None
    """what a text begins with; None for the begin token of the vocabulary"""
    names: Mapping[str, str] = field(default_factory=dict)
    """what it calls eos_token and so on, where its settings say nothing else"""
    cut: str = ""
    """the regular expression that cuts a text into words, for a vocabulary of tiktoken"""
    composes: bool = False
    """whether characters and their marks are joined first (Unicode's NFC)"""


GLM = TokenizerFamily(
    special=("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop"),
    begin=("[gMASK]", "sop"),
    names={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"},
)
"""ChatGLM2"""

GLM3 = TokenizerFamily(
    special=(*GLM.special, "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    begin=GLM.begin,
    names=GLM.names,
)
"""ChatGLM3"""

GLM4 = TokenizerFamily(
    special=tuple(
        (
            "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> "
            "<|observation|> <|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|>"
        ).split()
    ),
    begin=("[gMASK]", "<sop>"),
    names={"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    cut=_CUT.replace("NUMBER", r"\p{N}{1,3}"),
)
"""GLM-4 in its first layout"""

QWEN = TokenizerFamily(
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))),
    begin=(),
    names={"eos_token": "<|endoftext|>"},
    cut=_CUT.replace("NUMBER", r"\p{N}"),
    composes=True,
)
"""Qwen, the first generation"""


def sentencepiece_family(settings: Mapping[str, Any], config: Mapping[str, Any]) -> TokenizerFamily:
    """The family of a SentencePiece model, by tokenizer_config.json and config.json.

    ChatGLM2 and 3 have the same classes; only a config that says where it comes from tells them apart. Where
    none does, the rows of ChatGLM3's roles are named too: both have them in the embedding.
    """
    if not _glm(settings, config):
        return TokenizerFamily()
    return GLM if "chatglm2" in str(config.get("_name_or_path", "")).lower() else GLM3


NATIVE = ("Llama", "CodeLlama", "Mistral", "PreTrainedTokenizer", "TokenizersBackend")
"""how the names of transformers' own classes begin that take a text with its special tokens as one"""


def is_piecewise(settings: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer of SentencePiece's takes the texts between special tokens one by one, as if each
    were a text of its own.

    The publishers' own classes do (InternLM, Baichuan, ChatGLM), as transformers' Llama did once, which
    `legacy` keeps. Its Llama of today does not, nor does SentencePiece where a symbol of the user's stands in
    a text; that is taken where no class is named.
    """
    said = settings.get("legacy")
    if isinstance(said, bool):
        return said
    kind = str(settings.get("tokenizer_class") or "")
    own = (
        "auto_map" in settings or "AutoTokenizer" in (config.get("auto_map") or {}) or _glm(settings, config)
    )
    return own or (bool(kind) and not kind.startswith(NATIVE))


def tiktoken_family(name: str, settings: Mapping[str, Any], config: Mapping[str, Any]) -> TokenizerFamily:
    """The family of a vocabulary of tiktoken in a file of this name. Raises DataError for a family that is
    not known.
    """
    if name == "qwen.tiktoken":
        return QWEN
    if _glm(settings, config):
        return GLM4
    kind = (
        settings.get("tokenizer_class")
        or config.get("model_type")
        or "neither a tokenizer_class nor a model_type"
    )
    raise DataError(
        "it is a vocabulary of tiktoken, which says neither how texts are cut into words nor which tokens "
        f"are special, and of {kind} that is not known here. Bring a tokenizer.json for it"
    )


def _glm(settings: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    return (
        str(settings.get("tokenizer_class", "")).startswith("ChatGLM")
        or config.get("model_type") == "chatglm"
    )
