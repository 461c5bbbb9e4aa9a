"""Which libraries are installed here, and how one is. None is imported."""

from importlib.metadata import PackageNotFoundError, version

REQUIREMENTS = {
    "bitsandbytes": "bitsandbytes>=0.50",
    "deepspeed": "deepspeed>=0.19.8,<0.20",
    "triton": "triton>=3.6",
    "flash-attn": "flash-attn>=2.8",
    "flash-attn-4": "flash-attn-4>=4.0.0b36",
    "lm-eval": "lm-eval>=0.4.13",
    "hydra-joblib-launcher": "hydra-joblib-launcher>=1.2",
    "hydra-submitit-launcher": "hydra-submitit-launcher>=1.2",
    "optuna": "optuna>=5.0,<6",
}
"""distribution → what the extras of pyproject.toml ask for"""


def how_to_install(name: str) -> str:
    """The command line.

    >>> how_to_install("triton"), how_to_install("peft")
    ("pip install 'triton>=3.6'", 'pip install peft')
    """
    early = "--pre " if "b" in REQUIREMENTS.get(name, "").rpartition("=")[2] else ""
    wanted = f"'{REQUIREMENTS[name]}'" if name in REQUIREMENTS else name
    return f"pip install {early}{wanted}"


def installed_version(name: str) -> str | None:
    """The version of a distribution, by the name that pip knows it by; None where it is not installed.

    >>> installed_version("no-such-library") is None
    True
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return None
