"""The layers as they run on CUDA, with torch's operations in place of Triton's kernels; and when those kernels are not used."""

import logging
import random
import sys
from types import SimpleNamespace

import pytest
import torch
from flash import use_flash
from tinymodels import VOCABULARY, tiny

from app.engine import cudadecoder
from app.engine.capacity import CacheLimits
from app.engine.conversion import create_flat_model
from app.engine.cudadecoder import CudaDecoder, PlainKernels, Rotation, Target, create_cuda_decoder, probe
from app.engine.flat import FlatModel
from app.engine.layout import Span, layout_of
from app.engine.varlen import PAGE_TOKENS

CPU = torch.device("cpu")
LENGTHS = (300, 7)  # of two sequences, on three pages


def create(name: str, monkeypatch: pytest.MonkeyPatch) -> FlatModel:
    use_flash(monkeypatch)
    return create_flat_model(tiny(name), CacheLimits(4, 400, page_tokens=PAGE_TOKENS, text_window=300))


def a_mixed_step(flat: FlatModel) -> torch.Tensor:
    """Two sequences decode, a third begins, and two texts are read: one that will go on, and one in one piece."""
    rng = random.Random(1)
    ids = [[rng.randrange(VOCABULARY) for _ in range(length + 1)] for length in LENGTHS]
    pages = (range(2), range(2, 3))
    for each, own in zip(ids, pages, strict=True):
        span = Span(0, len(each) - 1, 0, own)
        flat.forward(each[:-1], list(range(len(each) - 1)), layout_of([], [span], PAGE_TOKENS, CPU))
    rows = [rng.randrange(VOCABULARY) for _ in range(60)]
    spans = [Span(2, 22, 0, range(3, 4)), Span(22, 52, 0, range(1), True), Span(52, 62, 0, None)]
    layout = layout_of(list(zip(pages, LENGTHS, strict=True)), spans, PAGE_TOKENS, CPU)
    return flat.forward([*(each[-1] for each in ids), *rows], [*LENGTHS, *range(20), *range(30), *range(10)], layout)


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral"])
def test_a_step_is_computed_as_by_the_other_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = create(name, monkeypatch)
    decoder = flat._decoder
    assert decoder is not None and isinstance(decoder.on_cuda, CudaDecoder)
    found = a_mixed_step(flat)
    decoder.on_cuda = None
    for part in flat.attention.slots.by_tokens.values():
        part.keys.zero_()
    expected = a_mixed_step(flat)
    assert float((found - expected).norm() / expected.norm()) < 1e-5


class Faulty(PlainKernels):
    """Each wrong in one way."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def norm(self, x: torch.Tensor, added: torch.Tensor | None, norm: cudadecoder.Norm) -> torch.Tensor:
        if self.fault == "the sum is not kept" and added is not None:
            return norm(x + added)
        return super().norm(x, added, norm)

    def rotate(self, rotation: Rotation, target: Target) -> torch.Tensor:
        if self.fault == "keys at their rows' numbers":
            target = Target(target.keys, target.values, None)
        query = super().rotate(rotation, target)
        if self.fault == "values are missing":
            target.values.zero_()
        return query.flip(1) if self.fault == "heads in another order" else query

    def gate(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return up * gate if self.fault == "no activation" else super().gate(gate, up)


FAULTS = ["the sum is not kept", "keys at their rows' numbers", "values are missing", "heads in another order", "no activation"]


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_kernels_are_not_used(fault: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    decoder = create("Llama", monkeypatch)._decoder
    assert decoder is not None and probe(PlainKernels(), decoder) == 0.0
    install(Faulty(fault), monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert create_cuda_decoder(decoder) is None
    assert "Triton's kernels are wrong by" in caplog.text


def test_kernels_that_do_not_run_are_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    decoder = create("Llama", monkeypatch)._decoder
    assert decoder is not None

    def fail(*_: object) -> None:
        raise OSError("no C compiler\nand more")

    kernels = PlainKernels()
    monkeypatch.setattr(kernels, "gate", fail)
    install(kernels, monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert create_cuda_decoder(decoder) is None
    assert "Triton's kernels do not run here, and are not used: no C compiler" in caplog.messages


def test_right_kernels_are_used_where_triton_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = create("Qwen3", monkeypatch)._decoder
    assert decoder is not None
    install(PlainKernels(), monkeypatch)
    assert isinstance(create_cuda_decoder(decoder), CudaDecoder)
    monkeypatch.setattr(cudadecoder, "find_spec", lambda name: None)
    assert create_cuda_decoder(decoder) is None


def install(kernels: PlainKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of Triton's, as if it were installed."""
    monkeypatch.setattr(cudadecoder, "find_spec", lambda name: name)
    module = SimpleNamespace(FAILURES=(RuntimeError, OSError), TritonKernels=lambda: kernels)
    monkeypatch.setitem(sys.modules, "app.engine.tritonkernels", module)
