"""Which libraries are installed here. None is imported."""

from importlib.metadata import PackageNotFoundError, version


def installed_version(name: str) -> str | None:
    """The version of a distribution, by the name that pip knows it by; None where it is not installed.

    >>> installed_version("no-such-library") is None
    True
    """
    try:
        return version(name)
    except PackageNotFoundError:
        return None
