"""Attention by the FlashAttention packages, where one is installed: 3 (`flash_attn_interface`) or 2
(`flash-attn`); 4 is tuner.kernels.flash4.

They have one function in common, whose keywords differ a little. Version 2 is the one for every GPU from
Ampere on, with dropout and soft caps (arXiv:2307.08691); 3 is for Hopper (arXiv:2407.08608).
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from tuner.kernels.backend import AttentionNeeds, Backend, Scoring
from tuner.kernels.flash_support import flash_keywords, flash_rows, flash_trouble, flash_window
from tuner.kernels.packed_documents import Documents

MODULES = {3: "flash_attn_interface", 2: "flash_attn.flash_attn_interface"}
MAJORS = {3: (9,), 2: (8, 9, 10, 11, 12)}
"""the compute capabilities that each is for"""


def installed(version: int) -> bool:
    """Whether the package of that version is there. Nothing is imported of it."""
    top, _, below = MODULES[version].partition(".")
    return find_spec(top) is not None and (not below or find_spec(MODULES[version]) is not None)


def version_for(major: int, *, plain: bool) -> int | None:
    """The newest version that is installed, is made for GPUs of compute capability `major`, and does what is
    asked.

    plain   whether there is neither a soft cap nor dropout; 2 has those
    """
    able = (version for version in MODULES if major in MAJORS[version] and (plain or version == 2))
    return next((version for version in able if installed(version)), None)


def trouble(needs: AttentionNeeds) -> str | None:
    """Why it can't be used here, if so."""
    if not any(installed(version) for version in MODULES):
        return "no FlashAttention package is installed"
    if reason := flash_trouble(needs, softcap=True, dropout=True):
        return reason
    major = torch.cuda.get_device_capability(needs.device)[0]
    version = version_for(major, plain=not (needs.softcap or needs.dropout))
    if version is None:
        return (
            "the FlashAttention package that is installed is not for this GPU, or not for scores such as "
            "this model's"
        )
    try:
        varlen_function(version)
    except (ImportError, OSError, RuntimeError) as error:  # made for another PyTorch or CUDA
        return f"FlashAttention {version} can't be imported ({str(error).splitlines()[0]})"
    return None


@cache
def varlen_function(version: int) -> Callable[..., Any]:
    """That version's `flash_attn_varlen_func`."""
    found: Callable[..., Any] = import_module(MODULES[version]).flash_attn_varlen_func
    return found


def attend(q_1HND: Tensor, k_1KND: Tensor, v_1KNE: Tensor, documents: Documents, scoring: Scoring) -> Tensor:
    """softmax(q k' * scaling) v within each document; returns [1, N, H, E]."""
    plain = scoring.softcap is None and not scoring.dropout
    version = version_for(torch.cuda.get_device_capability(q_1HND.device)[0], plain=plain)
    assert version is not None
    q_NHF, k_NKF, v_NKF = flash_rows(q_1HND, k_1KND, v_1KNE)
    words = call_keywords(
        varlen_function(version),
        documents,
        scoring,
        deterministic=torch.are_deterministic_algorithms_enabled(),
    )
    out = varlen_function(version)(q_NHF, k_NKF, v_NKF, **words)
    out_NHF: Tensor = out[0] if isinstance(out, tuple) else out
    return out_NHF[None, :, :, : v_1KNE.shape[-1]]


def call_keywords(
    called: Callable[..., Any], documents: Documents, scoring: Scoring, *, deterministic: bool
) -> dict[str, Any]:
    """What `called` is told besides q, k and v. Raises NotImplementedError where it has no word for what
    must be said.
    """
    words = flash_keywords(documents.offsets, documents.longest, scoring.scaling)
    before, after = flash_window(scoring.window, documents.longest)
    if before >= 0:
        words["window_size"] = (before, after)
    if scoring.softcap is not None:
        words["softcap"] = scoring.softcap
    if scoring.dropout:
        words["dropout_p"] = scoring.dropout
    if deterministic:
        words["deterministic"] = True
    if unknown := words.keys() - signature(called).parameters.keys():
        raise NotImplementedError(f"this FlashAttention has no {', '.join(sorted(unknown))}")
    return words


BACKEND = Backend(
    name="flash",
    words="the FlashAttention package (3 or 2)",
    attend=attend,
    trouble=trouble,
    package="flash-attn",
)
