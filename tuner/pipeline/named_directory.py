"""A directory that is called by a name and found by a digest: NAME-DIGEST."""

from pathlib import Path


class NamedDirectory:
    """That of a run, or of a sweep."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory

    @property
    def name(self) -> str:
        """What it is called: the directory's name without the digest."""
        return self.dir.name.rpartition("-")[0]

    @property
    def digest(self) -> str:
        """The end of the directory's name."""
        return self.dir.name.rpartition("-")[2]
