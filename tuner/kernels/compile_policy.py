"""Which layers are compiled, when that pays, and when capturing passes as CUDA graphs does: known without
torch, for a plan too.
"""

from typing import Any

LAYERS = {
    "llama": "LlamaDecoderLayer",
    "mistral": "MistralDecoderLayer",
    "qwen2": "Qwen2DecoderLayer",
    "qwen3": "Qwen3DecoderLayer",
    "granite": "GraniteDecoderLayer",
    "phi3": "Phi3DecoderLayer",
    "smollm3": "SmolLM3DecoderLayer",
}
"""model_type → the class of transformers whose compiled layers are tested"""
SECONDS = 20.0
"""of a first step that compiles, on an H200"""
GAIN = 0.25
"""the share of a step's time that compiled layers save there"""
SECONDS_A_LAYER = 0.009
"""of the GPU, not compiled: with less for each layer of a row, it waits for the host. That takes 5.5 to
7.5 ms to launch a layer's forward and backward pass, the loss and the optimizer step in it (measured beside
an H200), and compiled layers are done in 0.75 of the time
"""


def compiling_pays(steps: int, seconds: float) -> bool:
    """Whether `steps` steps that take `seconds` each save more than compiling costs."""
    return steps * seconds * GAIN > SECONDS


def capturing_pays(layers: int, seconds: float) -> bool:
    """Whether the host would take longer to launch the kernels of a row than the GPU's `seconds` to run
    them; 0 where those are not known.
    """
    return 0 < seconds < layers * SECONDS_A_LAYER


def why_not_compiled(algo: Any, *, engine: str, processes: int) -> str | None:
    """What of a config keeps a run on a GPU from compiling its layers, if anything does.

    engine  what computes the steps: `torch` or `deepspeed`
    """
    if engine != "torch" or processes > 1:
        return "several processes or DeepSpeed"
    if algo.dropout or algo.neftune:
        return "algo.dropout and algo.neftune draw their numbers pack by pack"
    if algo.precision != "bf16":
        return "arithmetic in fp32"
    return None
