"""Which model: `model`."""

from dataclasses import dataclass, field
from typing import Literal

from tuner.config.fields import identity, neutral, place
from tuner.config.schema.chat import Chat


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """Which model, where it comes from, and how it is talked to."""

    source: Literal["path", "package", "run", "hub", "modelscope"] = place(
        "fetch_model", "tokenize", default="path"
    )
    """`path`: a Hugging Face directory or a GGUF file; `package`: a file that an installed Python package
    carries; `run`: what an earlier run made; `hub`, `modelscope`: a repository of a hub"""
    path: str | None = place("fetch_model", "tokenize", default=None)
    """the directory or file, for source=path"""
    package: str | None = place("fetch_model", default=None)
    """the name to import, for source=package"""
    file: str | None = place("fetch_model", default=None)
    """the file inside the package"""
    install: str | None = neutral("fetch_model", default=None)
    """the command that installs the package"""
    run: str | None = place("fetch_model", default=None, left_out=None)
    """the earlier run, for source=run: its name, path, digest prefix or `last`"""
    dir: str | None = neutral("fetch_model", "tokenize", default=None)
    """where that run's model lies: filled by the tool"""
    adapter: str | None = neutral("train", "baseline", default=None)
    """where the adapter lies that algo.init=continue goes on from: filled by the tool"""
    repo: str | None = identity("convert", default=None, seen_by=("fetch_model",))
    """the public name, such as org/name: where a hub has it, and what adapters call their base model"""
    modelscope: str | None = neutral("fetch_model", default=None)
    """the name on ModelScope, where that is another"""
    revision: str | None = place("fetch_model", default=None, left_out=None)
    """a branch, a tag or a commit of the repository; the hub's default when null"""
    links: Literal["inside", "follow"] = neutral("fetch_model", default="inside")
    """which links in a model's directory are followed: `inside` refuses small files that lie elsewhere and
    would be copied into results; weights may always lie elsewhere"""
    layout: str = neutral("fetch_model", default="auto")
    """how the checkpoint's tensors are laid out: `native` to transformers, or a family that is rewritten,
    such as internlm2; `auto` reads it off config.json
    """
    new_tokens: tuple[str, ...] = identity("fetch_model", "train", default=(), left_out=())
    """tokens to add to the vocabulary, each with a row of the embedding; those in brackets, such
    as <tool>, are special
    """
    context: int | None = neutral("tokenize", default=None)
    """the longest sequence the model was made for, in tokens; a longer data.length is refused"""
    licence: str | None = neutral(default=None)
    """the licence of its weights"""
    parameters: int | None = neutral(default=None)
    """the number of parameters in the repository's files: a tied head counts once"""
    targets: tuple[str, ...] = neutral(default=())
    """its linear layers, as algo.targets=all-linear finds them: for estimates before anything is
    downloaded
    """
    geometry: dict[str, int | float | bool | str | None] = neutral(default=dict)
    """the keys of the native config.json that decide the shapes, with model_type: for estimates before
    anything is downloaded
    """
    chat: Chat = field(default_factory=Chat)
