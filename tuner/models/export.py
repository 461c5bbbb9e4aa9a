"""A fully trained step as a checkpoint in the Hugging Face layout. Adapters: `tuner.models.lora.export`."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tuner.errors import StageError
from tuner.files import decode_json
from tuner.models.checkpoint.files import weight_files
from tuner.models.checkpoint.safetensors import DTYPES, Checkpoint, Spec, TensorSource, specs_in_dtype
from tuner.models.checkpoint.write_safetensors import SHARD_LIMIT, write_checkpoint
from tuner.models.layouts.llama import HEAD


def write_full(
    weights: TensorSource,
    base: Path,
    out: Path,
    dtype: str,
    *,
    limit: int = SHARD_LIMIT,
    tick: Callable[[Spec], None] = lambda _: None,
) -> list[str]:
    """Write fully trained weights as a checkpoint and return the names of its files, one tensor in memory at
    a time (of experts, those of a layer).

    The tensors are those of the base, under their names there, whatever transformers calls the weights or
    makes of them on loading. `dtype` ("BF16", "F32") takes the place of the base's own type. What did not
    train (a buffer, a layer that was frozen) is the base's; a head that is tied to the embedding is left to
    them. Raises StageError for a trained tensor that the base lacks or has in another shape, and for a family
    whose layout can't be written.
    """
    from tuner.models.checkpoint.meta_model import meta_model

    # and with it transformers, which an adapter can do without
    from tuner.models.checkpoint.weight_names import OriginalTensors

    origin = Checkpoint(weight_files(base))
    originals = OriginalTensors(base, weights.__getitem__)
    weight_of = originals.weight_of
    places = frozenset(weight_of.values())
    shapes = {
        name: tuple(weight.shape) for name, weight in meta_model(base).state_dict().items() if name in places
    }
    for name, spec in weights.specs.items():
        if shapes.get(name) != spec.shape:
            has = shapes.get(name, "no such tensor")
            raise StageError(
                f"The trained tensor {name} is {spec.shape}, the base checkpoint has {has}: this family's "
                "layout can't be written yet."
            )
    tied = decode_json((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", True)
    new = {tensor for tensor, weight in weight_of.items() if weight in weights.specs}
    specs = {
        name: spec
        for name, spec in specs_in_dtype(origin.specs, dtype).items()
        if name in new or not (tied and weight_of.get(name) == HEAD)
    }

    def value(name: str) -> Tensor:
        return (originals if name in new else origin)[name].to(DTYPES[specs[name].dtype])

    return write_checkpoint(out, specs.values(), value, limit=limit, tick=tick)
