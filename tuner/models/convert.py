"""A trained step as files other tools know: a PEFT adapter directory, or a whole checkpoint in the Hugging Face layout."""

import json
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from tuner.errors import StageError
from tuner.models.files import weight_files
from tuner.models.merge import rounded
from tuner.models.shards import DTYPES, LIMIT, Checkpoint, Spec, write_checkpoint, write_file
from tuner.models.sidecars import read_json

TIED_HEAD = "lm_head.weight"


def write_adapter(weights: Path, settings: Path, out: Path, base_name: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` as PEFT does, and the same to the byte every time.

    `weights` holds PEFT's own tensor names. `base_name` is what PEFT loads the base by: a public name, never a local path.
    """
    trained = Checkpoint([weights])
    write_file(out / "adapter_model.safetensors", trained.specs.values(), trained.__getitem__)
    config = read_json(settings) | {"base_model_name_or_path": base_name, "inference_mode": True}
    config.pop("peft_version", None)
    ordered = {key: sorted(value) if key == "target_modules" and isinstance(value, list) else value for key, value in config.items()}
    (out / "adapter_config.json").write_text(json.dumps(ordered, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def write_full(weights: Path, base: Path, out: Path, dtype: str, *, limit: int = LIMIT, tick: Callable[[Spec], None] = lambda _: None) -> list[str]:
    """Write fully trained weights as a checkpoint and return the names of its files, one tensor in memory at a time.

    `dtype` ("BF16", "F32") takes the place of the base's own type. A base tensor that did not train (a buffer) is copied; a head that is tied to the
    embedding is left to them. Raises StageError for a trained tensor that the base lacks or has in another shape.
    """
    trained, origin = Checkpoint([weights]), Checkpoint(weight_files(base))
    for name, spec in trained.specs.items():
        if name not in origin.specs or origin.specs[name].shape != spec.shape:
            has = origin.specs[name].shape if name in origin.specs else "no such tensor"
            raise StageError(f"The trained tensor {name} is {spec.shape}, the base checkpoint has {has}: this family's layout can't be written yet.")
    tied = json.loads((base / "config.json").read_text(encoding="utf-8")).get("tie_word_embeddings", True)
    specs = {name: spec for name, spec in rounded(origin.specs, dtype).items() if name in trained.specs or not (tied and name == TIED_HEAD)}

    def value(name: str) -> Tensor:
        return (trained if name in trained.specs else origin)[name].to(DTYPES[specs[name].dtype])

    return write_checkpoint(out, specs.values(), value, limit=limit, tick=tick)
