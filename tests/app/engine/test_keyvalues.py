"""Copies from page to page of the KV cache."""

from collections.abc import Iterator

import pytest
import torch

from app.engine.keyvalues import KeyValues
from app.engine.pages import PageCopy

PAGES, HEADS, PAGE, DIM = 6, 3, 64, 64


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As a server has: which of two writes to the same place comes last is then undefined within one operation of torch."""
    count = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(count)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("copies", "held"),
    [
        ([PageCopy(0, 2, 27), PageCopy(1, 2, 40)], {2: [(1, 40)]}),  # the page was given back and taken again
        ([PageCopy(0, 2, 40), PageCopy(1, 2, 27)], {2: [(1, 27), (0, 13)]}),
        ([PageCopy(0, 2, 40), PageCopy(2, 3, 27)], {2: [(0, 40)], 3: [(0, 27)]}),  # its copy is copied
        ([PageCopy(0, 2, 40), PageCopy(4, 0, 40)], {2: [(0, 40)], 0: [(4, 40)]}),  # its source is written afterwards
    ],
)
def test_copies_are_made_one_after_the_other(copies: list[PageCopy], held: dict[int, list[tuple[int, int]]]) -> None:
    for _ in range(20):
        cache = KeyValues()
        cache.allocate({0: (HEADS, DIM, DIM)}, PAGES, PAGE, torch.bfloat16, torch.device("cpu"))
        for tensor in cache.tensors:
            tensor[:] = torch.arange(PAGES)[:, None, None, None]
        cache.copy(copies)
        for page, parts in held.items():
            expected = torch.tensor([source for source, count in parts for _ in range(count)])
            for tensor in cache.tensors:
                assert tensor[page, :, : len(expected)].equal(expected[None, :, None].expand(HEADS, -1, DIM).bfloat16())
