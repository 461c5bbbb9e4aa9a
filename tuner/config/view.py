"""The view of the config that a stage gets, the leaves of the config's tree, and which of them decide a
stage's result.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from tuner.config.fields import Declaration
from tuner.config.schema import Config


class View:
    """The config as one stage may read it: any field that was not declared for the stage raises. What leaves
    no artifact, and so has no fingerprint, is no stage and may read all.
    """

    __slots__ = ("_node", "_path", "_stage")

    def __init__(self, node: Any, stage: str | None, path: str = "") -> None:
        self._node, self._stage, self._path = node, stage, path

    def __getattr__(self, name: str) -> Any:
        derived = getattr(type(self._node), name, None)
        if isinstance(derived, property):  # what it reads of the node is read through this view
            return derived.fget(self)  # type: ignore[misc]
        value = getattr(self._node, name)
        path = f"{self._path}{name}"
        if is_dataclass(value):
            return View(value, self._stage, f"{path}.")
        if is_node_list(value):
            return tuple(View(node, self._stage, f"{path}.{i}.") for i, node in enumerate(value))
        declared = next(
            (
                f.metadata["declared"]
                for f in fields(self._node)
                if f.name == name and "declared" in f.metadata
            ),
            None,
        )
        if (
            declared is not None
            and self._stage is not None
            and self._stage not in declared.stages | declared.seen_by
        ):
            raise AttributeError(
                f"{path} is not declared for the stage {self._stage}; declare it in tuner/config/schema/, "
                "so that it enters the fingerprint"
            )
        return value


def is_node_list(value: Any) -> bool:
    """Whether a field holds a list of nodes, as `data.parts` does."""
    return isinstance(value, tuple) and bool(value) and all(is_dataclass(item) for item in value)


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Declaration, Any]]:
    """All fields of a config tree as (dotted path, declaration, value).

    >>> [path for path, declared, _ in leaves(Config()) if path.startswith("algo.optim.")][:2]
    ['algo.optim.name', 'algo.optim.lr']
    """
    for f in fields(node):
        value = getattr(node, f.name)
        if is_dataclass(value):
            yield from leaves(value, f"{path}{f.name}.")
        elif is_node_list(value):
            for i, item in enumerate(value):
                yield from leaves(item, f"{path}{f.name}.{i}.")
        elif "declared" in f.metadata:  # an empty list of nodes has none
            yield f"{path}{f.name}", f.metadata["declared"], value


def identity_fields(config: Config, stage: str) -> dict[str, Any]:
    """The identity fields that enter `stage`, by dotted path; fields at their left-out value stay out."""
    return {
        path: value
        for path, declared, value in leaves(config)
        if declared.kind == "identity" and stage in declared.stages and value != declared.left_out
    }


def identity_of(view: View) -> dict[str, Any]:
    """The identity fields that enter the view's own stage, by dotted path: what decides its result."""
    return identity_fields(view._node, view._stage) if view._stage else {}
