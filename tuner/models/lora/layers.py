"""What PEFT has put around a model: the layers with an adapter, and the settings of all of them."""

from collections.abc import Iterator
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer

ADAPTER = "default"
"""what PEFT calls the only adapter of a model"""


def adapted_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """The linear layers with an adapter, by the name of the module that PEFT has wrapped."""
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, LoraLayer) and ADAPTER in module.lora_A:
            yield name, module


def adapter_config(model: PeftModel) -> dict[str, Any]:
    """What PEFT writes as adapter_config.json, the same on every run: sets are sorted, and no directory is
    named.
    """
    settings = model.peft_config[ADAPTER].to_dict() | {"base_model_name_or_path": "", "inference_mode": True}
    return {
        key: sorted(value) if isinstance(value, set) else value for key, value in sorted(settings.items())
    }
