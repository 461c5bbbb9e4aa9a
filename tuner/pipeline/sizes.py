"""What a stage says of the disk before it runs: the quantities that decide the size of an artifact, and the
bytes that making it needs.
"""

from dataclasses import dataclass

TENSOR = 128
"""bytes of a tensor's entry in the header of a safetensors file"""
MANIFEST, SETTINGS = 2560, 2048
"""bytes of an artifact's manifest; of the small files beside weights"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskNeed:
    """Bytes that the making of one artifact adds to the disk."""

    peak: int
    """at most, while it is made"""
    stays: int
    """once it is published"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantities:
    """What decides the sizes of a run's artifacts, counted or estimated."""

    parameters: int
    """of the model"""
    tensors: int
    """of the model"""
    tokenizer: int
    """bytes of the tokenizer's files"""
    gguf: bool
    """whether the model is a GGUF file, still to be rewritten"""
    trainable: int
    """trainable parameters"""
    trainable_tensors: int
    optimizer_state: int
    """bytes of what the optimizer remembers"""
    tokens: int
    """of the training set; 0 where the run stops before it is tokenized, as below"""
    steps: int
    """optimizer steps of the training run"""
    counted: bool
    """whether tokens and steps were counted; else they are a guess from the size of the data"""

    @property
    def beside(self) -> int:
        """Bytes of what lies beside the weights of a model."""
        return self.tokenizer + SETTINGS + MANIFEST

    def weights(self, width: int) -> int:
        """Bytes of all weights of the model, at `width` bytes a parameter."""
        return self.parameters * width + self.tensors * TENSOR
