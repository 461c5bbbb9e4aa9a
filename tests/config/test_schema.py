"""What a field may say has an entry in the table of what is known of it."""

from typing import get_args

from tuner.config.schema.algo import METHODS, Adapter
from tuner.config.schema.optim import OPTIMIZERS, OptimizerName


def test_every_optimizer_and_every_adapter_has_its_entry() -> None:
    assert set(get_args(OptimizerName)) == OPTIMIZERS.keys()
    assert set(get_args(Adapter)) == METHODS.keys()


def test_what_an_optimizer_stands_in_for_does_neither_page_nor_have_8_bits_already() -> None:
    for name, kind in OPTIMIZERS.items():
        assert kind.unpaged is None or OPTIMIZERS[kind.unpaged].unpaged is None, name
        assert kind.in_8_bits is None or OPTIMIZERS[kind.in_8_bits].saved < kind.saved, name
