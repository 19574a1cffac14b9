"""The devices of an estimate: this machine's, and cards that are named."""

import pytest

from app.errors import SetupError
from app.estimate.device import Device, card, machine

GIB = 2**30


@pytest.mark.parametrize(
    ("text", "name", "size"), [("24GB", "card of 24 GB", 24), ("L4=24 GiB", "L4", 24), ("0.5g", "card of 0.5 GB", 0.5)]
)
def test_cards(text: str, name: str, size: float) -> None:
    assert card(text) == Device(name, "cuda", int(size * GIB), int(size * GIB))


@pytest.mark.parametrize("text", ["24", "GB", "0GB", "24TB", "-1GB"])
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(SetupError, match="write its memory, such as 24GB"):
        card(text)


def test_this_machine_is_named_first() -> None:
    first = machine()[0]
    assert first.name == "cpu" and 0 < first.free <= first.total
