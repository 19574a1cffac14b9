"""A model whose layers are divided among devices: what a layer needs is moved to where it is, and answers are those of one device."""

import logging
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from flash import FlashKernel
from tinymodels import tiny
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from app.engine import conversion, varlen
from app.engine.capacity import CacheLimits, step_bytes
from app.engine.conversion import create_flat_model, install_attention
from app.engine.flat import FlatModel
from app.engine.fused import create_fused_decoder
from app.engine.graphs import create_graphs
from app.engine.layout import Span, layout_of
from app.engine.ledger import Ledger
from app.engine.pages import PageCopy
from app.engine.proof import Check, check_ids
from app.errors import SetupError
from app.models.division import _parts
from app.scoring.statistics import token_statistics

CPU, META = torch.device("cpu"), torch.device("meta")
MIB = 2**20


class Apart(TorchDispatchMode):
    """Fails at an operation with tensors on two devices. Copies that move one are allowed, and noted."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        devices = {leaf.device for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)}
        if function.overloadpacket in (torch.ops.aten.to, torch.ops.aten._to_copy):
            self.moved += len(devices) > 1
        else:
            assert len(devices) <= 1, f"{function} has tensors on {devices}"
        return out


def dispatched(name: str, second: torch.device, **elsewhere: torch.device) -> PreTrainedModel:
    """Its first layer on the CPU, its second one on `second`; `elsewhere` are places of other modules, by the last part of their names."""
    model = tiny(name)
    parts = zip(_parts(model), (CPU, CPU, second, second), strict=True)
    places = {module: elsewhere.get(module.split(".")[-1], place) for names, place in parts for module in names}
    return dispatch_model(model, places, CPU)


def divided(name: str, monkeypatch: pytest.MonkeyPatch, is_flash: bool, **memory: int) -> FlatModel:
    """Without numbers on its second device. `memory` by the device's name."""
    has_page_table = varlen.has_page_table()
    own = FlashKernel(has_page_table)
    kernels = {"cpu": own, "meta": varlen.flash_kernel}
    monkeypatch.setattr(varlen, "has_page_table", lambda: has_page_table)
    monkeypatch.setattr(varlen, "usable_splits", lambda *_: int(is_flash))
    monkeypatch.setattr(varlen, "flash_kernel", lambda query, *args, **options: kernels[query.device.type](query, *args, **options))
    monkeypatch.setattr(conversion, "device_memory", lambda device, _: memory.get(device.type, 10**10))
    known, model = create_flat_model(tiny(name), CacheLimits(1, 64)).attention, dispatched(name, META)
    attention = install_attention(model)
    attention.shapes, attention.windows = known.shapes, known.windows
    flat = conversion._optimize(model, attention, None)
    conversion._allocate_cache(flat, CacheLimits(None, 600, page_tokens=varlen.PAGE_TOKENS))
    return flat


@pytest.mark.parametrize("is_flash", [True, False])
@pytest.mark.parametrize("name", ["Llama", "Mistral", "GPTNeoX", "Lfm2"])
def test_what_a_layer_needs_is_moved_to_its_device(name: str, is_flash: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = divided(name, monkeypatch, is_flash)
    assert flat.devices == (CPU, META) and flat.layer_devices == {0: CPU, 1: META} and flat.attention.is_flash is is_flash
    for cache in (flat.attention.slots, flat.attention.texts):
        assert [cache.keys[layer].device for layer in (0, 1)] == [cache.values[layer].device for layer in (0, 1)] == [CPU, META]
    spans = [Span(3, 8, 290, (4, 5)), Span(8, 12, 0, (6,)), Span(12, 17, 300, range(2), True), Span(17, 21, 0, None)]
    layout = layout_of([((0,), 3), ((1,), 4), ((2, 3), 270)], spans, flat.page_tokens, CPU)
    positions = [3, 4, 270, *(position for span in spans for position in range(span.start, span.end))]
    with Apart() as apart:
        hidden = flat.forward([7] * 21, positions, layout)
        first, apart.moved = apart.moved, 0
        logits = flat.head(hidden)
        flat.forward([7] * 21, positions, layout)
        flat.copy([PageCopy(0, 1, 5), PageCopy(2, 3, 7)])
    assert hidden.device == logits.device == META and logits.shape == (21, flat.vocabulary)
    assert 3 <= apart.moved < first, "what attention reads is moved once a step"


@pytest.mark.parametrize("name", ["Llama", "GPTNeoX", "GPT2", "Lfm2"])
def test_it_computes_what_it_computes_on_one_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.utils.modeling.check_device_same", lambda first, second: first.type == second.type)  # cpu and cpu:0
    whole, parts = (
        create_flat_model(tiny(name), CacheLimits(2, 64)),
        create_flat_model(dispatched(name, torch.device("cpu:0")), CacheLimits(2, 64)),
    )
    assert parts.proof is not None and parts.proof.shapes == whole.attention.shapes, "the check at the start has run"
    hooked = [name for name, module in parts.model.base_model.named_modules() if hasattr(module, "_hf_hook")]
    assert bool(hooked) == (parts._decoder is None), "the fused decoder moves states itself"
    ids = check_ids(whole.model)
    assert torch.equal(parts.head(parts.forward_uncached(ids)), whole.head(whole.forward_uncached(ids)))


def test_norm_and_projection_may_lie_behind_all_layers() -> None:
    for norm in (CPU, META):
        model = dispatched("Llama", CPU, norm=norm, lm_head=META)
        flat = FlatModel(model, attention := install_attention(model), create_fused_decoder(model, attention))
        attention.windows = dict.fromkeys(range(model.config.num_hidden_layers))
        flat._decoder.bind_layers()  # type: ignore[union-attr]
        with Apart():
            assert flat.forward_uncached([5, 6, 7]).device == META


def test_logits_of_two_devices_are_compared_on_one() -> None:
    """Nothing can be moved from the meta device: that it is tried is seen by the error."""
    elsewhere = torch.zeros(24, 300, device=META)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        Check(tiny("Llama")).compare("elsewhere", elsewhere)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        token_statistics(torch.zeros(24, 300), torch.zeros(24, dtype=torch.long), lambda x: x, (torch.zeros(24, 300), lambda _: elsewhere))


def test_its_steps_are_not_recorded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    flat = divided("Llama", monkeypatch, is_flash=True)
    with caplog.at_level(logging.INFO):
        assert create_graphs(flat, 2) is None and "divided among cpu" in caplog.messages[-1]


def test_the_device_with_the_least_room_decides_how_many_slots_there_are(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    activations = step_bytes(tiny("Llama").config, CacheLimits(None, 600, page_tokens=varlen.PAGE_TOKENS))
    with caplog.at_level(logging.INFO):
        flat = divided("Llama", monkeypatch, False, cpu=activations + 40 * MIB, meta=activations + 6 * MIB)
    ledgers = [message for message in caplog.messages if " on " in message and "layers)" in message]
    assert [line.split(": ")[0] for line in ledgers] == [f"LlamaForCausalLM on {name} (1 of 2 layers)" for name in ("cpu", "meta")]
    page = 256 * 4 * 2 * (16 + 16)  # tokens x float32 x kv heads x (key + value), of one layer
    assert flat.slots == int((0.9 * 6 * MIB - (3 + 2) * page) // (3 * page)) < 32  # and a spare page of each cache
    with pytest.raises(SetupError, match="1 slots do not fit meta: weights 0.00 GiB"):
        divided("Llama", monkeypatch, False, cpu=activations + 40 * MIB, meta=activations)


def test_a_device_without_a_layer_bounds_nothing() -> None:
    assert Ledger(10**9, 10**6, 10**6, 0, 0).slots(None, "cuda:1", most=128) == 128
