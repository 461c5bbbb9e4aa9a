"""What is random while training: dropout in adapters, and noise on embedded tokens.

Each number is drawn for a pack from (seed, step, the pack's index, the module's name), by a generator of the
device where it is used. So it is the same whatever row, micro batch, process or resumed run the pack is
computed in, and when a block is computed again for its gradient. Another kind of device draws other numbers.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn


class Noise:
    """Which packs are in the row at hand. Nothing is drawn outside of `enter` and `leave`."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._step = 0
        self._packs: tuple[tuple[int, int], ...] | None = None
        self._generators: dict[torch.device, torch.Generator] = {}

    def enter(self, step: int, packs: Sequence[tuple[int, int]]) -> None:
        """The next row belongs to `step` and consists of these packs, each its index and its tokens, in
        their order.
        """
        self._step, self._packs = step, tuple(packs)

    def leave(self) -> None:
        self._packs = None

    @property
    def on(self) -> bool:
        return self._packs is not None

    def parts(self, empty_NC: Tensor, name: str) -> Iterator[tuple[Tensor, torch.Generator]]:
        """The rows of each pack, to be filled by the generator beside them."""
        packs, device = self._packs or (), empty_NC.device
        if (known := sum(tokens for _, tokens in packs)) != len(empty_NC):
            raise ValueError(
                f"{name} sees {len(empty_NC)} tokens, and the packs of the row have {known}: noise can't be "
                "told apart by packs"
            )
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        begin = 0
        for index, tokens in packs:
            yield (
                empty_NC[begin : begin + tokens],
                self._generators[device].manual_seed(noise_seed(self.seed, self._step, index, name)),
            )
            begin += tokens


def noise_seed(seed: int, step: int, index: int, name: str) -> int:
    """A generator's seed, of 63 bits.

    >>> noise_seed(0, 3, 7, "q_proj") == noise_seed(0, 3, 7, "q_proj") != noise_seed(0, 3, 8, "q_proj")
    True
    """
    return int.from_bytes(blake2b(f"{seed} {step} {index} {name}".encode(), digest_size=8).digest()) >> 1


class Dropout(nn.Module):
    """Dropout (arXiv:1207.0580) in train mode: each number is zero with probability p, or else larger by 1
    / (1 - p).
    """

    def __init__(self, noise: Noise, p: float, name: str) -> None:
        super().__init__()
        self.noise, self.p, self.name = noise, p, name

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.noise.on):
            return x
        keep_NC = torch.empty(x.shape[:-1].numel(), x.shape[-1], dtype=torch.bool, device=x.device)
        for part, generator in self.noise.parts(keep_NC, self.name):
            part.bernoulli_(1 - self.p, generator=generator)
        # for the backward pass it keeps a byte a number
        return torch.where(keep_NC.view(x.shape), x / (1 - self.p), 0)

    def extra_repr(self) -> str:
        return f"p={self.p}"


class EmbeddingNoise:
    """NEFTune (arXiv:2310.05914): uniform noise on the embedded tokens in train mode, of alpha / sqrt(L · D)
    at most, in documents of L tokens and D values a token."""

    def __init__(self, noise: Noise, alpha: float) -> None:
        self.noise, self.alpha = noise, alpha
        self._positions_1N: Tensor | None = None

    def see(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the model's forward pass: where documents begin."""
        self._positions_1N = kwargs.get("position_ids")

    def add(self, module: nn.Module, _args: tuple[Any, ...], out_1ND: Tensor) -> Tensor | None:
        """After the embedding's forward pass."""
        if not (module.training and self.noise.on):
            return None
        if self._positions_1N is None:
            raise ValueError(
                "noise on embedded tokens needs the row's position_ids, to know how long its documents are"
            )
        tokens, width = out_1ND.shape[:-1].numel(), out_1ND.shape[-1]
        drawn_ND = torch.empty(tokens, width, device=out_1ND.device)
        for part, generator in self.noise.parts(drawn_ND, "embedding"):
            part.uniform_(-1, 1, generator=generator)
        bound_N = self.alpha / (document_lengths(self._positions_1N) * width).sqrt()
        return out_1ND + (drawn_ND * bound_N[:, None]).view(out_1ND.shape).to(out_1ND.dtype)


def document_lengths(positions_1N: Tensor) -> Tensor:
    """For each token of a row, how long its document is; the host does not wait for a GPU.

    >>> document_lengths(torch.tensor([[0, 1, 2, 0, 1, 0]])).tolist()
    [3, 3, 3, 2, 2, 1]
    """
    positions_N = positions_1N[0]
    places_N = torch.arange(len(positions_N), device=positions_N.device)
    last_N = torch.cat([positions_N[1:] == 0, torch.ones_like(positions_N[:1], dtype=torch.bool)])
    end_N = torch.where(last_N, places_N, len(positions_N)).flip(0).cummin(0).values.flip(0)
    return end_N - places_N + positions_N + 1


def prepare_noise(model: Any, *, seed: int, dropout: float, neftune: float | None) -> Noise | None:
    """Make what is random in a model that trains draw by pack: the dropout of its adapters, and noise on its
    embedding. None where nothing is random.

    dropout   what the adapters were made with
    neftune   the strength of the noise on embedded tokens
    """
    if not dropout and not neftune:
        return None
    noise = Noise(seed)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout) and ".lora_dropout." in name and module.p:
            model.set_submodule(name, Dropout(noise, module.p, name).train(module.training))
    if neftune:
        embedded = EmbeddingNoise(noise, neftune)
        model.register_forward_pre_hook(embedded.see, with_kwargs=True)
        model.get_input_embeddings().register_forward_hook(embedded.add)
    return noise
