"""OpenAssistant's trees of messages: a tree in a row, or a message in a row.

a tree      {"message_tree_id": "…", "prompt": {"message_id", "text", "role", "rank", "replies": [{…,
            "replies": […]}, …]}}
a message   {"message_id", "parent_id" (null at the root), "message_tree_id", "text", "role", "rank", …}

`best` is one conversation: from the root on, the reply of the lowest rank each time, those without a rank
behind the ranked ones, else in the order they stand in. `all` is one for each leaf, best first; an answer
that several of them share is trained in the first. A question at the end that nobody answered is cut off.
Messages that were deleted, that failed their review or that have no text are left out with all replies to
them. So is a tree of another `tree_state` than ready_for_export: one that was aborted for its low grade,
halted, or never finished. Nothing here recurses: a tree may be as deep as it likes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tuner.data.conversation import Conversation, LeftOut, Message, RowError
from tuner.data.formats.checks import RoleWords, in_words, quoted, required, speaker_of, text_of
from tuner.data.formats.format import Format, Options
from tuner.data.formats.unread_keys import Unread, may_matter

ROLES: RoleWords = {"prompter": "user", "assistant": "assistant", "user": "user", "system": "system"}

NODE = frozenset(
    "text role rank replies deleted review_result message_id parent_id message_tree_id tree_state".split()
)
TREE = frozenset(("prompt", "message_tree_id", "tree_state"))
"""what is read of a row that is a message, or a tree"""

NOT_BEST = "not on the path of the best-ranked replies"
UNANSWERED = "nobody answered it"
CUT_OFF = "it answers a message that is left out"
EMPTY = "it has no text"
EXPORTED = "ready_for_export"
"""the tree_state of a tree that is whole and reviewed"""
NO_ROOT = "no way leads to it from the first message of its tree"


@dataclass(kw_only=True, slots=True)
class Node:
    """A message, and the replies to it."""

    message: Message
    rank: float
    """infinite where there is none"""
    left_out: str = ""
    """why it is not to be used"""
    replies: list["Node"] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeResult:
    """What became of the messages of a tree."""

    conversations: tuple[Conversation, ...] = ()
    left: Mapping[int, str] = field(default_factory=dict)
    """number of a row → why it is in none of them"""
    bad: frozenset[int] = frozenset()
    """which of those can't be used as they are"""


def is_tree(row: Mapping[str, Any]) -> bool:
    """Whether a row is a tree."""
    root = row.get("prompt")
    return isinstance(root, dict) and ("replies" in root or "message_id" in root)


def is_message(row: Any) -> bool:
    """Whether a row is one message of a tree."""
    return isinstance(row, dict) and all(key in row for key in ("message_id", "parent_id", "role", "text"))


def read_tree(
    row: Mapping[str, Any], words: RoleWords = ROLES, paths: str = "best"
) -> tuple[Conversation, ...]:
    """The conversations of a row that is a tree, none where nothing was answered. Raises RowError, and
    LeftOut.
    """
    if is_message(row):
        raise RowError(
            "a message of a tree becomes part of a conversation only together with those around it: its file "
            "must begin with such a row"
        )
    if reason := _unfinished(row):
        raise LeftOut(reason)
    first = required(row, "prompt")
    if not isinstance(first, dict):
        raise RowError(
            f"prompt must be the first message of a tree, an object, and this is {in_words(first)}"
        )
    root = _node(first, words)
    open_ = [(root, first)]
    while open_:
        node, value = open_.pop()
        for reply in _replies(value):
            node.replies.append(_node(reply, words))
            open_.append((node.replies[-1], reply))
    return tuple(_conversations(root, paths))


def read_flat_tree(
    rows: Sequence[tuple[int, Any]], words: RoleWords = ROLES, paths: str = "best"
) -> TreeResult:
    """The conversations of a tree whose messages are rows of their own: (number, row) of each, in any
    order. Raises nothing.
    """
    nodes: dict[str, Node] = {}
    numbers: dict[str, int] = {}
    parents: dict[str, str | None] = {}
    left: dict[int, str] = {}
    for number, row in rows:
        try:
            id_, parent = text_of(row["message_id"], "message_id"), row["parent_id"]
            if id_ in nodes:
                raise RowError(f"the message_id {quoted(id_)} is that of row {numbers[id_]} already")
            parents[id_] = parent if parent is None else text_of(parent, "parent_id")
            nodes[id_], numbers[id_] = _node(row, words), number
        except RowError as error:
            left[number] = str(error)
    roots = [id_ for id_ in nodes if parents[id_] is None]
    if len(roots) > 1:
        where = ", ".join(str(numbers[id_]) for id_ in roots[:4])
        why = (
            f"its tree has {len(roots)} first messages (rows {where}), and one is expected: that with null "
            "as parent_id"
        )
        left |= dict.fromkeys(numbers.values(), why)
        return TreeResult(left=left, bad=frozenset(left))
    bad = frozenset(left)
    if reason := next((reason for _, row in rows if (reason := _unfinished(row))), ""):
        return TreeResult(left=left | dict.fromkeys(numbers.values(), reason), bad=bad)
    for id_, node in nodes.items():
        parent = parents[id_]
        if parent in nodes:
            nodes[parent].replies.append(node)
    if not roots:
        return TreeResult(left=left | dict.fromkeys(numbers.values(), NO_ROOT), bad=bad)
    root = nodes[roots[0]]
    places = {id(nodes[id_]): number for id_, number in numbers.items()}
    conversations = tuple(_conversations(root, paths))
    fates = _fates(root, paths)
    left |= {number: why for place, number in places.items() if (why := fates.get(place, NO_ROOT))}
    return TreeResult(conversations=conversations, left=left, bad=bad)


def _node(value: Any, words: RoleWords) -> Node:
    if not isinstance(value, dict):
        raise RowError(f"a message of a tree must be an object, and this is {in_words(value)}")
    role = speaker_of(required(value, "role"), words)
    rank = value.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float)):
        raise RowError(f"rank must be a number or null, and this is {in_words(rank)}")
    deleted, failed = value.get("deleted") is True, value.get("review_result") is False
    said = text_of(required(value, "text"), "text")
    return Node(
        message=Message(role=role, content=said, trained=role == "assistant"),
        rank=float("inf") if rank is None or rank != rank else rank,
        left_out="it was deleted"
        if deleted
        else "it failed its review"
        if failed
        else ""
        if said.strip()
        else EMPTY,
    )


def _unfinished(row: Mapping[str, Any]) -> str:
    """Why a tree is not to be used; empty where it is."""
    state = row.get("tree_state")
    return f"its tree is {state}, not {EXPORTED}" if isinstance(state, str) and state != EXPORTED else ""


def _replies(value: Mapping[str, Any]) -> list[Any]:
    found = value.get("replies")
    if found is not None and not isinstance(found, list):
        raise RowError(f"replies must be a list of messages, and this is {in_words(found)}")
    return found or []


def _best_first(node: Node) -> list[Node]:
    return sorted((reply for reply in node.replies if not reply.left_out), key=lambda reply: reply.rank)


def _paths(root: Node, paths: str) -> Iterator[list[Node]]:
    """From the root to a leaf: the best way, or every way, best first. The list is the same one each time."""
    path: list[Node] = []
    open_ = [] if root.left_out else [(root, 0)]
    while open_:
        node, depth = open_.pop()
        path[depth:] = [node]
        replies = _best_first(node)
        if not replies:
            yield path
        open_ += [(reply, depth + 1) for reply in reversed(replies[:1] if paths == "best" else replies)]


def _answered(path: Sequence[Node]) -> Sequence[Node]:
    end = len(path)
    while end and path[end - 1].message.role != "assistant":
        end -= 1
    return path[:end]


def _conversations(root: Node, paths: str) -> Iterator[Conversation]:
    trained: set[int] = set()
    for path in _paths(root, paths):
        said = _answered(path)
        if not said or id(said[-1]) in trained:  # nothing that was not said before
            continue
        yield Conversation(
            messages=tuple(
                replace(node.message, trained=False) if id(node) in trained else node.message for node in said
            )
        )
        trained.update(id(node) for node in said)


def _fates(root: Node, paths: str) -> dict[int, str]:
    """id of a node → why it is in no conversation, empty where it is in one."""
    used: set[int] = set()
    tried: set[int] = set()
    for path in _paths(root, paths):
        tried.update(map(id, path))
        used.update(map(id, _answered(path)))
    result: dict[int, str] = {}
    open_ = [(root, "")]
    while open_:
        node, above = open_.pop()
        place = id(node)
        result[place] = (
            above or node.left_out or ("" if place in used else UNANSWERED if place in tried else NOT_BEST)
        )
        open_ += [(reply, CUT_OFF if above or node.left_out else "") for reply in node.replies]
    return result


def _inside(row: Mapping[str, Any], _: Options) -> Unread:
    """What is not read of the messages of a tree."""
    first = row.get("prompt")
    open_ = [first] if isinstance(first, dict) else []
    while open_:
        node = open_.pop()
        for key, value in node.items():
            if key not in NODE and may_matter(key, value):
                yield ("prompt", key), value
        open_ += [reply for reply in node.get("replies") or () if isinstance(reply, dict)]


FORMAT = Format(
    name="oasst",
    version=2,
    columns=(
        *("prompt", "message_tree_id", "message_id", "parent_id", "role", "text", "rank"),
        *("deleted", "review_result", "tree_state"),
    ),
    fits=lambda row: is_tree(row) or is_message(row),
    roles=ROLES,
    read=lambda row, options: read_tree(row, options.words, options.paths),
    own=lambda row, _: TREE if isinstance(row.get("prompt"), dict) else NODE,
    beside=lambda *_: frozenset(),
    inside=_inside,
)
