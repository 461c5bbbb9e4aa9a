"""Which rows: `data`, and the sources of a mixture."""

from dataclasses import dataclass, field
from typing import Literal

from tuner.config.fields import identity, neutral, place
from tuner.config.schema.chat import of_text


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSource:
    """Where rows come from, and how they are read: one source of a mixture."""

    label: str = identity("tokenize", default="", left_out="", seen_by=("fetch_data",))
    """what the ledger calls it: filled by the tool in a mixture"""
    source: Literal["path", "package", "hub", "modelscope"] = place("fetch_data", "tokenize", default="path")
    """`path`: local files; `package`: files that an installed Python package carries; `hub`, `modelscope`:
    a data set of a hub
    """
    path: str | tuple[str, ...] | None = place("fetch_data", default=None)
    """a file, a pattern or a list of them; inside the package for source=package"""
    package: str | None = place("fetch_data", default=None)
    """the name to import, for source=package"""
    repo: str | None = identity("fetch_data", default=None, left_out=None)
    """the data set's name on its hub, such as OpenAssistant/oasst1"""
    revision: str | None = identity("fetch_data", default=None, left_out=None)
    """a branch, a tag or a commit; the hub's default when null"""
    files: str | tuple[str, ...] | None = identity("fetch_data", default=None, left_out=None)
    """patterns of the files to take from it; those of the training split when null"""
    encoding: str = identity("tokenize", default="auto", left_out="auto", seen_by=("fetch_data",))
    """of text files; `auto` is UTF-8, or UTF-16 with a byte order mark"""
    format: Literal[
        "auto",
        "messages",
        "sharegpt",
        "xtuner",
        "alpaca",
        "prompt",
        "text",
        "templated",
        "guanaco",
        "oasst",
        "preference",
        "label",
        "chosen",
    ] = identity("tokenize", default="auto", seen_by=("fetch_data",))
    """how a row is read; `auto` looks at its keys, and so does `chosen`, which takes the better answer of
    rows that compare answers
    """
    columns: dict[str, str] = identity("tokenize", default=dict, left_out={}, seen_by=("fetch_data",))
    """where a format's columns are found in a row: another name, a path such as `instances.0.input`, or a
    text with {names} in it
    """
    roles: dict[str, str | tuple[str, ...]] = identity(
        "tokenize", default=dict, left_out={}, seen_by=("fetch_data",)
    )
    """other words for system, user, assistant and tool"""
    paths: Literal["best", "all"] = identity(
        "tokenize", default="best", left_out="best", seen_by=("fetch_data",)
    )
    """of a tree of messages: the path of the best-ranked replies, or every path"""
    split: str = identity("tokenize", default="auto", left_out="auto", seen_by=("fetch_data",))
    """of rows that say in a column `split` of which one they are: `auto` reads those for training, where
    there are others; `all`, or the name of one
    """
    fill: dict[str, str] = identity("tokenize", default=dict)
    """words for the `{{name}}` places in the rows"""
    system: str | None = of_text(default=None)
    """a system prompt for conversations that bring none, before model.chat.default_system"""
    leave: str | tuple[str, ...] = identity("tokenize", default=(), left_out=())
    """columns and keys that no format reads and that may be left unread, such as [id,messages.timestamp]; `*`
    is all. The ledger counts them, and no line names them
    """
    unread: Literal["name", "error"] = identity("tokenize", default="name", left_out="name")
    """what happens where anything else in a row is not read, such as a column with text or a key of a turn:
    it is named once, or the row is an error
    """
    take: int | float | None = identity("tokenize", default=None, left_out=None)
    """how many rows are drawn (by data.seed), or what share of them; 2.0 takes each twice"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Data(DataSource):
    """Which rows, and how they become packs of tokens."""

    of: dict[str, int | float] = neutral(default=dict)
    """the sources of a mixture (data=mix): an option of `data` or a file → `take`"""
    parts: tuple[DataSource, ...] = field(default=())
    """what `of` names: filled by the tool"""
    length: int = identity("tokenize", "train", default=2048, at_least=1)
    """the length of a pack, in tokens"""
    overlong: Literal["auto", "truncate", "split", "drop", "error"] = identity("tokenize", default="auto")
    """what happens to a row longer than a pack; `auto` splits a plain text and truncates a conversation,
    where possible between two turns
    """
    loss: Literal["assistant", "last", "all"] = identity(
        "tokenize", default="assistant", left_out="assistant", seen_by=("train",)
    )
    """on what the assistant writes, on its last turn only, or on all text"""
    reasoning: Literal["last", "every_turn", "keep", "strip"] = identity(
        "tokenize", default="last", left_out="last"
    )
    """`last` shows the thoughts that the template shows, and trains on no answer whose thoughts it hides;
    `every_turn` makes one sample of each turn; `keep` shows all; `strip` none"""
    bad_rows: Literal["error", "skip"] = identity("tokenize", default="error", left_out="error")
    """what happens to rows that can't be read; the ledger counts those that were skipped"""
    duplicates: Literal["keep", "drop"] = identity("tokenize", default="keep", left_out="keep")
    """what happens to rows that give the same tokens again"""
    held_out: float | Literal["auto"] = identity("tokenize", default="auto", at_least=0, less_than=1)
    """the share of rows kept out of training, to measure the loss on, drawn by distinct content; `auto` is
    5 %, at most 1,000 rows and 500,000 tokens
    """
    held_out_path: str | tuple[str, ...] | None = place("fetch_data", default=None, left_out=None)
    """a file of its own for that, instead of a share; read as the rest is"""
    max_dropped: int | float | None = identity("tokenize", default=None, left_out=None)
    """fail when more rows than this, or a larger share of them, are left out"""
    min_trained_tokens: int | None = identity("tokenize", default=None, left_out=None, at_least=1)
    """fail when there are fewer trained tokens than this"""
    questions: tuple[str, ...] = neutral(default=())
    """what shows whether it was learned, for eval=quick, in place of held-out rows"""
    answer_tokens: int = neutral(default=256, at_least=1)
    """of the longest answer, for eval=quick"""
    seed: int = identity("tokenize", default=0)
    """of the draws, the held-out share and the packing; the top-level `seed` is for training only"""
