from pathlib import Path

import torch

from tuner.config.schema import Algo
from tuner.data.packs import Packs
from tuner.models.load import load_model
from tuner.train.batch import collate
from tuner.train.loss import summed_loss
from tuner.train.objectives import OBJECTIVES


def test_sft_smooths_labels_in_training_only(tiny: Path, packs: Packs) -> None:
    model, batch = load_model(tiny, dtype=torch.float32, device="cpu"), collate([packs[0]])
    algo = Algo(label_smoothing=0.1)
    smoothed = OBJECTIVES["sft"].training(algo)(model, batch)  # type: ignore[arg-type]
    assert smoothed == summed_loss(model, batch, label_smoothing=0.1)
    assert OBJECTIVES["sft"].held_out(model, batch) == summed_loss(model, batch) != smoothed
