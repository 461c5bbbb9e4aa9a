"""The rewritings of a model's files on their way to a class that transformers has, each by its name."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tuner.config.view import View
from tuner.models.checkpoint import files, quantised
from tuner.progress import working


def clear_leftovers(directory: Path, keep: list[Path]) -> None:
    """Remove what an interrupted rewriting left, but not what is still to be read."""
    directory.mkdir(exist_ok=True)
    for path in directory.iterdir():
        if path in keep:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def rewrite_files(
    name: str, found: Mapping[str, Path], view: View, out: Path, say: Callable[[str], None]
) -> None:
    """One rewriting of the files `found`, into a directory that is empty but for what is read."""
    match name.partition("."):
        case "gguf", _, _:
            from tuner.models.checkpoint.gguf import convert_gguf

            path = next(path for path in found.values() if path.suffix == ".gguf")
            say(f"rewriting {path.name} as bf16 safetensors, once")
            with working(f"dequantising {path.name}", say):
                convert_gguf(path, out)
        case "pickle", _, _:
            from tuner.models.checkpoint import pickles

            say("rewriting pickled weights as safetensors, once")
            pickles.convert_pickles(
                [path for path in found.values() if path.suffix in files.PICKLES], out, say=say
            )
            files.copy_small_files(found, out)
        case "dequantize", _, method:
            from tuner.models import dequantize

            say(f"rewriting the weights in {quantised.WORDS[method]} as bf16, once")
            dequantize.dequantize_checkpoint(found, method, out, say=say)
        case "layout", _, wanted:
            from tuner.models.layouts import rewrite

            say(f"rewriting the layout of {wanted}, once")
            rewrite.write_native(found, wanted, out, say=say)
        case _:
            from tuner.models import new_tokens

            say(f"rows for {len(view.model.new_tokens)} new tokens")
            new_tokens.add_new_tokens(found, view.model.new_tokens, out, say=say)
