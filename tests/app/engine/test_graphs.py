"""What is recorded as CUDA graphs: on the meta device, where work that waits for a number or leaves the device is refused."""

import itertools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from flash import as_on_cuda, use_flash
from gpu.shapes import TINY_MODELS
from tinymodels import tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from app.engine import flat as flat_module
from app.engine import graphs, varlen
from app.engine.capacity import page_counts, row_counts
from app.engine.cudadecoder import CudaDecoder, PlainKernels
from app.engine.flat import CacheLimits, FlatModel, create_flat_model, install_attention
from app.engine.graphs import DecodeGraphs, Work, create_graphs

META = torch.device("meta")
OF_CHECK = ("Gemma 3", "GPT-OSS")


class OnDevice(TorchDispatchMode):
    """Fails at an operation with a tensor that is not on the meta device."""

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        elsewhere = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor) and leaf.device != META]
        assert not elsewhere, f"{function} has a tensor on {elsewhere[0].device}"
        return out


def recorded_on_meta(work: Work) -> Work:
    with OnDevice():
        work()
    return lambda: None


def without_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> FlatModel:
    """A model in bfloat16 on the meta device, laid out as on CUDA."""
    monkeypatch.setattr(varlen, "usable_splits", lambda *_: 2)
    monkeypatch.setattr(flat_module, "device_memory", lambda *_: 10**10)
    made = tiny_of_check(name) if name in OF_CHECK else tiny(name)
    with META:
        model = type(made)(made.config).bfloat16().eval()
    known = create_flat_model(made, CacheLimits(1, 64))
    attention = install_attention(model)
    attention.shapes, attention.windows = known.attention.shapes, known.attention.windows
    flat = flat_module._optimize(model, attention, None)
    flat_module._allocate_cache(flat, CacheLimits(4, 600, page_tokens=varlen.PAGE_TOKENS, text_window=300))
    flat.hidden_size = known.hidden_size
    monkeypatch.setattr(flat_module, "create_cuda_decoder", lambda decoder: CudaDecoder(decoder, PlainKernels()))
    flat.bind_cuda()
    return flat


def tiny_of_check(name: str) -> PreTrainedModel:
    """One of the GPU check: with layers with a sliding window, run by transformers' own forward."""
    class_name, shape = TINY_MODELS[name]
    made = getattr(transformers, class_name)
    model: PreTrainedModel = made(made.config_class(**shape)).eval()
    return model


@pytest.mark.parametrize("has_page_table", [True, False])
@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Mistral", "GPTNeoX", *OF_CHECK])
def test_a_step_stays_on_the_device_and_waits_for_nothing(name: str, has_page_table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if has_page_table and not varlen.has_page_table():
        pytest.skip("torch's kernel takes no table of pages before 2.12")
    monkeypatch.setattr(varlen, "has_page_table", lambda: has_page_table)
    monkeypatch.setattr(DecodeGraphs, "_check", lambda *_: None)  # there are no numbers
    DecodeGraphs(without_numbers(name, monkeypatch), 2, recorded_on_meta).record()


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (lambda x, head: head(x) * x.sum().item(), "cannot be called on meta tensors"),
        (lambda x, head: head(x) + torch.ones(1), "has a tensor on cpu"),
        (lambda x, head: head(x[x[:, 0] > 0]), "nonzero"),
    ],
)
def test_a_model_that_waits_or_leaves_the_device_is_noticed(
    head: Callable[..., torch.Tensor], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flat = without_numbers("Llama", monkeypatch)
    recorded = DecodeGraphs(flat, 1, recorded_on_meta)
    monkeypatch.setattr(flat, "_head", lambda x, own=flat._head: head(x, own))
    with pytest.raises((RuntimeError, AssertionError), match=why):
        recorded_on_meta(recorded._work(1, 3, "changed and drawn"))


def test_graphs_that_compute_something_else_are_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    use_flash(monkeypatch)
    flat = create_flat_model(tiny("Llama"), CacheLimits(2, 300, page_tokens=varlen.PAGE_TOKENS))
    with as_on_cuda(), caplog.at_level(logging.WARNING):
        assert create_graphs(flat, 2) is not None and not caplog.messages
        faults = ((_never_replayed, "differ by 100.0%"), (_refused, "cannot be captured"), (_without_sampling, "draws other tokens"))
        for recorder, why in faults:
            with monkeypatch.context() as patch:
                patch.setattr(graphs, "CudaRecorder", lambda recorder=recorder: recorder)
                assert create_graphs(flat, 2) is None
            assert caplog.messages[-1].startswith("decode steps are not recorded as CUDA graphs") and why in caplog.messages[-1]
    assert create_graphs(create_flat_model(tiny("Llama"), CacheLimits(2, 64)), 2) is None  # it does not attend by that kernel


def _never_replayed(work: Work) -> Work:
    return lambda: None


def _without_sampling(work: Work) -> Work:
    """Every token is the likeliest."""

    def replay() -> None:
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(graphs, "draw", lambda logits, *_: (logits.max(-1).indices, torch.ones(len(logits))))
            work()

    return replay


def _refused(work: Work) -> Work:
    raise RuntimeError("operation cannot be captured\nand a long trace")


class Card:
    """Notes what is asked of torch's interface to CUDA."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        for name in ("synchronize", "set_sync_debug_mode", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, lambda *args, name=name: self.calls.append(" ".join((name, *args))))
        monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(wait_stream=lambda _: None, device_index=0))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(wait_stream=lambda _: self.calls.append("joined")))
        monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", lambda *_: self.calls.append("memory closed"), raising=False)

    def capture_begin(self, pool: object, capture_error_mode: str) -> None:
        self.calls.append(f"begin {capture_error_mode}")

    def capture_end(self) -> None:
        self.calls.append("end")

    def replay(self) -> None:
        self.calls.append("replay")


def test_the_first_recording_is_tried_where_waiting_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Card(monkeypatch)
    recorder = graphs.CudaRecorder()
    recorder(lambda: card.calls.append("work"))()
    tried = ["work", "set_sync_debug_mode error", "work", "set_sync_debug_mode default"]
    assert card.calls == [
        *tried,
        "synchronize",
        "begin thread_local",
        "work",
        "end",
        "joined",
        "replay",
        "replay",
    ]  # once, before a request waits for it
    card.calls.clear()
    recorder(lambda: card.calls.append("work"))
    assert card.calls == ["work", "synchronize", "begin thread_local", "work", "end", "joined", "replay"]


@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_recording_that_fails_leaves_nothing_open(fails_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    card, times = Card(monkeypatch), itertools.count(1)

    def work() -> None:
        if next(times) == fails_at:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        graphs.CudaRecorder()(work)
    assert card.calls.count("set_sync_debug_mode default") == (fails_at > 1)
    assert card.calls[-2:] == ["end", "memory closed"] if fails_at == 3 else "begin thread_local" not in card.calls


def test_steps_are_recorded_for_these_numbers_of_rows_and_pages() -> None:
    assert row_counts(1) == (1,) and row_counts(5) == (1, 2, 4, 8)
    assert row_counts(33) == (1, 2, 4, 8, 16, 24, 32, 48)
    assert row_counts(128) == (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128) and row_counts(1024)[-1] == 1024
    assert page_counts(40, has_table=True) == (40,) and page_counts(40, has_table=False) == (1, 4, 16, 40)
    assert page_counts(1, has_table=False) == (1,)
