"""What decides the sizes of all that is made from a model: how many numbers, in which tensors, and how many
of them train.

The headers of the model's files tell; before these are here, the config's geometry does. Standard library
only, so that a plan costs milliseconds.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from tuner.config.schema import Algo, Model
from tuner.config.view import View
from tuner.errors import DataError
from tuner.estimate.trained_model import count_trainable
from tuner.files import bytes_under, read_json
from tuner.models import geometry
from tuner.models.checkpoint import quantised
from tuner.models.checkpoint.files import TEXT
from tuner.models.checkpoint.headers import read_header
from tuner.pipeline.planned_stage import PlannedStage

VOCABULARY = 75
"""bytes of the tokenizer's files for each row of the embedding, before they are here: from 45 (SmolLM2) to
85 (Gemma 2)
"""
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
NOT_LINEAR = re.compile(
    r"embed|embd|wte|wpe|lm_head|^output\.weight|norm"
    r"|\.experts\.|_exps\.|\.gate\.weight|router|shared_expert_gate|gate_inp"
    r"|vision|visual|audio|projector"
)
"""names of matrices that no adapter is put around: embeddings, the head, norms; experts and what chooses
them; what sees and hears
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSize:
    """What decides the sizes of all that is made from a model."""

    parameters: int
    tensors: int
    widths: Mapping[str, int]
    """inputs + outputs of each linear layer's matrix, by the tensor's name; empty when no header could be
    read
    """
    tokenizer: int
    """bytes of its files"""
    gguf: bool
    """still to be rewritten"""
    geometry: Mapping[str, Any] | None = None
    """the native config.json, where it is there and its family is known"""


def measure_model(planned: PlannedStage) -> ModelSize:
    """The shapes of the model that fetch_model has made, or will find. Before a hub's model is here, what
    the config says of it.
    """
    made = planned.artifact
    files = (
        {name: made.path / name for name in made.manifest["files"]}
        if made and not made.manifest["references"]
        else planned.sources
    )
    if not files:
        return _described(planned.config.model, _downloads(planned))
    tokenizer = guessed = 0
    shapes: dict[str, tuple[int, ...]] = {}
    for name, path in files.items():
        gguf, size = path.suffix == ".gguf", bytes_under(path)
        if gguf or path.suffix == ".safetensors":
            found, length = read_header(path)
            shapes |= found
            # a file that can't be read counts as if its weights had 4 bits, or 16
            guessed += 0 if found else size * 2 if gguf else size // 2
            tokenizer += 2 * length * gguf  # the vocabulary is in the header, and about twice as long as JSON
        elif name in TEXT:
            tokenizer += size
    shapes = quantised.plain_shapes(_held(planned), shapes)
    parameters, tensors = sum(map(prod, shapes.values())) + guessed, len(shapes)
    widths = {
        key: sum(shape) for key, shape in shapes.items() if len(shape) == 2 and not NOT_LINEAR.search(key)
    }
    rewritten = any(path.suffix == ".gguf" for path in files.values())
    known = _known(read_json(files["config.json"]) or {}) if "config.json" in files else None
    return ModelSize(
        parameters=parameters,
        tensors=tensors,
        widths=widths,
        tokenizer=tokenizer,
        gguf=rewritten,
        geometry=known,
    )


def _held(planned: PlannedStage) -> str | None:
    """How the weights are quantised that will be rewritten in bf16."""
    if planned.artifact:
        return None
    found = (name.partition(".") for name in planned.stage.versions(View(planned.config, planned.stage.name)))
    return next((method for what, _, method in found if what == "dequantize"), None)


def _downloads(planned: PlannedStage) -> int:
    """About how many parameters the weights hold that the lock names."""
    pins = planned.stage.remote.pins(View(planned.config, planned.stage.name))
    files = {name: pinned.size or 0 for pin in pins.values() if pin for name, pinned in pin.files.items()}
    size = sum(size for name, size in files.items() if name.endswith(WEIGHTS))
    return quantised.parameters_in(_held(planned), size) + 2 * sum(
        size for name, size in files.items() if name.endswith(".gguf")
    )


def _known(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The same, where its family is known and it tells all sizes."""
    try:
        geometry.tensor_shapes(found)
    except DataError:
        return None
    return found


def _described(model: Model, parameters: int) -> ModelSize:
    """By the geometry that the config gives; where it gives none, or one of a family that is not known here,
    by the number of parameters: that of the config, or about so many `parameters`."""
    try:
        shapes = geometry.tensor_shapes(model.geometry)
        widths = {name: sum(shape) for name, shape in geometry.linear_shapes(model.geometry).items()}
    except DataError:
        return ModelSize(
            parameters=model.parameters or parameters, tensors=0, widths={}, tokenizer=0, gguf=False
        )
    return ModelSize(
        parameters=sum(map(prod, shapes.values())),
        tensors=len(shapes),
        widths=widths,
        tokenizer=VOCABULARY * shapes[geometry.EMBEDDING][0],
        gguf=False,
        geometry=model.geometry,
    )


def trainable_size(shapes: ModelSize, algo: Algo) -> tuple[int, int]:
    """Trainable parameters, and in how many tensors. LoRA on a layer has r · (inputs + outputs) of them
    (arXiv:2106.09685).
    """
    if not algo.uses_adapter:
        part = shapes.geometry and (algo.last_layers is not None or algo.freeze)
        return count_trainable(shapes.geometry or {}, algo)[0] if part else shapes.parameters, shapes.tensors
    if not shapes.widths:
        return algo.r * shapes.parameters // 400, 0  # about that of a model of 100M; larger ones have less
    names = [algo.targets] if isinstance(algo.targets, str) else algo.targets
    # GGUF has names of its own for the layers: until they are known, all count.
    named = [
        name
        for name in shapes.widths
        if f".{name.removesuffix('.weight')}".endswith(tuple(f".{target}" for target in names))
    ]
    chosen = named or list(shapes.widths)
    return algo.r * sum(shapes.widths[name] for name in chosen), 2 * len(chosen)
